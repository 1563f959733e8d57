"""What vLLM gives back for one request, as a Completion."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, isfinite
from typing import Any

import numpy as np

from envs.base import EngineRequestError
from envs.policy import Completion, FinishReason, SamplingFilters, VersionSpan

ROOM_FOR_TIES = 8
"""Alternatives asked for beyond top_k: vLLM may keep every token that ties with the last of the top k, as
happens in bfloat16."""

MISSING = 1e-4
"""Probability that kept ids may lack before they count as incomplete: a gap of as many nats, the limit of
float32 (rl/config.py, GAP_LIMITS)."""


def num_alternatives(filters: SamplingFilters) -> int:
    """How many alternatives to ask vLLM for, beside the sampled token."""
    return filters.top_k + ROOM_FOR_TIES if filters.return_kept else 0


FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}
"""vLLM's words (0.32, v1/engine: FinishReason) to ours; `error` is a failure, `repetition` not asked for."""


def completion_of(
    output: Any,
    *,
    return_kept: bool,
    routed_experts: np.ndarray | None = None,
    version: int | None = None,
) -> Completion:
    """A finished vLLM CompletionOutput, its log-probs those of `logprobs_mode="processed_logprobs"`.

    `version` is that of the adapter which sampled all of it; None: vLLM's own labels count.

    Raises:
        EngineRequestError: vLLM ended the request for a reason that is no end of a completion.
        ValueError: kept ids are asked for, and vLLM gave too few alternatives to name all of them.
    """
    if output.finish_reason not in FINISH_REASONS:
        raise EngineRequestError(f"vLLM ended the request with {output.finish_reason!r}")
    token_ids = tuple(output.token_ids)
    return Completion(
        token_ids=token_ids,
        logprobs=tuple(
            float(entry[token].logprob) for token, entry in zip(token_ids, output.logprobs, strict=True)
        ),
        version_spans=_spans(output)
        if version is None
        else (VersionSpan(version=version, start=0, end=len(token_ids)),),
        finish_reason=FINISH_REASONS[output.finish_reason],
        kept_ids=tuple(_kept(entry) for entry in output.logprobs) if return_kept else None,
        routed_experts=routed_experts,
    )


def _spans(output: Any) -> tuple[VersionSpan, ...]:
    return tuple(
        VersionSpan(version=int(span.version), start=span.start, end=span.end)
        for span in output.weight_versions
    )


def _kept(entry: Mapping[int, Any]) -> tuple[int, ...]:
    """The ids of one place that could be drawn, in order: filters leave the others a log-prob of -inf."""
    kept = {token: float(one.logprob) for token, one in entry.items() if isfinite(one.logprob)}
    total = sum(map(exp, kept.values()))
    if abs(total - 1) > MISSING:
        raise ValueError(
            f"the {len(kept)} ids that vLLM returned have probability {total:.6f} together, expected 1: more "
            f"than {ROOM_FOR_TIES} tokens tie with the last of the top k; lower top_k, or use float32 engines"
        )
    return tuple(sorted(kept))
