"""The policy protocol: token ids in, sampled token ids with their log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

FinishReason = Literal["stop", "length", "abort"]

MAX_KEPT = 20
"""The largest top_k whose ids are returned: as many alternatives as vLLM gives by default (max_logprobs)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingFilters:
    """Which tokens may be drawn at all; the defaults allow every one.

    `top_p` in (0, 1]: the likeliest that together have this probability. `top_k`: so many of the likeliest, 0
    all. `min_p` in [0, 1): those at least this share as likely as the likeliest. A learner does not reproduce
    them, its log-probs are those of the whole distribution, unless `return_kept` asks every completion for
    the ids that could be drawn (Keep Sampling Mask, DeepSeek-V3.2, arXiv 2512.02556, section 3.1).

    Raises:
        ValueError: return_kept with a top_k outside 1 to MAX_KEPT.
    """

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    return_kept: bool = False

    def __post_init__(self) -> None:
        if self.return_kept and not 1 <= self.top_k <= MAX_KEPT:
            raise ValueError(
                f"return_kept with top_k = {self.top_k}: expected 1 to {MAX_KEPT}, so that the ids that "
                "could be drawn are few enough to be returned; set top_k"
            )


NO_FILTERS = SamplingFilters()


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one completion is sampled.

    `temperature` 0 is greedy (evaluation only). `seed` identifies the request's random stream. Of the first
    `num_routed` tokens of the prompt the experts are known already: they are not returned again. Where
    `allowed_token_ids` are given, nothing else may be drawn and the log-probs are normalised over them: a
    judge's verdict (rewards/judge.py), never training.

    Raises:
        ValueError: filters.return_kept with temperature 0: nothing is drawn.
    """

    max_tokens: int
    temperature: float = 1.0
    filters: SamplingFilters = NO_FILTERS
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    num_routed: int = 0
    allowed_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.filters.return_kept and self.temperature == 0:
            raise ValueError("return_kept with temperature 0: greedy draws nothing; leave return_kept out")


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
    sampled from. `version_spans` cover [0, L) without gap or overlap. `kept_ids`, where they were asked for
    (SamplingFilters.return_kept): L tuples, the distinct ids that could be drawn at each place, the sampled
    one among them.

    `routed_experts` (R, layers, top_k) int16, from an engine that tells a mixture's routing: the experts of
    R consecutive tokens of prompt and completion. The last row is of the last token but one, since the last
    that was sampled has not gone through the model; a row is -1 where nothing is known.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    kept_ids: tuple[tuple[int, ...], ...] | None = None
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
        if self.kept_ids is not None:
            self._check_kept(self.kept_ids)

    def _check_kept(self, kept_ids: tuple[tuple[int, ...], ...]) -> None:
        if len(kept_ids) != len(self.token_ids):
            raise ValueError(
                f"Completion.kept_ids has {len(kept_ids)} entries for {len(self.token_ids)} token_ids; "
                "expected the ids that could be drawn for every sampled token"
            )
        for place, (token, kept) in enumerate(zip(self.token_ids, kept_ids, strict=True)):
            if token not in kept or len(set(kept)) != len(kept):
                raise ValueError(
                    f"Completion.kept_ids at {place} is {kept} for the sampled token {token}; expected "
                    "distinct ids, the sampled one among them: the engine drew it, so it could be drawn"
                )


class Policy(Protocol):
    """Anything that continues a token sequence: a vLLM engine, a transformers model, a script in a test."""

    async def complete(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Completion:
        """Sample a continuation of `prompt_ids`."""
        ...
