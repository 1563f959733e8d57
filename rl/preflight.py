"""What is checked with the model's files in hand and before any process starts: room, lengths, characters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from envs.base import WorldError
from envs.deadline import DeadlineError, within
from envs.messages import Message, Task
from envs.registry import EnvDefinition, resolve_env
from envs.splits import Split
from rewards.base import LEARNED
from rl.config import Config
from rl.durable import require_free_bytes
from rl.frozen_base import base_problems, num_quantized
from rl.hints import hint_message
from rl.lora import fit_problems, num_trained
from rl.machine import Machine
from rl.model import ModelFacts, meta_model, model_facts
from rl.policy_gradient import PolicyGradient
from rl.reward_checks import judge_problems
from rl.router_replay import ROUTERS
from rl.validation import ConfigError
from rollout.manifest import ITEM_BYTES
from rollout.renderer import ChatMLRenderer
from rollout.task_stream import TaskStream
from rollout.tokenizer import load_tokenizer

NUM_PROBED = 32
"""Tasks of each stream whose opening prompt is rendered."""

RESET_WALL_S = 60.0
"""For the environments of those tasks to open."""

CHECKPOINT_BYTES = 12
"""A parameter's in a checkpoint: its float32 weight and AdamW's two moments."""

CHECKPOINT_SPARE = 1.2
"""A checkpoint also has a tokenizer, and a file system needs room of its own."""

LEARNER_BYTES = 16
"""A parameter's bytes in the learner: weight, gradient and AdamW's two moments, in float32."""

RANK_BYTES = 4
"""A parameter's bytes in each further rank, which loads all weights before it keeps its part."""
FROZEN_BYTES = 4
"""Those of a parameter that an adapter leaves as it is. The adapter's own are a hundredth of all, or less."""

MOMENT_BYTES = 8
"""AdamW's two moments of a parameter, in float32."""

NF4_BYTES = 4.127 / 8
"""Those of one in 4 bits, scales included (arXiv 2305.14314, section 3)."""


def preflight(config: Config, machine: Machine, run_path: Path) -> None:
    """Raise ConfigError with every problem of a resolved `config` whose model is at hand. Writes nothing."""
    try:
        facts = model_facts(config.model)
        tokenizer = load_tokenizer(config.model)
        renderer = ChatMLRenderer(tokenizer)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    problems = [
        *teacher_problems(config, tokenizer),
        *reward_model_problems(config, tokenizer),
        *judge_problems(config, renderer),
        *router_problems(config, facts),
        *model_problems(config, facts),
        *fit_problems(config),
        *base_problems(config),
        *memory_problems(config, machine, facts),
        *disk_problems(config, facts, run_path),
        *prompt_problems(config, renderer, tokenizer),
        *hint_problems(config, facts, renderer, tokenizer),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def model_problems(config: Config, facts: ModelFacts) -> Iterator[str]:
    """Sequences longer than those that the model was made for."""
    longest = facts.context_length
    if longest is not None and longest < config.context_length:
        yield (
            f"context_length = {config.context_length}: model {config.model} takes {longest} tokens at most "
            f"(max_position_embeddings); lower it to {longest}"
        )


def reward_model_problems(config: Config, tokenizer: Any) -> Iterator[str]:
    """A learned reward that reads other tokens than the policy says."""
    spec = config.reward.removeprefix("shuffled:")
    if not spec.startswith(LEARNED):
        return
    folder = spec.removeprefix(LEARNED)
    try:
        theirs, ours = load_tokenizer(folder).get_vocab(), tokenizer.get_vocab()
    except ValueError as error:
        yield f"reward: {error}"
        return
    if differing := sorted(theirs.items() ^ ours.items()):
        yield (
            f"reward = {config.reward!r}: the reward model has another tokenizer than model {config.model}, "
            f"{len(differing)} entries of the vocabularies differ, {differing[0][0]!r} among them; train one "
            "on this model (recipes.reward_model)"
        )


def router_problems(config: Config, facts: ModelFacts) -> Iterator[str]:
    """A load to balance, and no router; choices to replay, and nobody to choose or to tell."""
    if config.router_aux_loss_coef and not facts.has_router:
        yield (
            f"router_aux_loss_coef = {config.router_aux_loss_coef:g} has no effect: model {config.model} is "
            "dense, it has no experts; leave it out"
        )
    if not config.replay_routing:
        return
    if not isinstance(config.make_algorithm(), PolicyGradient):
        yield (
            f"replay_routing with algorithm {config.algorithm!r}: it may learn from what no engine of this "
            "run has sampled, and then nobody knows the experts; leave it out"
        )
    if not facts.has_router:
        yield (
            f"replay_routing has no effect: model {config.model} is dense, it has no experts to choose; "
            "leave it out"
        )
    elif not facts.num_routers:
        yield (
            f"replay_routing: the routers of model {config.model} are none of those that can be replayed "
            f"({', '.join(sorted(ROUTERS))}); leave it out or use such a model"
        )
    if config.device == "cpu":
        yield (
            "replay_routing with device = 'cpu': vLLM 0.32 tells its routing from model runner V2 only, "
            "which needs Triton and so a GPU; leave it out or run on one"
        )


def teacher_problems(config: Config, tokenizer: Any) -> Iterator[str]:
    """A teacher that cannot score the student's tokens, id by id."""
    if not config.teacher:
        return
    try:
        theirs, ours = load_tokenizer(config.teacher).get_vocab(), tokenizer.get_vocab()
    except ValueError as error:
        yield f"teacher: {error}"
        return
    differing = [token for token, _ in sorted(theirs.items() ^ ours.items())]
    if differing:
        yield (
            f"teacher = {config.teacher!r} has another vocabulary than model {config.model}: "
            f"{len(differing)} entries differ, {differing[0]!r} among them. A teacher scores the student's "
            "token ids, so both must share one tokenizer"
        )


def memory_problems(config: Config, machine: Machine, facts: ModelFacts) -> Iterator[str]:
    """Weights alone that the machine's memory cannot hold; activations and caches come on top."""
    if config.device != "cpu":
        yield from _offload_problems(config, machine, facts)
        return
    wire = ITEM_BYTES[config.engine_dtype]
    held = FROZEN_BYTES if config.trains_adapter else LEARNER_BYTES
    learner = held + RANK_BYTES * (config.learner_ranks - 1)
    num_bytes = facts.num_parameters * (learner + wire * (1 + config.engines))
    if config.lora_base == "nf4":
        num_bytes -= num_quantized(meta_model(config.model)) * (FROZEN_BYTES - NF4_BYTES)
    if num_bytes > machine.memory_bytes:
        yield (
            f"model {config.model} has {facts.num_parameters / 1e6:,.0f} M parameters: learner, weight sync "
            f"and {config.engines} engine(s) need {num_bytes / 1e9:,.1f} GB at least, this machine has "
            f"{machine.memory_bytes / 1e9:,.1f} GB; use a smaller model or a larger machine"
        )


def _offload_problems(config: Config, machine: Machine, facts: ModelFacts) -> Iterator[str]:
    """AdamW's moments that main memory cannot hold where a GPU's learner keeps them there."""
    if config.optimizer_offload == "none" or config.trains_adapter:
        return
    num_bytes = facts.num_parameters * MOMENT_BYTES  # on all ranks together: each has its part
    if num_bytes > machine.memory_bytes:
        yield (
            f"optimizer_offload = {config.optimizer_offload!r}: AdamW's moments of {config.model}'s "
            f"{facts.num_parameters / 1e6:,.0f} M parameters are {num_bytes / 1e9:,.1f} GB of main memory, "
            f"this machine has {machine.memory_bytes / 1e9:,.1f} GB; use a smaller model or --lora.rank"
        )


def disk_problems(config: Config, facts: ModelFacts, run_path: Path) -> Iterator[str]:
    """A disk that cannot hold what the run will write."""
    num_saves = -(-config.num_steps // config.save_every)  # the last step always
    if config.keep_checkpoints:
        num_saves = min(num_saves, config.keep_checkpoints + 1)  # an old one goes when the new one is there
    num_saved = num_trained(config, facts.num_parameters)
    checkpoints = int(num_saves * num_saved * CHECKPOINT_BYTES * CHECKPOINT_SPARE)
    records = int(config.max_record_mb * 1e6)
    existing = next(folder for folder in (run_path, *run_path.absolute().parents) if folder.exists())
    try:
        require_free_bytes(
            existing,
            checkpoints + records,
            f"{num_saves} checkpoint(s) ({checkpoints / 1e6:,.0f} MB; --keep-checkpoints) and trajectories "
            f"({records / 1e6:,.0f} MB; --max-record-mb)",
        )
    except OSError as error:
        yield f"{error} (--run-dir)"


def prompt_problems(config: Config, renderer: ChatMLRenderer, tokenizer: Any) -> Iterator[str]:
    """Opening prompts without room for an answer, or with characters that the tokenizer does not know."""
    definition = resolve_env(config.env)
    limit_name = min(("context_length", "max_total_tokens"), key=lambda name: getattr(config, name))
    limit = getattr(config, limit_name) - 1  # one token to be sampled
    for split in (Split.TRAIN, Split.HELD_OUT):
        stream = TaskStream(env=config.env, level=config.level, run_seed=config.seed, split=split)
        tasks = stream.slice(0, NUM_PROBED)
        try:
            openings = asyncio.run(_openings(definition, tasks))
        except (WorldError, DeadlineError) as error:
            yield f"environment {config.env} does not open: {type(error).__name__}: {error}"
            return
        prompts = [renderer.render(opening) for opening in openings]
        length, task = max((len(ids), task.id) for ids, task in zip(prompts, tasks, strict=True))
        if length > limit:
            option = limit_name.replace("_", "-")
            yield (
                f"{limit_name} = {limit + 1}: the prompt of {split.value} task {task} has {length} tokens "
                f"and leaves none for an answer; raise --{option} above {length}"
            )
        if tokenizer.unk_token_id is not None and any(tokenizer.unk_token_id in ids for ids in prompts):
            words = sorted({word for opening in openings for word in _unknown(opening, tokenizer)})
            yield (
                f"the tokenizer of {config.model} has no tokens for {', '.join(map(repr, words[:5]))}, which "
                f"{split.value} tasks of {config.env} contain; use another model or other tasks"
            )


def hint_problems(
    config: Config, facts: ModelFacts, renderer: ChatMLRenderer, tokenizer: Any
) -> Iterator[str]:
    """A hint that names an answer which is not there, or has unknown characters, or for which is no room."""
    row = config.make_algorithm()
    if not (row.hint and row.uses_teacher):
        return
    tasks = TaskStream(env=config.env, level=config.level, run_seed=config.seed).slice(0, NUM_PROBED)
    try:
        hints = [hint_message(row.hint, task.answer) for task in tasks]
    except ValueError as error:
        yield f"environment {config.env}: {error}"
        return
    if words := sorted({word for hint in hints for word in _unknown([hint], tokenizer)}):
        yield (
            f"the tokenizer of {config.model} has no tokens for {', '.join(map(repr, words[:5]))}, which the "
            f"hint {row.hint!r} contains; use another hint or another model"
        )
    num_before = max(len(renderer.render_before([hint], [])) for hint in hints)
    longest = min(config.max_total_tokens, config.context_length)
    if facts.context_length is not None and num_before + longest > facts.context_length:
        yield (
            f"max_total_tokens = {config.max_total_tokens}: with a hint of {num_before} tokens, {longest} "
            f"are more than the {facts.context_length} that model {config.model} takes; lower it to "
            f"{facts.context_length - num_before}, or shorten the hint"
        )


async def _openings(definition: EnvDefinition, tasks: Sequence[Task]) -> list[Sequence[Message]]:
    """The opening messages of each task, from an environment of its own."""

    async def opening(task: Task) -> Sequence[Message]:
        env = definition.make_env()
        try:
            return await env.reset(task)
        finally:
            await env.close()

    return await within(RESET_WALL_S, asyncio.gather(*(opening(task) for task in tasks)))


def _unknown(opening: Sequence[Message], tokenizer: Any) -> Iterator[str]:
    """The words of `opening` that encode to an unknown token."""
    for word in (word for entry in opening for word in entry.text.split()):
        if tokenizer.unk_token_id in tokenizer.encode(
            word, add_special_tokens=False, split_special_tokens=True
        ):
            yield word
