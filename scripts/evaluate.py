"""Evaluate a policy on held-out tasks: unbiased pass@k and avg@n, with intervals over tasks.

    python -m scripts.evaluate --model runs/NAME --num-tasks 256      # as the run evaluated itself at its end
    python -m scripts.evaluate --model MODEL --env calc:1 calc:2 --num-tasks 512 --k 1 4 16 --against OTHER
    python -m scripts.evaluate --endpoint http://localhost:8000/v1 --endpoint-model NAME --env calc:2

Every task and every random stream is a pure function of (seed, task, sample), so two policies meet the same
ones. The samples of a task are one observation, and an episode that could not be scored counts as not solved
and is told. Written to --out: evaluation.json, which a later --against takes. Exit code 0: evaluated; 2:
refused before it began; 3: an engine or the endpoint failed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
import tyro

from envs.policy import SamplingFilters
from envs.splits import Split
from recipes.placement import make_rollouts, start_ray
from recipes.stopping import STOPPED, run_interruptibly, stop_of
from rewards.base import resolve_reward
from rl.config import resolve
from rl.durable import atomic_write_json
from rl.evaluation import Evaluation, EvaluationError, count_errors, outcome_of, read_evaluation
from rl.machine import Machine, source_commit, stack_versions
from rl.paired import TaskKey, require_same_tasks, task_keys
from rl.run_dir import default_run_dir
from rollout.chat_endpoint import ChatEndpoint, EndpointError, EndpointRollouts
from rollout.collector import Collector, CollectorSpec
from rollout.limits import Limits
from rollout.task_stream import TaskStream
from rollout.trajectory import TrajectoryGroup
from scripts._evaluate_options import Options, require_options
from scripts._evaluate_report import Report
from scripts._evaluated import (
    LIMITS,
    Cell,
    Source,
    by_env,
    endpoint_spec,
    engine_config,
    find_policy,
    parse_cells,
    require_sound,
    settings_of,
)

AGAINST = "against.json"
EVALUATION = "evaluation.json"
NUM_CONCURRENT_OF_ENDPOINT = 16
REFUSED, EVALUATED = 2, 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known before the first episode: the policy, its settings, the tasks."""

    options: Options
    source: Source | None  # None: the endpoint
    settings: Mapping[str, Any]
    cells: Sequence[Cell]

    @property
    def filters(self) -> SamplingFilters:
        return SamplingFilters(top_p=self.options.top_p, top_k=self.options.top_k, min_p=self.options.min_p)

    def task_keys(self) -> set[TaskKey]:
        return {(cell.definition.name, cell.level, task.id) for cell in self.cells for task in cell.tasks}


async def with_engines(plan: Plan, cells: Sequence[Cell]) -> list[list[TrajectoryGroup]]:
    """The groups of each cell, all of one environment, from engines of this plan's policy."""
    assert plan.source is not None  # an endpoint has no engines
    config = resolve(engine_config(plan.options, plan.source, plan.settings, cells[0]), Machine.here())
    engines = make_rollouts(config)
    try:
        await asyncio.gather(*(engine.start() for engine in engines))
        return await collect(plan, cells, engines, config.num_concurrent)
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines), return_exceptions=True)


async def collect(
    plan: Plan, cells: Sequence[Cell], runners: Sequence[Any], num_concurrent: int
) -> list[list[TrajectoryGroup]]:
    """The groups of each cell, a cell at a time, so that one has the same samples alone and among others."""
    num_groups = max(1, num_concurrent // plan.options.num_samples)
    num_rounds = -(-plan.options.num_tasks // (num_groups * len(runners)))
    spec = CollectorSpec(
        group_size=plan.options.num_samples,
        max_groups_per_runner=num_groups,
        # One group after another may take its whole deadline.
        deadline_s=plan.options.group_deadline_s * num_rounds,
    )
    stream = TaskStream(env=cells[0].spec, level=cells[0].level, run_seed=plan.settings["seed"])
    collector = Collector(stream, runners, spec)
    collected = []
    for cell in cells:
        print(f"{cell.name}: {len(cell.tasks)} tasks ...", file=sys.stderr, flush=True)
        collected.append(
            await collector.evaluate(
                cell.tasks,
                temperature=plan.settings["eval_temperature"],
                num_samples=plan.options.num_samples,
                filters=plan.filters,
            )
        )
    return collected


async def with_endpoint(plan: Plan, cells: Sequence[Cell]) -> list[list[TrajectoryGroup]]:
    """The groups of each cell, all of one environment, from the endpoint."""
    endpoint = ChatEndpoint(endpoint_spec(plan.options))
    definition = cells[0].definition
    try:
        rollouts = EndpointRollouts(
            endpoint=endpoint,
            definition=definition,
            reward=resolve_reward(cells[0].reward, definition),
            limits=Limits(**{name: plan.settings[name] for name in LIMITS}),
            run_seed=plan.settings["seed"],
        )
        num_concurrent = plan.options.num_concurrent or NUM_CONCURRENT_OF_ENDPOINT
        return await collect(plan, cells, [rollouts], num_concurrent)
    finally:
        await endpoint.close()


async def evaluate(plan: Plan) -> Evaluation:
    """Every cell sampled and scored, by one version of one policy."""
    sample = with_engines if plan.source else with_endpoint
    outcomes, trajectories = [], []
    for _, cells in by_env(plan.cells):
        for cell, groups in zip(cells, await sample(plan, cells), strict=True):
            outcomes += [outcome_of(group, cell.definition.name, cell.level) for group in groups]
            trajectories += [trajectory for group in groups for trajectory in group.trajectories]
    scored = [t for t in trajectories if t.score.value is not None]
    if scored and all(t.score.success is None for t in scored):
        raise EvaluationError(
            "the reward reports no success, which is what is counted; name another --reward"
        )
    spans = (span for t in trajectories for turn in t.turns for span in turn.completion.version_spans)
    versions = {span.version for span in spans}
    if len(versions) > 1:
        raise RuntimeError(f"one policy version was to be evaluated and {sorted(versions)} have sampled")
    options = plan.options
    endpoint = {"name": options.endpoint_model, "endpoint": options.endpoint}
    return Evaluation(
        policy=plan.source.facts() if plan.source else endpoint,
        settings={
            **plan.settings,
            **asdict(plan.filters),
            "split": Split.HELD_OUT.value,
            "num_tasks": options.num_tasks,
            "num_samples": options.num_samples,
            "rewards": {cell.name: cell.reward or "the environment's own" for cell in plan.cells},
        },
        versions=versions_here(),
        outcomes=tuple(outcomes),
        errors=count_errors(trajectories),
    )


def versions_here() -> dict[str, str]:
    """The versions of the stack, and the commit of this code where it is a checkout."""
    source = source_commit(Path(__file__).resolve().parent.parent)
    commit = {} if source is None else {"commit": source.commit + (" (changed)" if source.dirty else "")}
    return stack_versions() | commit


def make_plan(options: Options) -> Plan:
    """The plan of --model or --endpoint; nothing has been started. Raises ValueError with what is wrong."""
    require_options(options)
    source = find_policy(options.model) if options.model else None
    if source is None:
        endpoint_spec(options)
    settings = settings_of(options, source)
    cells = parse_cells(options, source, settings["seed"])
    return Plan(options=options, source=source, settings=settings, cells=cells)


def make_other(plan: Plan) -> Plan | Evaluation | None:
    """What --against names: a former evaluation of the same tasks, or a policy to evaluate as ours is."""
    name = plan.options.against
    path = Path(name).expanduser()
    if not name:
        return None
    if not path.is_file() and not (path / EVALUATION).is_file():
        return replace(plan, source=find_policy(name))
    former = read_evaluation(path if path.is_file() else path / EVALUATION)
    require_same_tasks(plan.task_keys(), task_keys(former.outcomes))
    former.results(plan.options.ks)  # raises where it has too few samples
    return former


def require_empty(out: Path) -> None:
    """Raise EvaluationError where `out` holds something: no result is ever overwritten."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EvaluationError(f"--out {out} is not empty; give a new or an empty folder")


def check(plan: Plan) -> None:
    """Raise ConfigError or EndpointError where no episode could begin."""
    if plan.source is None:
        asyncio.run(_ask_endpoint(plan.options))
        return
    for cell in plan.cells:
        require_sound(engine_config(plan.options, plan.source, plan.settings, cell), Machine.here())


async def _ask_endpoint(options: Options) -> None:
    endpoint = ChatEndpoint(endpoint_spec(options))
    try:
        await endpoint.check()
    finally:
        await endpoint.close()


async def evaluate_both(plan: Plan, other: Plan | Evaluation | None) -> tuple[Evaluation, Evaluation | None]:
    ours = await evaluate(plan)
    return ours, await evaluate(other) if isinstance(other, Plan) else other


def run(plan: Plan, other: Plan | Evaluation | None) -> tuple[Evaluation, Evaluation | None]:
    """Both evaluations, on a Ray of their own where there are engines."""
    with_source = next((p for p in (plan, other) if isinstance(p, Plan) and p.source), None)
    try:
        if with_source is not None and with_source.source is not None:
            options, settings = plan.options, plan.settings
            config = engine_config(options, with_source.source, settings, plan.cells[0])
            start_ray(resolve(config, Machine.here()))
        return run_interruptibly(evaluate_both(plan, other))
    finally:
        ray.shutdown()


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    out = Path(options.out) if options.out else default_run_dir("evaluate")
    try:
        require_empty(out)
        plan = make_plan(options)
        other = make_other(plan)
        for each in (plan, other):
            if isinstance(each, Plan):
                check(each)
    except (ValueError, EndpointError) as error:
        print(f"Nothing was evaluated:\n{error}", file=sys.stderr)
        return REFUSED
    try:
        ours, theirs = run(plan, other)
    except EvaluationError as error:
        print(f"\nSTOPPED: {error}", file=sys.stderr)
        return STOPPED
    except (Exception, KeyboardInterrupt) as error:
        stop = stop_of(error)
        if stop is None:
            raise
        print(f"\nSTOPPED: {stop.cause}", file=sys.stderr)
        return stop.exit_code
    report = Report.of(ours, theirs, options.ks)
    print("\n".join(report.lines()))
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_json(out / EVALUATION, report.to_json())
    if isinstance(other, Plan) and theirs is not None:
        atomic_write_json(out / AGAINST, Report.of(theirs, None, options.ks).to_json())
    print(f"written: {', '.join(str(path) for path in sorted(out.glob('*.json')))}")
    return EVALUATED


if __name__ == "__main__":
    sys.exit(main())
