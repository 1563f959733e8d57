"""What scripts/evaluate.py evaluates: the policy that --model names, the tasks, and how they are sampled."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from envs.endpoint import EndpointSpec
from envs.messages import Task
from envs.registry import EnvDefinition, resolve_env, split_level
from envs.splits import Split
from rewards.base import check_reward
from rl.checkpoint import HASHES, CheckpointError, checkpoints_of, newest_sound, verify
from rl.config import Config
from rl.defaults import resolve
from rl.evaluation import EvaluationError
from rl.machine import Machine
from rl.model import model_facts
from rl.model_folder import HUB_ID
from rl.preflight import model_problems, prompt_problems, reward_model_problems
from rl.reward_checks import judge_problems
from rl.validation import ConfigError, validate
from rollout.limits import Limits
from rollout.renderer import ChatMLRenderer
from rollout.task_stream import TaskStream
from rollout.tokenizer import load_tokenizer
from scripts._evaluate_options import Options

LIMITS = ("max_turns", "max_turn_tokens", "max_total_tokens", "max_tool_calls", "max_wall_s")
FROM_RUN = ("seed", "eval_temperature", "engine_dtype", "context_length", *LIMITS)
"""Settings that a run passes on to its evaluation; env, level and reward besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A policy to evaluate: `model` is a folder or hub id, `run` the settings of its run, if it is of one."""

    name: str  # as it was given
    model: str
    run: Mapping[str, Any]
    step: int | None = None
    digest: str | None = None  # of its weights, where they are files here
    adapter: str = ""  # folder of the adapter that `model` was merged from
    warnings: Sequence[str] = ()  # what is damaged: newer checkpoints, or the checkpoint that was named

    def facts(self) -> dict[str, Any]:
        """What evaluation.json says of the policy; of a hub id the commit that was loaded."""
        facts = {"name": self.name, "model": self.adapter or self.model, "step": self.step}
        return {**facts, "weights_blake2b": self.digest, "revision": hub_commit(self.model)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The held-out tasks of one environment and level. `spec` names the environment, `reward` its reward,
    which runs under `reward_python`.

    `max_turns` is the setting's, or what the level takes where that is more and none was given.
    """

    spec: str
    definition: EnvDefinition
    level: int
    reward: str
    reward_python: str
    max_turns: int
    tasks: Sequence[Task]

    @property
    def name(self) -> str:
        return f"{self.definition.name}:{self.level}"


def find_policy(name: str) -> Source:
    """The policy that `name` stands for; of the directory of a run its newest sound checkpoint.

    The weights' digest is taken here: a run that goes on may have pruned the checkpoint when all is sampled.

    Raises:
        EvaluationError: a run without a checkpoint or with damaged ones alone, or with settings that are not
            those of a run.
    """
    folder = Path(name).expanduser()
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir():
        return Source(
            name=name, model=name, run={}, digest=weights_digest(folder), warnings=_damage_of(folder)
        )
    if not checkpoints_of(checkpoints):
        raise EvaluationError(
            f"{name} is a run without a checkpoint yet; wait for one (--save-every), or evaluate its model"
        )
    run = _run_settings(folder / "config.json")
    try:
        saved, problems = newest_sound(checkpoints)
        digest = weights_digest(saved) if saved else None
    except OSError as error:
        raise EvaluationError(
            f"{name}: a checkpoint went while it was read ({error}); the run goes on and keeps its newest. "
            "Try again"
        ) from error
    if saved is None:
        raise EvaluationError("\n".join([f"{name} is a run without a sound checkpoint:", *problems]))
    step = int(saved.name.removeprefix("step_"))
    return Source(name=name, model=str(saved), run=run, step=step, digest=digest, warnings=tuple(problems))


def _damage_of(folder: Path) -> tuple[str, ...]:
    """What is wrong with `folder` by its own hashes; nothing where it has none, as no checkpoint of a run."""
    try:
        if (folder / HASHES).is_file():
            verify(folder)
    except CheckpointError as error:
        return (str(error),)
    return ()


def _run_settings(path: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} is no configuration of a run that can be read: {error}") from error
    missing = [name for name in ("env", "level", "reward", *FROM_RUN) if name not in settings]
    if missing:
        raise EvaluationError(f"{path} has no {missing[0]}: not a run's, or of another version of whetstone")
    return settings


def weights_digest(folder: Path) -> str | None:
    """BLAKE2b of the names and bytes of a model folder's weights; None where there is no such folder."""
    if not folder.is_dir():
        return None
    digest = blake2b(digest_size=16)
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def hub_commit(model: str) -> str | None:
    """The commit of a hub id that is in the cache, which is the one that engines load; None of a folder."""
    if Path(model).expanduser().exists() or not HUB_ID.fullmatch(model):
        return None
    cached = try_to_load_from_cache(model, "config.json")  # .../snapshots/COMMIT/config.json
    return Path(cached).parent.name if isinstance(cached, str) else None


def parse_cells(options: Options, source: Source | None, settings: Mapping[str, Any]) -> list[Cell]:
    """The tasks of each `--env NAME:LEVEL`, or of the run's own environment.

    Raises:
        EvaluationError: none is named, a text of another form, an unknown environment, level or reward (the
            nearest is named), one that is there twice, or an environment with fewer distinct tasks.
    """
    run = source.run if source else {}
    specs = options.env or ((f"{run['env']}:{run['level']}",) if run else ())
    if not specs:
        raise EvaluationError("--env NAME:LEVEL is missing; only the directory of a run says it by itself")
    cells = []
    for spec in specs:
        name, level = parse_env(spec)
        try:
            definition = resolve_env(name)
            definition.require_level(level)
            reward, python = _reward_of(options, run, name)
            asyncio.run(check_reward(reward, definition, level, python))
        except ValueError as error:
            raise EvaluationError(f"--env {spec}: {error}") from error
        stream = TaskStream(env=name, level=level, run_seed=settings["seed"], split=Split.HELD_OUT)
        cells.append(
            Cell(
                spec=name,
                definition=definition,
                level=level,
                reward=reward,
                reward_python=python,
                max_turns=_max_turns(options, settings, definition.lengths(level).turns),
                tasks=stream.slice(0, options.num_tasks),
            )
        )
    _require_distinct(cells)
    return cells


def parse_env(spec: str) -> tuple[str, int]:
    """(name, level) of `calc:1`, `my_env.py:ENV:0` or `package.module:ENV:0`."""
    name, level = split_level(spec)
    if not name or level is None:
        raise EvaluationError(f"--env {spec!r}: expected NAME:LEVEL, for example calc:1 or my_env.py:ENV:0")
    return name, level


def _max_turns(options: Options, settings: Mapping[str, Any], needed: int) -> int:
    """The command line's; else the run's or the default, which may be of an environment with fewer turns."""
    return settings["max_turns"] if options.max_turns is not None else max(settings["max_turns"], needed)


def _reward_of(options: Options, run: Mapping[str, Any], env: str) -> tuple[str, str]:
    """The command line's reward and its Python, else the run's on the run's own environment, else its own."""
    if options.reward is not None:
        return options.reward, options.reward_python
    recorded = run if run.get("env") == env else {}
    return recorded.get("reward", ""), options.reward_python or recorded.get("reward_python", "")


def _require_distinct(cells: Sequence[Cell]) -> None:
    names = [cell.name for cell in cells]
    for cell in cells:
        if names.count(cell.name) > 1:
            raise EvaluationError(f"--env {cell.name} is there twice; give each environment and level once")
        num_distinct = len({task.id for task in cell.tasks})
        if num_distinct < len(cell.tasks):
            raise EvaluationError(
                f"--env {cell.name}: {len(cell.tasks)} draws give {num_distinct} distinct tasks, and one "
                "that comes twice is no second observation; lower --num-tasks"
            )


def by_limits(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells that can share engines, of one environment and one limit of turns, in the order named."""
    shared: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        shared.setdefault((cell.spec, cell.max_turns), []).append(cell)
    return list(shared.values())


def settings_of(options: Options, source: Source | None) -> dict[str, Any]:
    """Every setting of FROM_RUN: the command line's, else the run's, else that of a Config.

    Of an endpoint the limits are those of rollout.limits.Limits: its models are larger and say more.
    """
    run: Mapping[str, Any] = source.run if source else asdict(Limits())
    chosen = {}
    for name in FROM_RUN:
        given = getattr(options, "temperature" if name == "eval_temperature" else name)
        chosen[name] = given if given is not None else run.get(name, getattr(Config, name))
    return chosen


def engine_config(options: Options, source: Source, settings: Mapping[str, Any], cell: Cell) -> Config:
    """The configuration of the engines that sample `cell` from the policy of `source`."""
    return replace(
        Config(),
        **{**settings, "max_turns": cell.max_turns},
        model=source.model,
        env=cell.spec,
        level=cell.level,
        reward=cell.reward,
        reward_python=cell.reward_python,
        eval_tasks=len(cell.tasks),
        device=options.device,
        engines=options.engines,
        engine_threads=options.engine_threads,
        num_concurrent=options.num_concurrent,
        engine_start_s=options.engine_start_s,
        group_deadline_s=options.group_deadline_s,
        canary_tokens=2,  # nothing is synced, so none is asked, and a short context is no reason to refuse
    )


def require_sound(config: Config, machine: Machine) -> None:
    """Raise ConfigError with every reason for which engines of `config` could not sample its tasks."""
    validate(config, machine)
    config = resolve(config, machine)
    try:
        facts, tokenizer = model_facts(config.model), load_tokenizer(config.model)
        renderer = ChatMLRenderer(tokenizer)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    problems = [
        *model_problems(config, facts),
        *reward_model_problems(config, tokenizer),
        *judge_problems(config, renderer),
        *prompt_problems(config, renderer, tokenizer),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def endpoint_spec(options: Options) -> EndpointSpec:
    """The endpoint of the options. Raises ValueError where its address is none."""
    return EndpointSpec(
        url=options.endpoint,
        model=options.endpoint_model,
        key=os.environ.get(options.endpoint_key_variable, ""),
        request_s=options.request_s,
        num_retries=options.num_retries,
    )
