"""The model of the comparisons, written where both sides load it, and what it says by definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from scripts.benching.workload import FIRST_WORD, MODEL, VOCAB_SIZE, Batch

logging.disable_progress_bar()


def write_model(folder: Path, *, max_length: int, vocab_size: int = VOCAB_SIZE) -> Path:
    """A Llama with random weights (the same for every caller), and a tokenizer of one word a token."""
    torch.manual_seed(0)
    settings: dict[str, Any] = MODEL | {"vocab_size": vocab_size, "max_position_embeddings": max_length}
    config = LlamaConfig(**settings)
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{n}": n for n in range(FIRST_WORD, vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    ).save_pretrained(folder)
    return folder


def group_advantages(batch: Batch) -> np.ndarray:
    """(r - mean) / (std + 1e-4) within each group, as TRL has it: float32 (B,)."""
    rewards = np.array(batch.rewards).reshape(len(batch.prompts), -1)
    spread = rewards.std(1, ddof=1, keepdims=True) + 1e-4
    return ((rewards - rewards.mean(1, keepdims=True)) / spread).reshape(-1).astype(np.float32)


def dense_reference(
    folder: Path, batch: Batch, *, gradient: bool = True
) -> tuple[list[np.ndarray], np.ndarray]:
    """Log-probs of each completion, and the gradient of GRPO's first loss, by definition in float32.

    One sample at a time through transformers' own forward and a log-softmax over all logits. The loss is
    -mean over samples of mean over tokens of A log π: the gradient of the clipped ratio where it is 1. The
    gradient is one vector, parameters in order.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logprobs = []
    for (prompt, completion), advantage in zip(batch.pairs, group_advantages(batch), strict=True):
        ids = torch.tensor([[*prompt, *completion]])
        with torch.set_grad_enabled(gradient):
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            own = torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        if gradient:
            (-float(advantage) * own.mean() / len(batch.completions)).backward()
        logprobs.append(own.detach().numpy())
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return logprobs, torch.cat(grads).numpy() if grads else np.zeros(0, np.float32)
