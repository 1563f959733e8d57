"""What a started run does: its gates, success before, the training loop, success after, the verdict."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from envs.splits import Split
from recipes.stopping import FAIL, PASS
from rl.config import Config
from rl.console import RunConsole
from rl.gates import RATIO_LIMITS, StepGates, prove_engines
from rl.intervals import SuccessRate, verdict
from rl.journal import Journal
from rl.metrics import Metrics
from rl.objective import Objective
from rl.run_dir import RunDir, RunState
from rl.screens import EndFacts
from rl.train import TrainStep, train
from rl.weight_sync import WeightSync
from rl.workers import RemoteLearner
from rollout.collector import Collector
from rollout.task_stream import TaskStream
from rollout.trajectory import TrajectoryGroup
from rollout.workers import RemoteRollouts


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of one run, built and started."""

    config: Config
    recipe: str
    take_step: TrainStep
    algorithm: Objective
    learner: RemoteLearner
    collector: Collector[RemoteRollouts]
    sync: WeightSync
    console: RunConsole
    directory: RunDir
    journal: Journal


async def train_and_judge(run: Run, started: float) -> int:
    """Gates, measurement, training, measurement, verdict."""
    config = run.config
    if config.sabotage == "perturb_learner":
        await run.learner.perturb(1e-3, seed=0)
    before_sync, after_sync = await prove_engines(
        run.learner, run.collector, run.sync, num_groups=config.num_gap_groups, limit=config.gap_limit
    )
    run.console.show_gap(before_sync, after_sync, config.gap_limit)
    before = await _success(run, step=0)
    run.console.say(f"success before training, on held-out tasks: {before}")

    async def after_step(step: int, metrics: Metrics) -> None:
        run.journal.step(step, metrics)
        state = RunState(
            step=step,
            next_task_index=run.collector.cursor,
            policy_version=run.sync.version,
            num_optimizer_steps=step * config.num_minibatches,
            num_trained_tokens=run.journal.num_trained_tokens,
            wall_s=time.monotonic() - started,
        )
        if step == config.num_steps or (config.save_every and step % config.save_every == 0):
            await run.learner.save(str(run.directory.checkpoint(step)))
        run.directory.write_state(state)

    await train(
        run.collector,
        run.learner,
        run.algorithm,
        run.sync,
        run.journal.observe,
        take_step=run.take_step,
        num_steps=config.num_steps,
        num_groups=config.num_groups,
        num_minibatches=config.num_minibatches,
        gates=StepGates(
            gap_limit=config.gap_limit,
            ratio_limit=RATIO_LIMITS[config.learner_dtype],
            max_skipped_steps=1 if config.nonfinite_policy == "stop" else config.max_skipped_steps,
            incidents=str(run.directory.incidents),
        ),
        after_step=after_step,
    )
    after = await _success(run, step=config.num_steps)
    judged = verdict(before, after, config.min_gain)
    checkpoint = run.directory.checkpoint(config.num_steps)
    run.console.show_end(
        EndFacts(
            before=before,
            after=after,
            verdict=judged,
            wall_s=time.monotonic() - started,
            paths={
                "policy": str(checkpoint),
                "metrics": str(run.directory.path / "metrics.jsonl"),
                "trajectories": str(run.directory.trajectories),
            },
            next_commands=_next_commands(config, run.recipe, checkpoint),
        )
    )
    if config.smoke:
        run.console.say("SMOKE RUN SOUND: every check held; it is too short for its verdict to count")
        return PASS
    return PASS if judged.passed else FAIL


async def _success(run: Run, *, step: int) -> SuccessRate:
    """Success on the held-out tasks; an episode that could not be scored counts as not solved."""
    config = run.config
    stream = TaskStream(env=config.env, level=config.level, run_seed=config.seed, split=Split.HELD_OUT)
    groups: list[TrajectoryGroup] = await run.collector.evaluate(
        stream.slice(0, config.eval_tasks), temperature=config.eval_temperature
    )
    run.journal.record_evaluation(step, groups)
    solved = sum((t.score.success or 0.0) >= 1.0 for group in groups for t in group.trajectories)
    return SuccessRate(solved, config.eval_tasks)


def _next_commands(config: Config, recipe: str, checkpoint: Path) -> list[str]:
    command = f"python -m recipes.{recipe}"
    named = f" --env {config.env}:{config.level}" if config.env != Config.env else ""
    harder = f"--env {config.env}:{config.level + 1}"
    return [
        f"{command}{named} --seed {config.seed + 1}",
        f"{command} --help",
        f"python -m recipes.calc_grpo --model {os.path.relpath(checkpoint)} {harder}",
    ]
