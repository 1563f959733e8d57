"""Small real models for tests, made from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

VOCAB_SIZE = 103  # not a multiple of 64: the engine pads it


def make_tiny_model(folder: Path, *, tied: bool, seed: int = 0, num_layers: int = 2) -> Path:
    """A Qwen3-architecture model of about 0.3 M parameters, saved in Hugging Face format."""
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
    return folder


def load(folder: Path) -> Qwen3ForCausalLM:
    """The model in float32, as plain transformers reads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def reference_logprobs(model: Qwen3ForCausalLM, ids: Sequence[int]) -> np.ndarray:
    """The definition: log-softmax of the logits at t - 1, at token t. float32 (len - 1,)."""
    logits = model(torch.tensor([list(ids)])).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
