"""Supervised training on an environment's reference episodes, stopped by measured success."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from envs.episode import score_of
from envs.messages import Message, Task, message
from envs.play import play
from envs.registry import EnvDefinition
from envs.splits import Split, task_seed
from recipes.char_tokenizer import PAD, make_char_tokenizer
from rewards.base import resolve_reward
from rl.supervised import conversation_sample
from rollout.agent import request_seed, run_group
from rollout.hf_policy import TransformersPolicy
from rollout.limits import Limits
from rollout.renderer import TURN_END, ChatMLRenderer, Tokenizer
from rollout.trajectory import TrajectoryGroup

MEASURE_INDEX = 1 << 40
"""Held-out tasks from this index on decide when to stop. A run's evaluation takes its own from index 0 on."""

HEAD_SIZE = 32
"""Width of an attention head."""


class BaseError(RuntimeError):
    """The warm start never had a success inside the window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSpec:
    """All that a base policy is a function of, on one kind of CPU: another one may round differently."""

    env: str = "calc"
    """The environment: calc, my_env.py:ENV, package.module:ENV."""
    level: int = 1
    """Its level."""
    seed: int = 0
    """Seeds the weights, the reference episodes and the measurements."""
    num_layers: int = 3
    """Transformer layers."""
    hidden_size: int = 128
    """Width of the model; its feed-forward layers are three times as wide."""
    num_experts: int = 0
    """Experts of each feed-forward layer, each half as wide as a dense one, two a token; 0: a dense model."""
    tie_embeddings: bool = True
    """Whether the output head is the embedding."""
    context_length: int = 1024
    """The longest sequence that the model takes, in tokens."""
    batch_size: int = 32
    """Reference episodes an optimizer step."""
    learning_rate: float = 1.5e-3
    """AdamW's peak: a linear warm-up to it, then a linear fall to a twentieth of it at max_steps."""
    num_warmup_steps: int = 20
    """Steps of the warm-up."""
    max_steps: int = 200
    """Optimizer steps after which to give up: the length of the learning rate's fall."""
    label_smoothing: float = 0.03
    """Share of each target's probability that is spread over the vocabulary (arXiv 1512.00567, section 7).
    A policy of some 28 tokens an episode then levels off near 0.97^28 = 0.43 instead of rushing from nothing
    to everything, and what it gets wrong it gets wrong by chance: there is something to explore."""
    target_success: float = 0.4
    """Stop at the first measured success that is not below."""
    success_window: tuple[float, float] = (0.2, 0.6)
    """The success (temperature 1) that the policy may have: a base with far less has groups without a winner,
    one with far more has groups without a loser."""
    num_measured_tasks: int = 192
    """Held-out tasks of one measurement: a standard error of 0.035 at success 0.4."""
    measure_every: int = 10
    """Steps between measurements."""
    measure_from_probability: float = 0.05
    """Measuring begins when a policy would say a batch's reference episodes with this mean probability, which
    is a lower bound of its success: other episodes may succeed too."""

    def __post_init__(self) -> None:
        low, high = self.success_window
        if not low <= self.target_success <= high:
            raise ValueError(f"target_success is {self.target_success}; expected {low} to {high}")
        if self.hidden_size % (2 * HEAD_SIZE):
            raise ValueError(f"hidden_size is {self.hidden_size}; expected a multiple of {2 * HEAD_SIZE}")
        if self.num_experts < 0 or self.num_experts == 1:
            raise ValueError(f"num_experts is {self.num_experts}; expected 0 (a dense model) or at least 2")


@dataclass(frozen=True, slots=True)
class BaseResult:
    """What the warm start came to: optimizer steps, wall seconds, measured success."""

    steps: int
    seconds: float
    success: float


@dataclass(frozen=True, slots=True)
class ReferenceEpisode:
    """A reference episode as a policy would have sampled it.

    Example, prompt P, said A0, tool reply E, said A1; A0 and A1 end with <|im_end|>:
        token_ids = P           + A0           + E           + A1
        loss_mask = [0]*len(P)  + [1]*len(A0)  + [0]*len(E)  + [1]*len(A1)
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]


async def reference_episode(
    task: Task, definition: EnvDefinition, renderer: ChatMLRenderer, *, max_turns: int
) -> ReferenceEpisode:
    """Play `task` with the environment's reference player; ValueError when that does not solve it."""
    said: list[str] = []

    def player(task: Task, transcript: Sequence[Message]) -> str:
        said.append(definition.reference(task, transcript))
        return said[-1]

    episode = await play(definition.make_env, task, player, max_turns=max_turns)
    if (score := await score_of(definition.score, episode)).value != 1.0:
        raise ValueError(f"{task.id}: the reference player of {definition.name} got {score}, expected 1.0")
    texts = iter(said)
    # What was said enters as text: a parsed call is not what a policy samples.
    spoken = [
        message("assistant", next(texts)) if entry.role == "assistant" else entry
        for entry in episode.transcript
    ]
    sample = conversation_sample(spoken, renderer, name=task.id)
    return ReferenceEpisode(tuple(sample.token_ids.tolist()), tuple(map(int, sample.loss_mask)))


class WarmStart:
    """One warm start: its model, tokenizer and training loop."""

    def __init__(self, spec: BaseSpec, definition: EnvDefinition, *, role: str = "base policy") -> None:
        self.spec = spec
        self.role = role
        self.definition = definition
        self.lengths = definition.lengths(definition.require_level(spec.level))
        self.tokenizer = make_char_tokenizer()
        self.renderer = ChatMLRenderer(cast(Tokenizer, self.tokenizer))
        self.model = make_model(spec, self.tokenizer.get_vocab())

    def run(self) -> BaseResult:
        """Train `model` until its success reaches the target; BaseError when none was inside the window."""
        spec, (low, high) = self.spec, self.spec.success_window
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        started = time.perf_counter()
        kept: tuple[BaseResult, dict[str, torch.Tensor]] | None = None
        measured: list[float] = []
        for step in range(spec.max_steps):
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * self._learning_rate_factor(step)
            loss, probability = self.train_step(step, optimizer)
            is_ready = bool(measured) or probability >= spec.measure_from_probability
            is_due = step + 1 == spec.max_steps or (is_ready and (step + 1) % spec.measure_every == 0)
            if is_due:
                measured.append(self.measure())
            seconds = time.perf_counter() - started
            _show_progress(self.role, step + 1, seconds, loss, probability, measured)
            if is_due and low <= measured[-1] <= high:
                weights = {name: weight.clone() for name, weight in self.model.state_dict().items()}
                kept = BaseResult(step + 1, seconds, measured[-1]), weights
            if is_due and measured[-1] >= spec.target_success:
                break
        if kept is None:
            raise BaseError(
                f"{spec.env} level {spec.level}: no success from {low} to {high} in {len(measured)} "
                f"measurements, the last of which were {measured[-5:]}; when all are below, raise max_steps "
                "or hidden_size, when the window was jumped over, lower learning_rate or measure_every"
            )
        result, weights = kept
        self.model.load_state_dict(weights)
        return result

    def _learning_rate_factor(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / self.spec.num_warmup_steps)
        return warmup * max(0.05, 1.0 - step / self.spec.max_steps)

    def train_step(self, step: int, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        """One update on new episodes: loss in nats a token, mean probability of all that is said in one."""
        episodes = asyncio.run(self._reference_episodes(step))
        width = max(len(episode.token_ids) for episode in episodes)
        token_ids = torch.tensor([_padded(episode.token_ids, width) for episode in episodes])  # (B, T)
        targets = token_ids[:, 1:]  # (B, T-1)
        is_said = torch.tensor([_padded(episode.loss_mask, width) for episode in episodes])[:, 1:].bool()
        # Padding is on the right and attention is causal: no token that counts can see it.
        logits = self.model(input_ids=token_ids).logits[:, :-1]  # (B, T-1, V)
        loss = F.cross_entropy(logits[is_said], targets[is_said], label_smoothing=self.spec.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        logprobs = -F.cross_entropy(logits.detach().transpose(1, 2), targets, reduction="none")  # (B, T-1)
        return loss.item(), (logprobs * is_said).sum(dim=1).exp().mean().item()

    def measure(self) -> float:
        """Success at temperature 1 in real episodes; every call has the same held-out tasks and seeds."""
        self.model.eval()
        groups = asyncio.run(self._held_out_groups())
        self.model.train()
        successes = [trajectory.score.success for group in groups for trajectory in group.trajectories]
        reported = [success for success in successes if success is not None]
        if not reported:
            raise BaseError(f"environment {self.spec.env} reports no success: its Score.success is None")
        return sum(reported) / len(reported)

    async def _reference_episodes(self, step: int) -> list[ReferenceEpisode]:
        first, max_turns = step * self.spec.batch_size, self.lengths.turns
        tasks = [self._task(Split.WARM_START, first + index) for index in range(self.spec.batch_size)]
        return [
            await reference_episode(task, self.definition, self.renderer, max_turns=max_turns)
            for task in tasks
        ]

    async def _held_out_groups(self) -> list[TrajectoryGroup]:
        policy = TransformersPolicy(self.model)
        limits = Limits(max_turns=self.lengths.turns + 1, max_turn_tokens=self.lengths.turn_chars + 8)
        runs = [
            run_group(
                self._task(Split.HELD_OUT, index),
                self.definition,
                policy,
                self.renderer,
                resolve_reward("", self.definition),
                index=index,
                group_size=1,
                trajectory_id=partial("base-{}-{}".format, index),
                request_seed=partial(request_seed, self.spec.seed, 0, index),
                limits=limits,
                context_length=self.spec.context_length,
            )
            for index in range(MEASURE_INDEX, MEASURE_INDEX + self.spec.num_measured_tasks)
        ]
        return await asyncio.gather(*runs)

    def _task(self, split: Split, index: int) -> Task:
        return self.definition.make_task(self.spec.level, task_seed(split, self.spec.seed, index))


def make_model(spec: BaseSpec, vocab: dict[str, int]) -> Qwen3ForCausalLM | Qwen3MoeForCausalLM:
    """The model of `spec` with its initial weights; torch's global random state is left as it was."""
    experts = {
        "num_experts": spec.num_experts,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 3 * spec.hidden_size // 2,
        "norm_topk_prob": True,
    }
    make_config: Any = partial(Qwen3MoeConfig, **experts) if spec.num_experts else Qwen3Config
    config = make_config(
        vocab_size=len(vocab),
        hidden_size=spec.hidden_size,
        intermediate_size=3 * spec.hidden_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.hidden_size // HEAD_SIZE,
        num_key_value_heads=spec.hidden_size // HEAD_SIZE // 2,
        head_dim=HEAD_SIZE,
        max_position_embeddings=spec.context_length,
        # Measured: at this width 0.05 needs half the steps of the usual 0.02.
        initializer_range=0.05,
        tie_word_embeddings=spec.tie_embeddings,
        bos_token_id=None,
        eos_token_id=vocab[TURN_END],
        pad_token_id=vocab[PAD],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return (Qwen3ForCausalLM if isinstance(config, Qwen3Config) else Qwen3MoeForCausalLM)(config)


def _padded(values: Sequence[int], width: int) -> list[int]:
    """`values` and zeros up to `width`: 0 is the id of padding, and the mask's "not said"."""
    return [*values, *[0] * (width - len(values))]


def _show_progress(
    role: str, step: int, seconds: float, loss: float, probability: float, measured: list[float]
) -> None:
    """One line on a terminal, rewritten; elsewhere a line every 20 steps."""
    success = f"{measured[-1]:.2f}" if measured else "not measured yet"
    line = (
        f"{role}: step {step}, {seconds:.0f} s, loss {loss:.3f}, "
        f"probability of a reference episode {probability:.2f}, success {success}"
    )
    if sys.stderr.isatty():
        print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
    elif step % 20 == 0:
        print(line, file=sys.stderr, flush=True)
