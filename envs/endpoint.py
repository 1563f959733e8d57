"""A chat model behind an OpenAI-compatible endpoint: one message asked for, one message back.

Agents that are evaluated (rollout/chat_endpoint.py) and judges (rewards/judge.py) speak through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from envs.base import WorldError

SEED_BITS = 31
"""Of a request's seed: what every server takes."""


class EndpointError(WorldError):
    """The endpoint failed or was too slow; the message never holds the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """Where the model is and how long to wait for it.

    `request_s` is the deadline of one attempt, in seconds; one that failed in a way that may pass (no
    connection, too slow, status 408, 409, 429 or 5xx) is made again at most `num_retries` times, after a
    pause that doubles each time or that the server asks for.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    request_s: float = 60.0
    num_retries: int = 3

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"endpoint {_without_user(self.url)!r}: expected an address like http://localhost:8000/v1"
            )
        if parts.username is not None:
            raise ValueError(
                f"endpoint {_without_user(self.url)!r} holds a user name or password; a key is given by an "
                "environment variable (--endpoint-key-variable)"
            )


def _without_user(url: str) -> str:
    scheme, mark, rest = url.rpartition("://")
    return scheme + mark + rest.rpartition("@")[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model said. Tokens of the prompt and of the reply; 0 where the server does not tell.

    `num_tokens` is what it reports of both together.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    num_tokens: int
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatEndpoint:
    """Asks the endpoint for one message after another; every wait has a deadline."""

    def __init__(self, spec: EndpointSpec) -> None:
        import openai  # a second to import, for whoever has an endpoint

        self.spec = spec
        self._errors = openai.OpenAIError
        self._client = openai.AsyncOpenAI(
            base_url=spec.url,
            api_key=spec.key or "none",  # the client insists on one; servers of one's own ask for none
            timeout=spec.request_s,
            max_retries=spec.num_retries,
        )

    async def say(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        json_mode: bool = False,
    ) -> Reply:
        """The model's next message; `json_mode` asks the server for a JSON object. Raises EndpointError."""
        try:
            answer: Any = await self._client.chat.completions.create(
                model=self.spec.model,
                messages=list(messages),  # pyright: ignore[reportArgumentType]  (the client's own dicts)
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                extra_body={"response_format": {"type": "json_object"}} if json_mode else None,
            )
            choice, usage = answer.choices[0], answer.usage
            finish = "length" if choice.finish_reason == "length" else "stop"
            return Reply(
                text=choice.message.content or "",
                finish_reason=finish,
                num_tokens=usage.total_tokens if usage else 0,
                prompt_tokens=usage.prompt_tokens if usage else 0,
                completion_tokens=usage.completion_tokens if usage else 0,
            )
        except self._errors as error:
            raise EndpointError(self._describe(f"{type(error).__name__}: {error}")) from None
        except (AttributeError, IndexError, TypeError) as error:  # JSON, but no chat completion
            raise EndpointError(self._describe(f"its answer is no chat completion ({error})")) from None

    def _describe(self, problem: str) -> str:
        # A server may quote the key that it did not like.
        if self.spec.key:
            problem = problem.replace(self.spec.key, "[key]")
        return f"endpoint {self.spec.url}, model {self.spec.model}: {problem}"

    async def check(self) -> None:
        """Ask for one token, so that a wrong address, key or model is known before the first episode."""
        hello = [{"role": "user", "content": "Hello"}]
        await self.say(hello, max_tokens=1, temperature=1.0, top_p=1.0, seed=0)

    async def close(self) -> None:
        await self._client.close()
