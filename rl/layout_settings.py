"""Settings of how the learner lays out and computes a batch: speed and memory, not what is learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from rl.overrides import Range

Layout = Literal["trie", "packed", "padded"]


@dataclass(frozen=True, kw_only=True)
class LayoutSettings:
    """The part of a Config that says how batches go through the model. The gradient does not depend on it."""

    layout: Layout = "trie"
    """How the learner computes a batch. trie: what trajectories share once, nothing padded; packed: each
    trajectory by itself, nothing padded; padded: rows of one length. A model that only padded can compute is
    found at the start, and said."""
    micro_batch_tokens: Annotated[int, Range(0)] = 0
    """Tokens in one forward and backward pass, a shared prefix counted once; trajectories are put together
    to fill it. 0: micro_batch_size trajectories instead, which otherwise has no part in it."""
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: less memory, about a
    third more time."""


def layout_problems(config: Any) -> Iterator[str]:
    """What does not fit together, each with what to do."""
    budget, longest = config.micro_batch_tokens, config.context_length
    if budget and config.layout == "padded":
        yield (
            f"micro_batch_tokens = {budget} has no effect with layout = 'padded', whose passes are rows; use "
            "trie or packed, or micro_batch_size"
        )
    elif 0 < budget < longest:
        yield (
            f"micro_batch_tokens = {budget} is less than one trajectory may have (context_length = "
            f"{longest}); use at least {longest}"
        )
    if config.activation_checkpointing and config.replay_routing:
        yield (
            "activation_checkpointing and replay_routing: a layer that is computed again would choose its "
            "experts anew; leave one of them out"
        )
