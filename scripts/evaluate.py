"""Evaluate a policy on held-out tasks: unbiased pass@k and avg@n, with intervals over tasks.

    python -m scripts.evaluate --model runs/NAME --num-tasks 256      # as the run evaluated itself at its end
    python -m scripts.evaluate --model MODEL --env calc:1 calc:2 --num-tasks 512 --k 1,4,16 --against OTHER
    python -m scripts.evaluate --model MODEL --adapters runs/A other=FOLDER --env calc:1   # on one engine
    python -m scripts.evaluate --endpoint http://localhost:8000/v1 --endpoint-model NAME --env calc:2

Every task and every random stream is a pure function of (seed, task, sample), so two policies meet the same
ones. The samples of a task are one observation, and an episode that could not be scored counts as not solved
and is told. Written to --out: evaluation.json, which a later --against takes, and every episode, which
scripts.view shows. Exit code 0: evaluated; 2: refused before it began; 3: an engine or the endpoint failed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import tyro

from envs.endpoint import ChatEndpoint, EndpointError
from recipes.placement import make_engine_specs, make_rollouts, start_ray
from recipes.stopping import STOPPED, run_interruptibly, stop_of
from rewards.base import default_workers, resolve_reward
from rl.evaluation import Evaluation, EvaluationError, count_errors, outcome_of
from rl.machine import source_commit, stack_versions
from rl.run_dir import default_run_dir
from rollout.chat_endpoint import EndpointRollouts
from rollout.collector import Collector, CollectorSpec, GroupRequest
from rollout.engine_spec import BASE
from rollout.failures import PeerFailedError
from rollout.limits import Limits
from rollout.task_stream import TaskStream
from rollout.trajectory import Trajectory, TrajectoryGroup
from scripts._evaluate_adapters import with_room
from scripts._evaluate_options import Options, spread
from scripts._evaluate_plan import Plan, check, make_other, make_plan, make_plans
from scripts._evaluate_record import Sampled, write, write_with_adapters
from scripts._evaluate_report import Comparison, Report
from scripts._evaluated import LIMITS, Cell, by_limits, endpoint_spec

NUM_CONCURRENT_OF_ENDPOINT = 16
REFUSED, EVALUATED = 2, 0


async def with_engines(plans: Sequence[Plan], cells: Sequence[Cell]) -> list[list[list[TrajectoryGroup]]]:
    """For each plan the groups of each cell, all of one environment and limit.

    The plans are of one model: alone, and with adapters that its engines hold, which play at once.
    """
    config = plans[0].config(cells[0])
    adapters = [plan.adapter for plan in plans if plan.adapter]
    engines = make_rollouts(config, with_room(make_engine_specs(config), adapters))
    try:
        await asyncio.gather(*(engine.start() for engine in engines))
        for each in adapters:
            loads = (engine.receive_adapter(each.manifest, name=each.name) for engine in engines)
            await asyncio.gather(*loads)
        num_concurrent = config.num_concurrent // len(plans)
        return await asyncio.gather(*(collect(plan, cells, engines, num_concurrent) for plan in plans))
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines), return_exceptions=True)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Runs the groups of `rollouts` (a GroupRunner), each within `deadline_s` seconds, as an engine does."""

    rollouts: EndpointRollouts
    deadline_s: float

    async def run_group(self, request: GroupRequest) -> TrajectoryGroup:
        """Run one group to its end. Raises PeerFailedError: it did not come to one in time."""
        deadline = asyncio.timeout(self.deadline_s)
        try:
            async with deadline:
                return await self.rollouts.run_group(request)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise PeerFailedError(
                f"the evaluation waited {self.deadline_s:g} s (--group-deadline-s) for group {request.index} "
                f"of endpoint {self.rollouts.endpoint.spec.url}, which came to no end"
            ) from None


async def collect(
    plan: Plan, cells: Sequence[Cell], runners: Sequence[Any], num_concurrent: int
) -> list[list[TrajectoryGroup]]:
    """The groups of each cell, a cell at a time, so that one has the same samples alone and among others.

    A runner gives each group its own deadline, from the moment that it is begun, and the first that is late
    ends the evaluation: what hangs is noticed after one deadline, not after one for every round.
    """
    num_groups = max(1, num_concurrent // plan.options.num_samples)
    num_rounds = -(-plan.options.num_tasks // (num_groups * len(runners)))
    spec = CollectorSpec(
        group_size=plan.options.num_samples,
        max_groups_per_runner=num_groups,
        # Never reached: one group after another may take its whole deadline, and the runners hold them to it.
        deadline_s=plan.options.group_deadline_s * num_rounds,
    )
    stream = TaskStream(env=cells[0].spec, level=cells[0].level, run_seed=plan.settings["seed"])
    collector = Collector(stream, runners, spec)
    collected = []
    for cell in cells:
        whose = f"{plan.adapter.name}, " if plan.adapter else ""
        print(f"{whose}{cell.name}: {len(cell.tasks)} tasks ...", file=sys.stderr, flush=True)
        collected.append(
            await collector.evaluate(
                cell.tasks,
                temperature=plan.settings["eval_temperature"],
                num_samples=plan.options.num_samples,
                filters=plan.filters,
                adapter=plan.adapter.name if plan.adapter else BASE,
            )
        )
    return collected


async def with_endpoint(plans: Sequence[Plan], cells: Sequence[Cell]) -> list[list[list[TrajectoryGroup]]]:
    """As with_engines, of the one plan of an endpoint."""
    (plan,) = plans
    endpoint = ChatEndpoint(endpoint_spec(plan.options))
    definition = cells[0].definition
    reward = resolve_reward(
        cells[0].reward,
        definition,
        num_workers=default_workers(os.cpu_count() or 1),
        python=cells[0].reward_python,
    )
    try:
        rollouts = EndpointRollouts(
            endpoint=endpoint,
            definition=definition,
            reward=reward,
            limits=replace(
                Limits(**{name: plan.settings[name] for name in LIMITS}), max_turns=cells[0].max_turns
            ),
            run_seed=plan.settings["seed"],
        )
        num_concurrent = plan.options.num_concurrent or NUM_CONCURRENT_OF_ENDPOINT
        timed = Timed(rollouts=rollouts, deadline_s=plan.options.group_deadline_s)
        return [await collect(plan, cells, [timed], num_concurrent)]
    finally:
        await asyncio.gather(reward.close(), endpoint.close())


async def evaluate(plans: Sequence[Plan]) -> list[Sampled]:
    """Every cell sampled and scored by the policy of each plan; they differ in their adapters alone."""
    sample = with_engines if plans[0].source else with_endpoint
    cells, groups = [], [[] for _ in plans]
    for together in by_limits(plans[0].cells):
        cells += together
        for found, more in zip(groups, await sample(plans, together), strict=True):
            found += more
    return [judged(plan, cells, found) for plan, found in zip(plans, groups, strict=True)]


def judged(plan: Plan, cells: Sequence[Cell], groups: Sequence[Sequence[TrajectoryGroup]]) -> Sampled:
    """What the groups of each cell say of the plan's policy, which in one version must have sampled all."""
    outcomes = []
    for cell, of_cell in zip(cells, groups, strict=True):
        outcomes += [outcome_of(group, cell.definition.name, cell.level) for group in of_cell]
        require_success(cell, [trajectory for group in of_cell for trajectory in group.trajectories])
    all_groups = [group for of_cell in groups for group in of_cell]
    trajectories = [trajectory for group in all_groups for trajectory in group.trajectories]
    spans = (span for t in trajectories for turn in t.turns for span in turn.completion.version_spans)
    versions = {span.version for span in spans}
    if versions - {plan.version}:
        raise RuntimeError(f"version {plan.version} was to be evaluated and {sorted(versions)} have sampled")
    evaluation = Evaluation(
        policy=plan.recorded_policy(),
        settings=plan.recorded_settings(),
        versions=versions_here(),
        outcomes=tuple(outcomes),
        errors=count_errors(trajectories),
    )
    return Sampled(evaluation=evaluation, groups=all_groups)


def require_success(cell: Cell, trajectories: Sequence[Trajectory]) -> None:
    """Raise EvaluationError where the reward never says what a success is: all would count as not solved."""
    scores = [t.score for t in trajectories if t.score.value is not None]
    if scores and all(score.success is None for score in scores):
        raise EvaluationError(
            f"{cell.name}: the reward gives no Score.success, which is what is counted; name another --reward"
        )


def versions_here() -> dict[str, str]:
    """The versions of the stack, and the commit of this code where it is a checkout."""
    source = source_commit(Path(__file__).resolve().parent.parent)
    commit = {} if source is None else {"commit": source.commit + (" (changed)" if source.dirty else "")}
    return stack_versions() | commit


def warn(plan: Plan) -> None:
    """Say which checkpoints of the run are damaged."""
    for warning in plan.warnings:
        print(f"WARNING: {warning}", file=sys.stderr)


def require_empty(out: Path) -> None:
    """Raise EvaluationError where `out` holds something: no result is ever overwritten."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EvaluationError(f"--out {out} is not empty; give a new or an empty folder")


async def evaluate_all(plans: Sequence[Sequence[Plan]]) -> list[Sampled]:
    return [sampled for together in plans for sampled in await evaluate(together)]


def run(plans: Sequence[Sequence[Plan]]) -> list[Sampled]:
    """All evaluations, those that share engines together, on a Ray of their own if there are engines."""
    of_engines = [together[0] for together in plans if together[0].source]
    try:
        if of_engines:
            start_ray(of_engines[0].config(plans[0][0].cells[0]))
        return run_interruptibly(evaluate_all(plans))
    finally:
        ray.shutdown()


def main() -> int:
    options = tyro.cli(Options, args=spread(sys.argv[1:]), description=__doc__)
    out = Path(options.out) if options.out else default_run_dir("evaluate")
    try:
        require_empty(out)
        plans = make_plans(make_plan(options))
        other = make_other(plans[0])
        check(plans[0])
        if isinstance(other, Plan):
            check(other)
        for each in (*plans, other):
            if isinstance(each, Plan):
                warn(each)
    except (ValueError, EndpointError) as error:
        print(f"Nothing was evaluated:\n{error}", file=sys.stderr)
        return REFUSED
    try:
        ours, *more = run([plans, [other]] if isinstance(other, Plan) else [plans])
    except EvaluationError as error:
        print(f"\nSTOPPED: {error}", file=sys.stderr)
        return STOPPED
    except (Exception, KeyboardInterrupt) as error:
        stop = stop_of(error)
        if stop is None:
            raise
        print(f"\nSTOPPED: {stop.cause}", file=sys.stderr)
        return stop.exit_code
    if options.adapters:
        comparison = Comparison([each.evaluation for each in (ours, *more)], options.ks)
        print("\n".join(comparison.lines()))
        shown = write_with_adapters(out, [ours, *more], comparison)
    else:
        theirs = more[0].evaluation if more else other
        assert not isinstance(theirs, Plan)  # a plan was sampled
        report = Report.of(ours.evaluation, theirs, options.ks)
        print("\n".join(report.lines()))
        shown = write(out, ours, report, against=more)
    print(f"written: {', '.join(str(path) for path in sorted(out.glob('*.json*')))}")
    print(f"the episodes: python -m scripts.view {' '.join(map(str, shown))}")
    return EVALUATED


if __name__ == "__main__":
    sys.exit(main())
