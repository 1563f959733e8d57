"""What both sides of a comparison work on: a pure function of (case, step), and files that both read.

Nothing of ours is imported here: TRL's side loads it among other releases of our stack.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

VOCAB_SIZE = 8192
PAD_ID, EOS_ID, UNK_ID = range(3)
FIRST_WORD = 3
MODEL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 688,
    "tie_word_embeddings": True,
    "pad_token_id": PAD_ID,
    "eos_token_id": EOS_ID,
    "bos_token_id": None,
}
"""A LlamaConfig of five million parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One shape of batch: `num_prompts` groups of `group_size`, no completion above `completion_len`."""

    name: str
    prompt_len: int
    completion_len: int
    is_ragged: bool = False
    num_prompts: int = 4
    group_size: int = 8
    seed: int = 0


FIXED = Case(name="fixed 128/64", prompt_len=128, completion_len=64)
RAGGED = Case(name="ragged 256/256", prompt_len=256, completion_len=256, is_ragged=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The tokens of one step: completion i answers prompt i // group_size, and ends with EOS_ID."""

    prompts: list[list[int]]
    completions: list[list[int]]
    rewards: list[float]

    @property
    def group_size(self) -> int:
        return len(self.completions) // len(self.prompts)

    @property
    def num_trained(self) -> int:
        return sum(map(len, self.completions))

    @property
    def pairs(self) -> list[tuple[list[int], list[int]]]:
        """The prompt and the completion of each sample."""
        size = self.group_size
        return [(self.prompts[row // size], completion) for row, completion in enumerate(self.completions)]

    @property
    def num_unique(self) -> int:
        """Nodes of the trie: distinct beginnings of the samples, each a token that must be forwarded once."""
        num_nodes, trie = 0, {}
        for prompt, completion in self.pairs:
            node = trie
            for token in (*prompt, *completion):
                if token not in node:
                    node[token] = {}
                    num_nodes += 1
                node = node[token]
        return num_nodes

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        return cls(**json.loads(Path(path).read_text()))


def lengths(case: Case, step: int) -> tuple[list[int], list[int]]:
    """Length of each prompt and of each completion.

    Ragged: prompts are uniform from half to one and a half of `prompt_len`; completions lognormal (σ = 1)
    with a median of a fifth of `completion_len`, 4 at least, and one of them is as long as it may be.
    """
    num_samples = case.num_prompts * case.group_size
    if not case.is_ragged:
        return [case.prompt_len] * case.num_prompts, [case.completion_len] * num_samples
    drawn = random.Random(1_000_003 * case.seed + step)
    half = case.prompt_len // 2
    prompts = [drawn.randint(half, 3 * case.prompt_len // 2) for _ in range(case.num_prompts)]
    median, longest = 0.2 * case.completion_len, case.completion_len
    completions = [
        max(4, min(longest, int(median * drawn.lognormvariate(0.0, 1.0)))) for _ in range(num_samples)
    ]
    completions[drawn.randrange(num_samples)] = longest
    return prompts, completions


def make_batch(case: Case, step: int = 0) -> Batch:
    """The tokens of a step, drawn uniformly, and as rewards the share of even ids."""
    prompt_lengths, completion_lengths = lengths(case, step)
    drawn = random.Random(f"{case.seed} {step}")
    prompts = [_words(drawn, length) for length in prompt_lengths]
    completions = [[*_words(drawn, length - 1), EOS_ID] for length in completion_lengths]
    return Batch(prompts=prompts, completions=completions, rewards=list(map(share_of_even, completions)))


def share_of_even(ids: Sequence[int]) -> float:
    """A reward that differs within a group and costs nothing."""
    return sum(token % 2 == 0 for token in ids) / max(1, len(ids))


def _words(drawn: random.Random, length: int) -> list[int]:
    return [drawn.randrange(FIRST_WORD, VOCAB_SIZE) for _ in range(length)]


def text_of(ids: Sequence[int]) -> str:
    """What the tokenizer of the model folder makes these ids of again."""
    return " ".join(f"w{token}" for token in ids)


def layer_weights() -> int:
    """Parameters that multiply every token: the projections of all layers."""
    hidden, heads = MODEL["hidden_size"], MODEL["num_attention_heads"]
    key_value = hidden // heads * MODEL["num_key_value_heads"]
    return MODEL["num_hidden_layers"] * (
        2 * hidden * (hidden + key_value) + 3 * hidden * MODEL["intermediate_size"]
    )


def least_flops(batch: Batch) -> float:
    """Floating-point operations of an update that no method can leave out.

    Three products of matrices (forward, and to input and weights) with the layers for each distinct token,
    and with the head for each trained one.
    """
    head = VOCAB_SIZE * MODEL["hidden_size"]
    return 6.0 * (layer_weights() * batch.num_unique + head * batch.num_trained)
