"""Measure the log-prob gap between engine and learner on real multi-turn samples; say what to do about it.

    python -m scripts.mismatch                                          # the first recipe's starting policy
    python -m scripts.mismatch --model FOLDER --engine-dtype float32 bfloat16 float16

For each dtype a real engine samples groups of episodes, the learner scores the same ids in float32, and every
sampled token is compared. Written to --out: report.md, report.json, gap.png. About half a minute a dtype.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
import ray
import tyro

from recipes import calc_grpo
from recipes.placement import make_learner_spec, make_rollouts, start_ray
from rl.algorithms import get_algorithm
from rl.batch import make_batch
from rl.config import Config
from rl.defaults import resolve
from rl.learner import Learner
from rl.machine import Machine
from rl.mismatch import BEYOND, GapSummary, TokenGaps, by, recommend, summarize, token_gaps
from rl.precision import Precision
from rl.preflight import preflight
from rl.validation import ConfigError, validate
from rollout.collector import Collector, CollectorSpec
from rollout.task_stream import TaskStream

mpl.use("Agg")
from matplotlib import pyplot as plt

EDGES = (0, 4, 8, 16, 32, 64, 128, 256, 512)
"""Where the ranges of positions begin, in tokens of a turn."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared."""

    model: str = ""
    """Folder or hub id; empty: the starting policy of recipes/calc_grpo.py."""
    env: str = "calc"
    """Environment whose episodes are sampled."""
    level: int = 1
    """Its level."""
    seed: int = 0
    """Seed of tasks and samples."""
    engine_dtype: tuple[Literal["float32", "bfloat16", "float16"], ...] = field(
        default=("float32", "bfloat16", "float16")
    )
    """Precisions of the engine, one after the other."""
    num_groups: int = 16
    """Tasks; eight episodes of each are sampled."""
    out: str = "runs/mismatch"
    """Folder of report.md, report.json and gap.png."""


def measure(options: Options, dtype: str) -> TokenGaps:
    """Sample with an engine in `dtype`, score with a float32 learner, compare."""
    config = replace(
        calc_grpo.CONFIG,
        model=options.model,
        env=options.env,
        level=options.level,
        seed=options.seed,
        engine_dtype=dtype,
        num_gap_groups=options.num_groups,
    )
    machine = Machine.here()
    validate(config, machine)
    config = resolve(config, machine)
    config = replace(config, model=config.model or str(calc_grpo.starting_policy(config)))
    preflight(config, machine, Path(options.out))
    return asyncio.run(_sample_and_score(config))


async def _sample_and_score(config: Config) -> TokenGaps:
    start_ray(config)
    engines = make_rollouts(config)
    try:
        await asyncio.gather(*(engine.start() for engine in engines))
        collector = Collector(
            TaskStream(env=config.env, level=config.level, run_seed=config.seed),
            engines,
            CollectorSpec(group_size=config.group_size, run_seed=config.seed),
        )
        batch = make_batch(await collector.probe_groups(config.num_gap_groups))
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines), return_exceptions=True)
        ray.shutdown()
    row = get_algorithm("reinforce")
    spec = make_learner_spec(config, row, run_name="mismatch", incidents="")
    learner = Learner(replace(spec, precision=Precision(engine=config.engine_dtype)))
    return token_gaps(learner.score(batch, frozenset({"old_logprobs"})))


def table(summaries: dict[str, GapSummary], first: str) -> str:
    """Summaries as a Markdown table."""
    rows = [
        f"| {first} | tokens | mean d | mean abs d | max abs d | k1 | k3 | chi2 | beyond {BEYOND:g} |",
        "|---" * 9 + "|",
    ]
    for name, s in summaries.items():
        numbers = " | ".join(f"{x:.2e}" for x in (s.mean, s.abs_mean, s.abs_max, s.k1, s.k3, s.chi2))
        rows.append(f"| {name} | {s.num_tokens:,} | {numbers} | {s.beyond:.2%} |")
    return "\n".join(rows)


def report(options: Options, gaps: dict[str, TokenGaps]) -> str:
    """The report in Markdown."""
    parts = [
        "# Log-prob gap between engine and learner",
        f"d = log-prob of the learner (float32) less that of the engine, nats, on sampled tokens of "
        f"{options.env} level {options.level}, seed {options.seed}, model "
        f"{options.model or 'of recipes/calc_grpo.py'}.",
        table({dtype: summarize(gap.difference) for dtype, gap in gaps.items()}, "engine"),
    ]
    for dtype, gap in gaps.items():
        parts += [
            f"## {dtype}",
            f"Recommended: {recommend(summarize(gap.difference))}.",
            table(by(gap.turn, gap.difference), "turn"),
            table(by(gap.position, gap.difference, EDGES), "position in turn"),
        ]
    return "\n\n".join(parts) + "\n"


def plot(gaps: dict[str, TokenGaps], path: Path) -> None:
    """The distribution of |d|, and its mean by turn and by position."""
    figure, (spread, turns, places) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for dtype, gap in gaps.items():
        size = np.sort(np.maximum(np.abs(gap.difference), 1e-9))
        spread.plot(size, 1.0 - np.arange(len(size)) / len(size), label=dtype)
        for axis, summaries in (
            (turns, by(gap.turn, gap.difference)),
            (places, by(gap.position, gap.difference, EDGES)),
        ):
            axis.plot(list(summaries), [max(s.abs_mean, 1e-9) for s in summaries.values()], "o-", label=dtype)
    spread.axvline(BEYOND, color="grey", linestyle=":", label=f"{BEYOND:g} nats")
    spread.set(
        xscale="log", yscale="log", xlabel="|d|, nats", ylabel="share of tokens above", title="how large"
    )
    turns.set(yscale="log", xlabel="turn", ylabel="mean |d|, nats", title="by turn")
    places.set(yscale="log", xlabel="position in turn, tokens", ylabel="mean |d|, nats", title="by position")
    spread.legend()
    figure.suptitle("engine against learner: log-prob gap of sampled tokens")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    out = Path(options.out)
    try:
        gaps = {dtype: measure(options, dtype) for dtype in options.engine_dtype}
    except ConfigError as error:
        print(f"Nothing was measured:\n{error}", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    text = report(options, gaps)
    summaries = {
        dtype: {"all": asdict(summarize(gap.difference)), "recommended": recommend(summarize(gap.difference))}
        for dtype, gap in gaps.items()
    }
    (out / "report.md").write_text(text, encoding="utf-8")
    (out / "report.json").write_text(json.dumps(summaries, indent=1) + "\n")
    plot(gaps, out / "gap.png")
    print(text)
    print(f"written: {out / 'report.md'}, {out / 'report.json'}, {out / 'gap.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
