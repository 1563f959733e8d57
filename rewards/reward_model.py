"""A learned reward: a sequence classifier with one output, trained on preferences, that scores a transcript.

`--reward reward_model:FOLDER` uses one in any recipe; recipes/reward_model.py trains one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from envs.episode import Episode, RewardFn, Score
from envs.messages import Message

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"


def transcript_ids(transcript: Sequence[Message], tokenizer: Any) -> list[int]:
    """A transcript as ids: `<|im_start|>role\\ntext<|im_end|>\\n` a message, calls in brackets as made.

    Markers enter as ids and text as text, so nothing that a tool or a policy says ends its own turn.

    Raises:
        ValueError: the tokenizer lacks a marker.
    """
    vocab = tokenizer.get_vocab()
    missing = [marker for marker in (TURN_START, TURN_END) if marker not in vocab]
    if missing:
        raise ValueError(
            f"the reward model's tokenizer lacks {' and '.join(missing)}, which transcripts need"
        )
    return list(_ids(transcript, tokenizer, vocab))


def _ids(transcript: Sequence[Message], tokenizer: Any, vocab: dict[str, int]) -> Iterator[int]:
    def text_ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    for entry in transcript:
        calls = "".join(f"[{call.text}]" for call in entry.tool_calls)
        yield vocab[TURN_START]
        yield from text_ids(f"{entry.role}\n{entry.text}{calls}")
        yield vocab[TURN_END]
        yield from text_ids("\n")


def load_reward_model(folder: str) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or hub id, for evaluation. Code that comes with a model is never run.

    Raises:
        ValueError: it cannot be read as a classifier with one output.
    """
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"reward model {folder!r} cannot be loaded: {error}. Expected a folder that recipes.reward_model "
            "wrote, or any sequence classifier of the Hugging Face hub with one output"
        ) from error
    if model.config.num_labels != 1:
        raise ValueError(
            f"reward model {folder!r} has {model.config.num_labels} outputs; expected 1, the reward"
        )
    return model, tokenizer


@cache
def reward_model(folder: str) -> RewardFn:
    """The reward of `folder`, loaded once a process. It says what is preferred, not what is right."""
    model, tokenizer = load_reward_model(folder)

    @torch.no_grad()
    def score(episode: Episode) -> Score:
        ids = torch.tensor([transcript_ids(episode.transcript, tokenizer)])
        value = float(model(input_ids=ids).logits[0, 0])
        return Score(value=value, parts={"reward_model": value})

    return score
