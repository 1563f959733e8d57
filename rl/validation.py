"""What is refused before anything expensive starts: every problem of a Config, each with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

from envs.names import unknown_name
from envs.registry import resolve_env
from rl.backend_checks import backend_problems, backend_row_problems
from rl.config import Config
from rl.credit import TURN_ESTIMATORS
from rl.defaults import resolve
from rl.determinism import determinism_problems
from rl.layout_settings import layout_problems
from rl.lora_settings import lora_problems
from rl.machine import Machine
from rl.model_folder import model_problems
from rl.overrides import Range
from rl.policy_gradient import PolicyGradient
from rl.reward_checks import reward_facts, reward_fit_problems
from rl.sampling_checks import sampling_problems
from rl.sandbox_checks import sandbox_problems
from rl.tracker import TRACKERS
from rollout.sabotage import DRILLS


class ConfigError(ValueError):
    """A configuration that cannot run. The message has one line a problem."""


def validate(config: Config, machine: Machine) -> None:
    """Raise ConfigError with every problem that `config` has on this machine.

    In rounds, since each takes the one before for granted: single values, how they fit, what they name.
    """
    for round_ in (value_problems(config), fit_problems(config, machine), name_problems(config)):
        problems = list(round_)
        if problems:
            raise ConfigError("\n".join(problems))


def value_problems(config: Config) -> Iterator[str]:
    """Types, choices and ranges, as `Config` annotates them."""
    for field, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, field)
        problem = _problem_of(value, hint)
        if problem:
            yield f"{field} = {value!r}: {problem}"


def _problem_of(value: object, hint: object) -> str | None:
    """What is wrong with `value` under the annotation `hint`; None when it fits."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):  # only `X | None` occurs
        (inner,) = (argument for argument in arguments if argument is not NoneType)
        return None if value is None else _problem_of(value, inner)
    if origin is dict:  # only dict[str, float] occurs
        names_numbers = isinstance(value, dict) and all(
            isinstance(name, str) and isinstance(number, int | float) for name, number in value.items()
        )
        return None if names_numbers else "expected names with numbers"
    if origin is Literal:
        return None if value in arguments else unknown_name("choice", value, filter(None, arguments))
    if origin is Annotated:
        return _problem_of(value, arguments[0]) or _range_problem(value, arguments[1])
    assert isinstance(hint, type), f"Config has a field of a kind that is not checked: {hint}"
    accepted = (int, float) if hint is float else (hint,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        return f"expected {hint.__name__}, not {type(value).__name__}"
    return None


def _range_problem(value: object, allowed: Range) -> str | None:
    assert isinstance(value, int | float)  # its type was checked first
    inside = isfinite(value) and allowed.low <= value <= allowed.high
    if inside and not (allowed.above_zero and value == 0):
        return None
    low = "more than 0" if allowed.above_zero else f"at least {allowed.low:g}"
    return f"expected {low} and " + (f"at most {allowed.high:g}" if isfinite(allowed.high) else "finite")


def fit_problems(config: Config, machine: Machine) -> Iterator[str]:
    """Values that are fine alone and wrong together, or too much for this machine."""
    yield from layout_problems(config)
    yield from _batch_problems(config)
    yield from _length_problems(config)
    yield from _schedule_problems(config)
    yield from _precision_problems(config)
    yield from lora_problems(config)
    yield from _placement_problems(config, machine)


def _batch_problems(config: Config) -> Iterator[str]:
    total, minibatches = config.num_trajectories, config.num_minibatches
    share = config.num_minibatch_trajectories
    batch = f"num_groups x group_size = {config.num_groups} x {config.group_size} = {total} trajectories"
    if total % minibatches:
        nearest = _nearest_divisor(total, minibatches)
        yield f"num_minibatches = {minibatches} does not divide {batch}; use {nearest}"
    elif not config.micro_batch_tokens and share % config.micro_batch_size:
        nearest = _nearest_divisor(share, config.micro_batch_size)
        yield (
            f"micro_batch_size = {config.micro_batch_size} does not divide the {share} trajectories of a "
            f"minibatch ({batch}, num_minibatches = {minibatches}); use {nearest}"
        )
    if config.engines > total:
        yield f"engines = {config.engines} for {batch} a step: some would always idle; use at most {total}"


def _nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` that is nearest to `wanted`, the smaller of two."""
    divisors = (candidate for candidate in range(1, number + 1) if number % candidate == 0)
    return min(divisors, key=lambda divisor: (abs(divisor - wanted), divisor))


def _length_problems(config: Config) -> Iterator[str]:
    for name, limit_name in (
        ("max_turn_tokens", "max_total_tokens"),
        ("max_total_tokens", "context_length"),
        ("canary_tokens", "context_length"),
    ):
        length, limit = getattr(config, name), getattr(config, limit_name)
        if length > limit:
            yield (
                f"{name} = {length} can never be reached, {limit_name} = {limit} comes first; "
                f"lower {name} or raise {limit_name}"
            )


def _precision_problems(config: Config) -> Iterator[str]:
    if config.head_dtype not in ("float32", config.learner_dtype):
        yield (
            f"head_dtype = {config.head_dtype!r} with learner_dtype = {config.learner_dtype!r}: states reach "
            f"the head in {config.learner_dtype}; use float32 or {config.learner_dtype}"
        )


def _schedule_problems(config: Config) -> Iterator[str]:
    if config.nonfinite_policy == "stop" and config.max_skipped_steps != Config.max_skipped_steps:
        yield "max_skipped_steps has no effect: nonfinite_policy 'stop' ends at the first; leave it out"
    if config.warmup_steps >= config.num_steps:
        yield (
            f"warmup_steps = {config.warmup_steps} of num_steps = {config.num_steps}: the learning rate "
            "would never reach its peak; lower warmup_steps"
        )
    if config.save_every > config.num_steps:
        yield (
            f"save_every = {config.save_every} of num_steps = {config.num_steps} has no effect, the end is "
            "always saved; lower it or leave it 0"
        )
    if config.eval_every >= config.num_steps:
        yield (
            f"eval_every = {config.eval_every} of num_steps = {config.num_steps} has no effect, the end is "
            "always evaluated; lower it or leave it 0"
        )
    if config.max_error_rate == 1 and config.error_window != Config.error_window:
        yield (
            f"error_window = {config.error_window} has no effect: no share is above max_error_rate = 1; "
            "leave one of them out"
        )
    if config.max_staleness:
        yield f"max_staleness = {config.max_staleness}: only 0 (synchronous) is implemented; leave it 0"


def _placement_problems(config: Config, machine: Machine) -> Iterator[str]:
    num_gpus = 0 if config.device == "cpu" else len(machine.gpus)
    if config.device == "cuda" and not num_gpus:
        yield "device = 'cuda': torch sees no GPU on this machine; use cpu or auto"
    elif config.sync_backend in ("ipc", "nccl") and not num_gpus:
        yield f"sync_backend = {config.sync_backend!r} needs a GPU and this run uses none; use shm or auto"
    elif config.sync_backend == "nccl" and num_gpus <= config.engines:
        yield (
            f"sync_backend = 'nccl' needs a GPU each for the learner and for engines = {config.engines}, "
            f"and there {'is 1' if num_gpus == 1 else f'are {num_gpus}'}; use ipc or auto"
        )
    elif config.sabotage in DRILLS and resolve(config, machine).sync_backend != "shm":
        yield (
            f"sabotage = {config.sabotage!r} breaks a load out of shared memory, and this run uses "
            f"{resolve(config, machine).sync_backend}; add sync_backend shm"
        )
    yield from determinism_problems(config, on_gpu=bool(num_gpus))
    yield from backend_problems(config, num_gpus=num_gpus)
    for name, wanted in (
        ("engines x engine_threads", config.engines * config.engine_threads),
        ("learner_ranks x learner_threads", config.learner_ranks * max(config.learner_threads, 1)),
    ):
        if wanted > machine.cores:
            yield f"{name} = {wanted} needs {wanted} cores and there are {machine.cores}; lower it"


def name_problems(config: Config) -> Iterator[str]:
    """Algorithm, environment, level, reward, model, trackers: what is named must exist and be usable."""
    yield from _algorithm_problems(config)
    yield from _env_problems(config)
    yield from model_problems(config.model)
    yield from model_problems(config.teacher, option="teacher")
    yield from _tracker_problems(config)


def _algorithm_problems(config: Config) -> Iterator[str]:
    try:
        algorithm = config.make_algorithm()
    except ValueError as error:
        yield str(error)
        return
    if config.teacher and not algorithm.loads_teacher:
        others = "the policy itself, told more, is its" if algorithm.uses_teacher else "there is no"
        yield f"teacher has no effect: in algorithm {config.algorithm!r} {others} teacher; leave it out"
    if config.critic_lr is not None and algorithm.critic == "none":
        yield f"critic_lr has no effect: algorithm {config.algorithm!r} has no critic; leave it out"
    yield from backend_row_problems(config, algorithm)
    yield from sampling_problems(config, algorithm)
    if isinstance(algorithm, PolicyGradient):
        yield from _row_problems(config, algorithm)


def _row_problems(config: Config, algorithm: PolicyGradient) -> Iterator[str]:
    if algorithm.oversample > 1 and (
        config.group_size % algorithm.oversample or config.group_size // algorithm.oversample < 2
    ):
        yield (
            f"group_size = {config.group_size} with oversample = {algorithm.oversample}: one member in "
            f"{algorithm.oversample} is kept, and a group needs two to be compared; use a multiple of "
            f"{algorithm.oversample}, at least {2 * algorithm.oversample}"
        )
    if algorithm.adv_estimator in {"gdpo", *TURN_ESTIMATORS} and config.reward.startswith("shuffled:"):
        yield (
            f"reward = {config.reward!r}: {config.algorithm} learns from the parts of the reward or from "
            "turns' rewards, which stay with the trajectory that earned them, so the control would learn; "
            "use another row"
        )
    # A group of one is uniform.
    if config.group_size == 1 and (algorithm.drop_uniform_groups or algorithm.compares_members):
        yield (
            f"group_size = 1: {config.algorithm} compares the members of a group, so nothing would be "
            "learned; use at least 2, or reinforce"
        )
    elif algorithm.least_group > config.group_size:
        yield (
            f"min_group = {algorithm.least_group} with group_size = {config.group_size}: no group could have "
            f"so many scored members; use at most {config.group_size}"
        )
    if algorithm.adv_estimator == "spo" and not 0 < config.num_tasks < config.num_groups * config.num_steps:
        yield (
            f"num_tasks = {config.num_tasks}: {config.algorithm} compares a task with its own past, and none "
            f"would come twice in {config.num_steps} steps of {config.num_groups}; set num_tasks below "
            f"{config.num_groups * config.num_steps}"
        )
    if algorithm.adv_estimator == "spo" and config.num_minibatches == 1:
        yield (
            f"num_minibatches = 1: {config.algorithm} forgets by how far the policy moves in a step, which "
            "is measured before each update, so that one update moves it by nothing; use more"
        )
    if algorithm.target_kl is not None and algorithm.kl_horizon <= 0.2 * config.num_trajectories:
        yield (
            f"kl_horizon = {algorithm.kl_horizon:g} for {config.num_trajectories} trajectories a step: one "
            f"step could take kl_coef to 0, where it stays; use more than {0.2 * config.num_trajectories:g}"
        )
    if algorithm.kl_loss_coef and (algorithm.kl_loss_type, algorithm.kl_gradient) == ("k1", "naive"):
        yield (
            "kl_loss_type = 'k1' with kl_gradient = 'naive': its gradient is 0 on average, whatever the "
            "reference, so there would be no KL penalty; use kl_gradient 'unbiased', or k3"
        )
    clips = [name for name in config.overrides if name.startswith("clip_")]
    if clips and config.num_minibatches == 1 and not algorithm.bypass_mode:
        yield (
            f"{' and '.join(clips)} with num_minibatches = 1 has no effect: the only update starts from the "
            "policy that sampled, so every ratio is 1; use more minibatches or leave it out"
        )


def _env_problems(config: Config) -> Iterator[str]:
    try:
        definition = resolve_env(config.env)
        definition.require_level(config.level)
        reward_facts(config)
        yield from reward_fit_problems(config)
    except ValueError as error:
        yield str(error)
        return
    yield from sandbox_problems(config)
    needed = definition.lengths(config.level).turns
    if config.max_turns < needed:
        yield (
            f"max_turns = {config.max_turns}: level {config.level} of {config.env} takes {needed} turns, "
            "so nothing could be solved; raise it"
        )


def _tracker_problems(config: Config) -> Iterator[str]:
    names = config.tracker_names
    for name in dict.fromkeys(names):
        if name not in TRACKERS:
            yield f"trackers = {config.trackers!r}: {unknown_name('tracker', name, TRACKERS)}"
        elif names.count(name) > 1:
            yield f"trackers = {config.trackers!r} has {name} more than once; name it once"
