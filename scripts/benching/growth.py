"""M13: how costs grow with the group, the turns, the context and the vocabulary, as fitted exponents."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil

from scripts.benching.children import Child, column, measure_in_turns
from scripts.benching.fitting import exponent, product_term
from scripts.benching.head import head_child
from scripts.benching.learner import Prepared, our_layouts
from scripts.benching.report import Figure, Measurement
from scripts.benching.workload import Case, make_batch

GROUPS, TURNS, CONTEXTS = (2, 4, 8, 16, 32), (1, 2, 4, 8, 16), (512, 1024, 2048, 4096, 8192)
VOCABS, HEAD_TOKENS = (8_192, 32_768, 151_936), (512, 1024, 2048)
PROMPT, COMPLETIONS = 512, 1024
GROUP_SLOPE, TURN_EXPONENT, BYTES_OF_PRODUCT, CONTEXT_EXPONENT = 0.05, 1.05, 0.05, 1.05
REPEATS = 5
AT_WORST = 40  # bytes a (token x vocabulary entry): ten copies of the logits; what does not fit is left out


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all-points", action="store_true", help="growth: every point of each sweep, not every second"
    )


def measure(options: argparse.Namespace) -> list[Measurement]:
    """Sweeps on the learner's default layout. By default each has its ends and its middle."""
    with tempfile.TemporaryDirectory(prefix="whetstone-bench-") as folder:
        place = Prepared(_group_case(2), Path(folder), reference=False)
        with place.ours() as child:
            figures = [
                *_group(child, Path(folder), _some(GROUPS, options)),
                _turns(place, child, _some(TURNS, options)),
            ]
        figures += [
            _contexts(Path(folder), _some(CONTEXTS, options)),
            _head(_some(VOCABS, options), _some(HEAD_TOKENS, options)),
        ]
    return [
        Measurement(
            subject=f"growth: M13, of the layout {our_layouts()[0]} and the head, fitted over each sweep",
            figures=figures,
        )
    ]


def _some(points: tuple[int, ...], options: argparse.Namespace) -> tuple[int, ...]:
    return points if options.all_points or len(points) <= 3 else points[::2]


def _group_case(size: int) -> Case:
    """One group with the same number of sampled tokens, whatever its size."""
    return Case(
        name=f"G = {size}",
        prompt_len=PROMPT,
        completion_len=COMPLETIONS // size,
        num_prompts=1,
        group_size=size,
    )


def _group(child: Child, folder: Path, sizes: Sequence[int]) -> list[Figure]:
    paths = {size: str(make_batch(_group_case(size)).save(folder / f"groups-{size}.json")) for size in sizes}
    sides = {str(size): partial(child.ask, "update", path=path) for size, path in paths.items()}
    # In turns, as the machine's speed drifts: one size after the other, its drift would be the slope.
    answers = measure_in_turns(sides, rounds=REPEATS, warm_ups=1)
    cpu_s = [min(column(rounds, "cpu_s")) for rounds in answers.values()]
    forwarded = [rounds[0]["forwarded"] for rounds in answers.values()]
    points = f"G = {_told(sizes)}, {PROMPT} + {COMPLETIONS:,} tokens"
    return [
        Figure(
            name="CPU of an update ~ G^, one prompt",
            value=exponent(sizes, cpu_s),
            target=GROUP_SLOPE,
            detail=f"{points}: {', '.join(f'{value:.2f}' for value in cpu_s)} s",
        ),
        Figure(
            name="tokens forwarded ~ G^, one prompt",
            value=exponent(sizes, forwarded),
            target=GROUP_SLOPE,
            detail=f"{_told(forwarded)}",
        ),
    ]


def _turns(place: Prepared, child: Child, counts: Sequence[int]) -> Figure:
    forwarded = [child.ask("turns", path=place.path, num_turns=count)["forwarded"] for count in counts]
    return Figure(
        name="tokens forwarded ~ turns^, each its own sample",
        value=exponent(counts, forwarded),
        target=TURN_EXPONENT - 1,  # the same tokens, cut more often
        detail=f"turns {_told(counts)}: {_told(forwarded)}",
    )


def _contexts(folder: Path, lengths: Sequence[int]) -> Figure:
    """A fresh process a point: what one update held stays with its process."""
    mib = []
    for length in lengths:
        case = Case(
            name=f"context {length}",
            prompt_len=length - length // 4,
            completion_len=length // 4,
            num_prompts=1,
            group_size=2,
        )
        place = Prepared(case, _made(folder / f"context-{length}"), reference=False)
        with place.ours() as child:
            mib.append(child.ask("peak", path=place.path)["mib"])
    return Figure(
        name="memory of an update ~ context^",
        value=exponent(lengths, mib),
        target=CONTEXT_EXPONENT,
        detail=f"{_told(lengths)} tokens: {_told(mib)} MiB",
    )


def _head(vocabs: Sequence[int], counts: Sequence[int]) -> Figure:
    free = psutil.virtual_memory().available
    points = [(count, vocab) for vocab in vocabs for count in counts if AT_WORST * count * vocab < free]
    mib = [_pass_mib(count, vocab) for count, vocab in points]
    tokens, sizes = zip(*points, strict=True)
    told = ", ".join(f"{value:,.0f} MiB at {n:,} x {v:,}" for (n, v), value in zip(points, mib, strict=True))
    return Figure(
        name="head: bytes a (token x vocabulary entry)",
        value=2**20 * product_term(tokens, sizes, mib),
        unit="B",
        target=BYTES_OF_PRODUCT,
        detail=f"4 where logits exist; {told}",
    )


def _pass_mib(count: int, vocab: int) -> float:
    with head_child("ours", count, vocab) as child:
        return child.ask("pass")["mib"]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _told(values: Sequence[float]) -> str:
    return ", ".join(f"{value:,.0f}" for value in values)
