"""The policy protocol: token ids in, sampled token ids with their log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingFilters:
    """Which tokens may be drawn at all; the defaults allow every one.

    `top_p` in (0, 1]: the likeliest that together have this probability. `top_k`: so many of the likeliest, 0
    all. `min_p` in [0, 1): those at least this share as likely as the likeliest. A learner does not reproduce
    them: its log-probs are those of the whole distribution.
    """

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


NO_FILTERS = SamplingFilters()


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one completion is sampled.

    `temperature` 0 is greedy (evaluation only). `seed` identifies the request's random stream. Of the first
    `num_routed` tokens of the prompt the experts are known already: they are not returned again.
    """

    max_tokens: int
    temperature: float = 1.0
    filters: SamplingFilters = NO_FILTERS
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    num_routed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Tokens [start, end) of a completion were sampled by policy `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What one request to the policy gave: L sampled ids, the stop token included where one was sampled.

    `logprobs` has length L: log-probability (nats, fp32) of each sampled id under the distribution it was
    sampled from. `version_spans` cover [0, L) without gap or overlap.

    `routed_experts` (R, layers, top_k) int16, from an engine that tells a mixture's routing: the experts of
    R consecutive tokens of prompt and completion. The last row is of the last token but one, since the last
    that was sampled has not gone through the model; a row is -1 where nothing is known.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    routed_experts: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        if len(self.logprobs) != length:
            raise ValueError(
                f"Completion.logprobs has {len(self.logprobs)} entries for {length} token_ids; expected the "
                "log-prob of every sampled token: ask the engine for it, nothing may stand in its place"
            )
        edges = [0, *(span.end for span in self.version_spans)]
        starts = [span.start for span in self.version_spans]
        if starts != edges[:-1] or edges[-1] != length:
            raise ValueError(
                f"version_spans {self.version_spans} do not cover the {length} tokens exactly once"
            )


class Policy(Protocol):
    """Anything that continues a token sequence: a vLLM engine, a transformers model, a script in a test."""

    async def complete(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Completion:
        """Sample a continuation of `prompt_ids`."""
        ...
