"""Small real models for tests, made from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from envs.episode import Episode, Score
from envs.messages import StopReason, Task
from recipes.char_tokenizer import make_char_tokenizer
from rollout.trajectory import Completion, Trajectory, TrajectoryGroup, Turn, VersionSpan

VOCAB_SIZE = 107  # the character tokenizer fits; not a multiple of 64, so the engine pads it


def make_tiny_model(folder: Path, *, tied: bool, seed: int = 0, num_layers: int = 2) -> Path:
    """A Qwen3-architecture model of about 0.3 M parameters, saved with its tokenizer for Hugging Face."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    make_char_tokenizer().save_pretrained(folder)
    return folder


def make_tiny_mixture(folder: Path) -> Path:
    """A tiny mixture of four experts, two a token, saved like make_tiny_model's."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    make_char_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path) -> Qwen3ForCausalLM:
    """The model in float32, as plain transformers reads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def reference_logprobs(model: Qwen3ForCausalLM, ids: Sequence[int]) -> np.ndarray:
    """The definition: log-softmax of the logits at t - 1, at token t. float32 (len - 1,)."""
    logits = model(torch.tensor([list(ids)])).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def make_group(
    index: int,
    members: Sequence[tuple[Sequence[Sequence[int]], float | None]],
    *,
    model: Qwen3ForCausalLM | None = None,
    version: int = 0,
    answer: str | None = None,
) -> TrajectoryGroup:
    """A group of hand-made trajectories.

    Each member is (segments, reward): segments alternate context and sampled ids, [P0, A0, E0, A1, ...]. The
    log-probs are the model's own, or 0 without one.
    """
    task = Task(id=f"task-{index}", env="calc", messages=(), answer=answer)
    return TrajectoryGroup(
        task=task,
        index=index,
        trajectories=tuple(
            Trajectory(
                id=f"{index}-{member}",
                episode=Episode(task=task, transcript=(), stop_reason=StopReason.ANSWERED),
                turns=_turns(segments, model, version),
                score=Score(value=reward, success=reward, parts={"answer": reward, "calls": len(segments)}),
            )
            for member, (segments, reward) in enumerate(members)
        ),
    )


def _turns(
    segments: Sequence[Sequence[int]], model: Qwen3ForCausalLM | None, version: int
) -> tuple[Turn, ...]:
    ids = [token for segment in segments for token in segment]
    logprobs = [0.0] * len(ids) if model is None else [0.0, *map(float, reference_logprobs(model, ids))]
    turns: list[Turn] = []
    start = 0
    for context, sampled in zip(segments[::2], segments[1::2], strict=True):
        start += len(context)
        completion = Completion(
            token_ids=tuple(sampled),
            logprobs=tuple(logprobs[start : start + len(sampled)]),
            version_spans=(VersionSpan(version=version, start=0, end=len(sampled)),),
            finish_reason="stop",
        )
        start += len(sampled)
        turns.append(
            Turn(parent=len(turns) - 1 if turns else None, context_ids=tuple(context), completion=completion)
        )
    return tuple(turns)
