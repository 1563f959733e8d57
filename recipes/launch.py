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
from itertools import chain
from pathlib import Path

import ray

from envs.base import WorldError
from envs.registry import resolve_env
from recipes.cli import refuse
from recipes.leftovers import keep_logs
from recipes.placement import (
    make_learner,
    make_learner_spec,
    make_rollouts,
    start_facts,
    start_ray,
    transfer_of,
)
from recipes.stopping import INTERRUPTED, REFUSALS, STOPPED, StopRequest, run_interruptibly, stop_of
from recipes.training import Run, train_and_judge
from rewards.base import resolve_reward
from rl.checkpoint import checkpoints_of
from rl.config import Config
from rl.console import RunConsole
from rl.defaults import resolve
from rl.journal import Journal
from rl.learner import Learner
from rl.lora import fit_problems, with_targets
from rl.machine import Machine
from rl.objective import Objective
from rl.preflight import preflight
from rl.resume import (
    Resume,
    changed_manifest,
    changed_settings,
    find_resume,
    recorded_config,
    require_unchanged,
)
from rl.run_dir import NEW_RUN, RunDir, default_run_dir, run_manifest
from rl.run_lock import require_usable
from rl.tracking import Trackers, start_trackers
from rl.train import TrainStep, train_step
from rl.validation import ConfigError
from rl.weight_sync import WeightSync
from rollout.collector import Collector, CollectorSpec
from rollout.failures import world_cause
from rollout.task_stream import TaskStream
from rollout.tokenizer import load_tokenizer
from rollout.workers import RemoteRollouts


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a recipe trains: what one step does, and the learner that it asks.

    `skip` tells a step with a place of its own (rl/supervised.py) how many steps a resumed run has behind it.
    """

    take_step: TrainStep = train_step
    learner: type[Learner] = Learner
    skip: Callable[[int], None] = lambda num_steps: None


POLICY_GRADIENT = Method()

MakePolicy = Callable[[Config], Path]
"""From a configuration to the folder of a model that it does not name."""


def launch(
    config: Config,
    *,
    recipe: str,
    make_base: MakePolicy,
    make_teacher: MakePolicy | None = None,
    method: Method = POLICY_GRADIENT,
) -> int:
    """Run `config` to its verdict; returns the exit code.

    `config` is validated already (recipes/cli.py). `make_base` gives the starting policy where the
    configuration names no model, `make_teacher` the teacher where the algorithm needs one and none is named.
    """
    started = time.monotonic()
    machine = Machine.here()
    try:
        if config.resume:
            config, directory, resume = _reopen(resolve(config, machine), machine)
        else:
            resolved = resolve(config, machine)
            config, directory = _prepare(resolved, machine, recipe, make_base, make_teacher)
            resume = None
    except REFUSALS as error:
        return refuse(error)
    except (OSError, WorldError) as error:
        if world_cause(error) is None:
            raise
        return refuse(error)
    except KeyboardInterrupt:
        print("\nThis run was not started: interrupted", file=sys.stderr)
        return INTERRUPTED
    resumed = NEW_RUN if resume is None else resume.state
    with (
        directory,
        RunConsole(config.num_steps) as console,
        start_trackers(config, directory, console.say, resumed) as trackers,
    ):
        try:
            start_ray(config)
            request = StopRequest()
            work = _run(
                config, recipe, method, machine, directory, console, started, request, resume, trackers
            )
            code = run_interruptibly(work, request)
            trackers.has_finished = True
            return code
        except (Exception, KeyboardInterrupt) as error:
            console.close()
            stop = stop_of(error)
            if stop is None:
                keep_logs()
                raise
            print(f"\nSTOPPED: {stop.cause}\nThe run directory is kept: {directory.path}", file=sys.stderr)
            if stop.exit_code == STOPPED and (folder := keep_logs()):
                print(f"The logs of its processes are kept: {folder}", file=sys.stderr)
            if checkpoints_of(directory.checkpoints):
                path = os.path.relpath(directory.path)
                print(f"Go on with: python -m recipes.{recipe} --resume {path}", file=sys.stderr)
            return stop.exit_code
        finally:
            ray.shutdown()


def _prepare(
    config: Config, machine: Machine, recipe: str, make_base: MakePolicy, make_teacher: MakePolicy | None
) -> tuple[Config, RunDir]:
    """The configuration with its model, and its run directory: made last, when nothing can be refused."""
    # deepspeed, where it is installed, looks for a GPU when transformers imports it, and complains of none.
    os.environ.setdefault("DS_ACCELERATOR", config.device)
    run_path = Path(config.run_dir) if config.run_dir else default_run_dir(recipe)
    require_usable(run_path)
    if config.make_algorithm().loads_teacher and not config.teacher:
        if make_teacher is None:
            raise ConfigError(
                f"algorithm {config.algorithm!r} learns from a teacher: name one with --teacher, or run "
                "recipes.calc_distill, which makes one"
            )
        config = replace(config, teacher=str(make_teacher(config)))
    config = with_targets(replace(config, model=config.model or str(make_base(config))))
    preflight(config, machine, run_path)
    directory = RunDir(run_path)
    directory.write_config(config)
    directory.write_manifest(config, machine)
    return config, directory


def _reopen(config: Config, machine: Machine) -> tuple[Config, RunDir, Resume]:
    """The run directory of an interrupted run, and the checkpoint that it goes on from.

    The settings were compared when they were read (recipes/cli.py).
    """
    os.environ.setdefault("DS_ACCELERATOR", config.device)
    directory = RunDir(Path(config.resume), resumed=True)
    try:
        recorded, now = directory.read_manifest(), run_manifest(config, machine)
        settings = changed_settings(recorded_config(Path(config.resume), type(config)), config)
        changes = chain(settings, changed_manifest(recorded, now))
        forced = require_unchanged(changes, forced=config.force_resume)
        if problems := list(fit_problems(config)):  # a resume may bring another backend
            raise ConfigError("\n".join(problems))
        resume, problems = find_resume(directory)
        directory.set_aside(resume.state.step)
        directory.go_back(resume.state.file_bytes)
    except BaseException:
        directory.close()
        raise
    for line in (*problems, *forced):
        print(f"WARNING: {line}", file=sys.stderr)
    print(f"resumed after step {resume.state.step} from {resume.checkpoint}", file=sys.stderr)
    directory.note_resume(resume.state.step, forced)
    if forced:
        directory.write_forced(config, machine)
    return config, directory, resume


async def _run(
    config: Config,
    recipe: str,
    method: Method,
    machine: Machine,
    directory: RunDir,
    console: RunConsole,
    started: float,
    request: StopRequest,
    resume: Resume | None,
    trackers: Trackers,
) -> int:
    resumed = NEW_RUN if resume is None else resume.state
    algorithm = config.make_algorithm()
    tokenizer = load_tokenizer(config.model)
    learner_spec = make_learner_spec(
        config, algorithm, run_name=directory.path.name, incidents=str(directory.incidents)
    )
    engines = make_rollouts(config)
    learner = make_learner(config, learner_spec, method.learner)
    try:
        starts = asyncio.gather(*(engine.start() for engine in engines))
        facts, _ = await asyncio.gather(learner.start(), starts)
        if resume is not None:
            await learner.resume(str(resume.checkpoint))
            method.skip(resumed.step)
        console.show_start(start_facts(config, machine, facts, directory))
        journal = Journal(
            directory,
            config,
            console,
            decode=lambda ids: tokenizer.decode(list(ids)),
            resumed=resumed,
            trackers=trackers,
        )
        run = Run(
            config=config,
            recipe=recipe,
            take_step=method.take_step,
            algorithm=algorithm,
            learner=learner,
            collector=_make_collector(config, algorithm, engines),
            sync=WeightSync(
                canaries=_canaries(config, len(tokenizer)),
                gap_limit=config.gap_limit,
                engine_dtype=config.engine_dtype,
                drill="" if config.sabotage == "perturb_learner" else config.sabotage,
                transfer=transfer_of(config),
            ),
            console=console,
            directory=directory,
            journal=journal,
            request=request,
            resumed=resumed,
        )
        run.sync.version = resumed.policy_version
        run.collector.cursor, run.collector.step = resumed.next_task_index, resumed.step
        await run.sync.connect(learner, run.collector)
        return await train_and_judge(run, started)
    finally:
        await asyncio.gather(learner.stop(), *(e.stop() for e in engines), return_exceptions=True)


def _make_collector(
    config: Config, algorithm: Objective, engines: list[RemoteRollouts]
) -> Collector[RemoteRollouts]:
    return Collector(
        TaskStream(env=config.env, level=config.level, run_seed=config.seed, num_tasks=config.num_tasks),
        engines,
        CollectorSpec(
            group_size=config.group_size,
            temperature=config.temperature,
            filters=config.filters,
            run_seed=config.seed,
            dynamic_sampling=algorithm.dynamic_sampling,
            min_group=algorithm.least_group,
            max_draws_per_group=config.max_draws_per_group,
            at_max_draws=config.at_max_draws,
            shuffle_rewards=resolve_reward(config.reward, resolve_env(config.env)).shuffled,
            max_staleness=config.max_staleness,
            max_groups_per_runner=max(1, config.num_concurrent // config.group_size),
            deadline_s=config.group_deadline_s,
            exact=config.determinism == "exact",
        ),
    )


def _canaries(config: Config, vocabulary_size: int) -> list[list[int]]:
    """Fixed random token sequences: they exercise every embedding and position alike, solved tasks do not."""
    rng = random.Random(0)
    return [
        [rng.randrange(vocabulary_size) for _ in range(config.canary_tokens)]
        for _ in range(config.num_canaries)
    ]
