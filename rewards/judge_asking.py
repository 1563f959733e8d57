"""Whom a judge's question goes to: a chat model behind an endpoint, or a Policy of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Protocol

from envs.base import JudgeError
from envs.endpoint import ChatEndpoint, EndpointError
from envs.messages import Message, message
from envs.policy import Policy, SamplingParams
from rewards.judge_file import JudgeSpec
from rewards.judge_prompt import Piece, Reply, as_message, instructions, parse_verdict, seed_of

KEPT_CHARS = 1000
"""Of a reply that could not be read, in the error."""


class Asker(Protocol):
    """Answers one question with a Reply, or raises JudgeError."""

    async def ask(self, pieces: Sequence[Piece]) -> Reply: ...


class Renders(Protocol):
    """What asking a Policy needs of the renderer (rollout/renderer.py: ChatMLRenderer)."""

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]: ...
    def completion_ids(self, text: str) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPolicy:
    """A Policy that may be asked to judge, and how text becomes its ids."""

    policy: Policy
    renderer: Renders
    context_length: int


class EndpointAsker:
    """Asks a chat model for a JSON object; transport errors are retried by the client, and only they."""

    def __init__(self, spec: JudgeSpec) -> None:
        self._spec = spec
        self._endpoint: ChatEndpoint | None = None

    async def ask(self, pieces: Sequence[Piece]) -> Reply:
        spec = self._spec
        if self._endpoint is None:  # of the loop that asks
            self._endpoint = ChatEndpoint(spec.endpoint_spec())
        chat = [
            {"role": "system", "content": instructions(spec.low, spec.high)},
            {"role": "user", "content": as_message(pieces)},
        ]
        try:
            reply = await self._endpoint.say(
                chat,
                max_tokens=spec.max_tokens,
                temperature=spec.temperature,
                top_p=1.0,
                seed=seed_of(pieces),
                json_mode=spec.json_mode,
            )
        except EndpointError as error:
            raise JudgeError(str(error)) from error
        try:
            score, explanation = parse_verdict(reply.text, spec.low, spec.high)
        except ValueError as error:
            cut = f", cut at max_tokens = {spec.max_tokens}," if reply.finish_reason == "length" else ""
            said = reply.text[:KEPT_CHARS]
            raise JudgeError(f"its reply{cut} cannot be read: {error}; it said {said!r}", said) from None
        return Reply(
            share=(score - spec.low) / (spec.high - spec.low),
            explanation=explanation,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )


class PolicyAsker:
    """Asks a Policy for the probability of the first of two labels, given that it says one of them.

    Raises:
        ValueError: a label is not one token, or the question leaves no room for an answer.
    """

    def __init__(self, spec: JudgeSpec, own: OwnPolicy) -> None:
        self._own = own
        self._yes, self._no = label_ids(spec.labels, own.renderer)

    async def ask(self, pieces: Sequence[Piece]) -> Reply:
        prompt_ids = question_ids(pieces, self._own.renderer)
        if len(prompt_ids) >= self._own.context_length:
            raise JudgeError(
                f"the question has {len(prompt_ids)} tokens, and the engine takes "
                f"{self._own.context_length - 1} before an answer; lower max_chars, shorten the template or "
                "raise context_length"
            )
        # At temperature 1 the log-prob is the model's own; whichever label is drawn, it tells of both.
        sampling = SamplingParams(
            max_tokens=1,
            temperature=1.0,
            seed=seed_of(pieces),
            allowed_token_ids=(self._yes, self._no),
        )
        completion = await self._own.policy.complete(prompt_ids, sampling)
        if len(completion.token_ids) != 1 or completion.token_ids[0] not in (self._yes, self._no):
            raise JudgeError(f"the engine answered {completion.token_ids}, expected one of the two labels")
        drawn = exp(completion.logprobs[0])
        share = drawn if completion.token_ids[0] == self._yes else 1.0 - drawn
        return Reply(share=min(max(share, 0.0), 1.0), prompt_tokens=len(prompt_ids), completion_tokens=1)


class Nobody:
    """In the place of a policy of our own where there is none: nothing is scored, and the error says why."""

    async def ask(self, pieces: Sequence[Piece]) -> Reply:
        raise JudgeError('policy = "self": no engine of ours runs here that could be asked; name an endpoint')


def label_ids(labels: Sequence[str], renderer: Renders) -> tuple[int, int]:
    """The ids of two labels. Raises ValueError for one that is not a token of its own."""
    yes, no = (renderer.completion_ids(label)[:-1] for label in labels)
    for label, ids in zip(labels, (yes, no), strict=True):
        if len(ids) != 1:
            raise ValueError(
                f"choices: {label!r} is {len(ids)} tokens here, expected one; give two texts that the "
                "policy's tokenizer has as tokens"
            )
    if yes == no:
        raise ValueError(f"choices: {labels[0]!r} and {labels[1]!r} are one token here, expected two")
    return yes[0], no[0]


def question_ids(pieces: Sequence[Piece], renderer: Renders) -> tuple[int, ...]:
    """A question as a user's turn, and the header of the reply.

    Each piece is encoded apart and as plain text: no token spans the edge of a field, and no marker that a
    text spells becomes one.

        <|im_start|> user \\n | Is " | no\\" | " polite? | <|im_end|> \\n <|im_start|> assistant \\n
    """
    opening = renderer.render([message("user", "")])
    end_id = renderer.completion_ids("")[-1]
    at = len(opening) - 1 - opening[::-1].index(end_id)
    inside = (token for piece in pieces for token in renderer.completion_ids(piece.text)[:-1])
    return (*opening[:at], *inside, *opening[at:])
