"""What a started run does: its gates, success before, the training loop, success after, the verdict."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from envs.registry import resolve_env
from recipes.evaluating import HeldOut
from recipes.stopping import FAIL, PASS, InterruptedRunError, StopRequest
from rl.breaker import Breaker
from rl.config import Config
from rl.console import RunConsole
from rl.gates import RATIO_LIMITS, StepGates, prove_engines
from rl.intervals import verdict
from rl.journal import Journal
from rl.metrics import Metrics
from rl.objective import Objective
from rl.run_dir import RunDir, RunState
from rl.sandbox_checks import sandbox_line
from rl.screens import EndFacts
from rl.train import TrainStep, train
from rl.weight_sync import WeightSync
from rl.workers import LearnerClient
from rollout.collector import Collector
from rollout.workers import RemoteRollouts


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of one run, built and started."""

    config: Config
    recipe: str
    take_step: TrainStep
    algorithm: Objective
    learner: LearnerClient
    collector: Collector[RemoteRollouts]
    sync: WeightSync
    console: RunConsole
    directory: RunDir
    journal: Journal
    request: StopRequest
    resumed: RunState  # NEW_RUN, or where it goes on


async def train_and_judge(run: Run, started: float) -> int:
    """Gates, measurement, training, measurement, verdict."""
    config, resumed = run.config, run.resumed
    if config.resume or not config.starts_from_its_model:  # engines start from the model alone
        await run.sync.publish(run.learner, run.collector, version=resumed.policy_version)
    if config.sabotage == "perturb_learner":
        await run.learner.perturb(1e-3, seed=0)
    before_sync, after_sync = await prove_engines(
        run.learner, run.collector, run.sync, num_groups=config.num_gap_groups, limit=config.gap_limit
    )
    run.console.show_gap(before_sync, after_sync, config.gap_limit)
    held_out = HeldOut(config=config, collector=run.collector, journal=run.journal, directory=run.directory)
    before = await held_out.before(resumed.before)
    run.console.say(f"success before training, on held-out tasks: {before}")
    gates = StepGates(
        gap_limit=config.gap_limit,
        ratio_limit=RATIO_LIMITS[config.learner_dtype],
        max_skipped_steps=1 if config.nonfinite_policy == "stop" else config.max_skipped_steps,
        incidents=str(run.directory.incidents),
        breaker=Breaker(max_error_rate=config.max_error_rate, error_window=config.error_window),
    )
    algorithm = run.algorithm.start()
    if config.resume:
        gates.restore(resumed.gates)
        algorithm = algorithm.restored(resumed.objective)

    async def after_step(step: int, metrics: Metrics, objective: Objective) -> bool:
        run.journal.step(step, metrics)
        is_spent = _is_spent(config, run.journal.num_sampled_tokens)
        if held_out.is_due(step) and not is_spent:
            success = await held_out.evaluate(step)
            run.console.say(f"success after step {step}, on held-out tasks: {success}")
        state = RunState(
            step=step,
            next_task_index=run.collector.cursor,
            policy_version=run.sync.version,
            num_optimizer_steps=step * config.num_minibatches,
            num_trained_tokens=run.journal.num_trained_tokens,
            num_sampled_tokens=run.journal.num_sampled_tokens,
            wall_s=resumed.wall_s + time.monotonic() - started,
            success_before=(before.rate.num_successes, before.rate.num_tasks),
            objective=objective.state(),
            gates=gates.state(),
            record_is_full=run.journal.record_is_full,
            tracker_ids=run.journal.tracker_ids,
            file_bytes=run.directory.file_bytes(),
            sandbox=sandbox_line(config),
            monitor=run.journal.monitor_state,
        )
        is_last = is_spent or step == config.num_steps
        if is_last or step % config.save_every == 0 or run.request.number:
            await run.learner.checkpoint(str(run.directory.checkpoint(step)), asdict(state))
            run.directory.prune_checkpoints(config.keep_checkpoints)
        run.directory.write_state(state)
        if run.request.number:
            raise InterruptedRunError(run.request.number)
        return is_spent

    run.request.can_save = True
    last_step = await train(
        run.collector,
        run.learner,
        algorithm,
        run.sync,
        run.journal.observe,
        take_step=run.take_step,
        num_steps=resumed.step if _is_spent(config, resumed.num_sampled_tokens) else config.num_steps,
        num_groups=config.num_groups,
        num_minibatches=config.num_minibatches,
        first_step=resumed.step + 1,
        gates=gates,
        after_step=after_step,
    )
    run.request.can_save = False
    if config.budget_tokens:
        run.console.say(_budget_line(config, last_step, run.journal.num_sampled_tokens))
    after = await held_out.evaluate(last_step)
    judged = verdict(before.rate, after.rate, config.min_gain)
    checkpoint = run.directory.checkpoint(last_step)
    run.console.show_end(
        EndFacts(
            before=before.rate,
            after=after.rate,
            num_unscored=(before.num_unscored, after.num_unscored),
            verdict=judged,
            wall_s=resumed.wall_s + time.monotonic() - started,
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


def _is_spent(config: Config, num_sampled: int) -> bool:
    """Whether the budget of tokens ends training here; never without one."""
    return 0 < config.budget_tokens <= num_sampled


def _budget_line(config: Config, last_step: int, num_sampled: int) -> str:
    """What came of the budget of tokens."""
    if num_sampled >= config.budget_tokens:
        spent = f"budget_tokens = {config.budget_tokens:,} spent: {num_sampled:,} tokens sampled"
        return f"{spent} in {last_step} of {config.num_steps} steps"
    return (
        f"WARNING: budget_tokens = {config.budget_tokens:,} was not reached: num_steps = {config.num_steps} "
        f"ended training after {num_sampled:,} sampled tokens; raise num_steps"
    )


DEFAULT = (Config.env, Config.level)
"""What needs no --env."""


def _next_commands(config: Config, recipe: str, checkpoint: Path) -> list[str]:
    command = f"python -m recipes.{recipe}"
    named = f" --env {config.env}:{config.level}" if (config.env, config.level) != DEFAULT else ""
    harder = (level for level in resolve_env(config.env).levels if level > config.level)
    trained = os.path.relpath(checkpoint)
    whole = f"--model {trained}"
    held = "" if config.lora_base == "full" else f" --lora.base {config.lora_base}"
    beside = f"--model {config.model} --lora.adapter {trained}{held}"
    policy = beside if config.trains_adapter else whole
    onward = f"{config.env}:{min(harder, default=config.level)}"
    return [
        f"{command}{named} --seed {config.seed + 1}",
        f"{command} --help",
        f"python -m recipes.calc_grpo {policy} --env {onward}",
    ]
