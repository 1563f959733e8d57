"""From a Config to a finished run: the processes, the gates, the loop, the verdict.

Every recipe ends in `launch`.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from envs.registry import resolve_env
from envs.splits import Split
from recipes.cli import refuse
from recipes.placement import CHANNELS, make_engine_specs, make_learner_spec, start_facts, start_ray
from recipes.stopping import FAIL, INTERRUPTED, PASS, REFUSALS, run_interruptibly, stop_of
from rewards.base import resolve_reward
from rl.config import Config, resolve
from rl.console import RunConsole
from rl.gates import StepGates, prove_engines
from rl.intervals import SuccessRate, verdict
from rl.journal import Journal
from rl.machine import Machine
from rl.metrics import Metrics
from rl.policy_gradient import PolicyGradient
from rl.preflight import preflight
from rl.run_dir import RunDir, RunState, default_run_dir, require_usable
from rl.screens import EndFacts
from rl.train import train
from rl.validation import algorithm_of
from rl.weight_sync import WeightSync
from rl.workers import RemoteLearner
from rollout.collector import Collector, CollectorSpec
from rollout.limits import Limits
from rollout.task_stream import TaskStream
from rollout.tokenizer import load_tokenizer
from rollout.trajectory import TrajectoryGroup
from rollout.workers import RemoteRollouts, RolloutSpec


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of one run, built and started."""

    config: Config
    algorithm: PolicyGradient
    learner: RemoteLearner
    collector: Collector[RemoteRollouts]
    sync: WeightSync
    console: RunConsole
    directory: RunDir
    journal: Journal


def launch(config: Config, *, recipe: str, make_base: Callable[[Config], Path]) -> int:
    """Run `config` to its verdict; returns the exit code.

    `config` is validated already (recipes/cli.py). `make_base` gives the starting policy where the
    configuration names no model.
    """
    started = time.monotonic()
    machine = Machine.here()
    try:
        config, directory = _prepare(resolve(config, machine), machine, recipe, make_base)
    except REFUSALS as error:
        return refuse(error)
    except KeyboardInterrupt:
        print("\nThis run was not started: interrupted", file=sys.stderr)
        return INTERRUPTED
    with directory, RunConsole(config.num_steps) as console:
        try:
            start_ray(config)
            return run_interruptibly(_run(config, machine, directory, console, started))
        except (Exception, KeyboardInterrupt) as error:
            console.close()
            stop = stop_of(error)
            if stop is None:
                raise
            print(f"\nSTOPPED: {stop.cause}\nThe run directory is kept: {directory.path}", file=sys.stderr)
            return stop.exit_code
        finally:
            ray.shutdown()


def _prepare(
    config: Config, machine: Machine, recipe: str, make_base: Callable[[Config], Path]
) -> tuple[Config, RunDir]:
    """The configuration with its model, and its run directory: made last, when nothing can be refused."""
    # deepspeed, where it is installed, looks for a GPU when transformers imports it, and complains of none.
    os.environ.setdefault("DS_ACCELERATOR", config.device)
    run_path = Path(config.run_dir) if config.run_dir else default_run_dir(recipe)
    require_usable(run_path)
    config = replace(config, model=config.model or str(make_base(config)))
    preflight(config, machine, run_path)
    directory = RunDir(run_path)
    directory.write_config(config)
    directory.write_manifest(config, machine)
    return config, directory


async def _run(
    config: Config, machine: Machine, directory: RunDir, console: RunConsole, started: float
) -> int:
    algorithm = algorithm_of(config)
    tokenizer = load_tokenizer(config.model)
    learner_spec = make_learner_spec(config, algorithm, run_name=directory.path.name)
    engines = [
        RemoteRollouts(
            RolloutSpec(
                engine=spec,
                env=config.env,
                reward=config.reward,
                limits=Limits(
                    max_turns=config.max_turns,
                    max_turn_tokens=config.max_turn_tokens,
                    max_total_tokens=config.max_total_tokens,
                    max_tool_calls=config.max_tool_calls,
                    max_wall_s=config.max_wall_s,
                ),
                run_seed=config.seed,
            ),
            start_s=config.engine_start_s,
            group_s=config.group_deadline_s,
            sync_s=config.sync_deadline_s,
        )
        for spec in make_engine_specs(config)
    ]
    learner = RemoteLearner(learner_spec, deadline_s=config.learner_deadline_s, sync_s=config.sync_deadline_s)
    try:
        starts = asyncio.gather(*(engine.start() for engine in engines))
        facts, _ = await asyncio.gather(learner.start(), starts)
        console.show_start(start_facts(config, machine, facts, directory))
        journal = Journal(directory, config, console, decode=lambda ids: tokenizer.decode(list(ids)))
        run = Run(
            config=config,
            algorithm=algorithm,
            learner=learner,
            collector=_make_collector(config, algorithm, engines),
            sync=WeightSync(
                canaries=_canaries(config, len(tokenizer)),
                gap_limit=config.gap_limit,
                engine_dtype=config.engine_dtype,
                drill="" if config.sabotage == "perturb_learner" else config.sabotage,
                transfer=CHANNELS[config.sync_backend].transfer,
            ),
            console=console,
            directory=directory,
            journal=journal,
        )
        await run.sync.connect(learner, run.collector)
        return await _train_and_judge(run, started)
    finally:
        await asyncio.gather(learner.stop(), *(e.stop() for e in engines), return_exceptions=True)


def _make_collector(
    config: Config, algorithm: PolicyGradient, engines: list[RemoteRollouts]
) -> Collector[RemoteRollouts]:
    return Collector(
        TaskStream(env=config.env, level=config.level, run_seed=config.seed),
        engines,
        CollectorSpec(
            group_size=config.group_size,
            temperature=config.temperature,
            run_seed=config.seed,
            drop_uniform_groups=algorithm.drop_uniform_groups,
            shuffle_rewards=resolve_reward(config.reward, resolve_env(config.env)).shuffled,
            max_staleness=config.max_staleness,
            max_groups_per_runner=max(1, config.num_concurrent // config.group_size),
            deadline_s=config.group_deadline_s,
        ),
    )


async def _train_and_judge(run: Run, started: float) -> int:
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
        num_steps=config.num_steps,
        num_groups=config.num_groups,
        num_minibatches=config.num_minibatches,
        gates=StepGates(gap_limit=config.gap_limit),
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
            next_commands=_next_commands(config, checkpoint),
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


def _canaries(config: Config, vocabulary_size: int) -> list[list[int]]:
    """Fixed random token sequences: they exercise every embedding and position alike, solved tasks do not."""
    rng = random.Random(0)
    return [
        [rng.randrange(vocabulary_size) for _ in range(config.canary_tokens)]
        for _ in range(config.num_canaries)
    ]


def _next_commands(config: Config, checkpoint: Path) -> list[str]:
    recipe = "python -m recipes.calc_grpo"
    return [
        f"{recipe} --seed {config.seed + 1}",
        f"{recipe} --algorithm {'rloo' if config.algorithm != 'rloo' else 'grpo'}",
        f"{recipe} --model {os.path.relpath(checkpoint)} --level {config.level + 1}",
    ]
