"""An episode's messages in the forms in which other libraries hand them to a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envs.episode import Episode
from envs.messages import Message, StopReason

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
"""ChatML's markers, by which rollout/renderer.py renders the ids that the policy sees."""

ASSISTANT = f"{TURN_START}assistant\n"

CUT = (StopReason.MAX_TURN_TOKENS, StopReason.MAX_TOTAL_TOKENS, StopReason.CONTEXT_LIMIT)
"""How an episode ends whose last message is a turn that was cut before its end marker."""


def split(episode: Episode) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """What was said before the policy first spoke, and all from there on; one that never spoke said ""."""
    roles = [entry.role for entry in episode.transcript]
    first = roles.index("assistant") if "assistant" in roles else len(roles)
    return episode.transcript[:first], episode.transcript[first:] or (Message(role="assistant"),)


def as_messages(entries: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them."""
    return [_message(entry) for entry in entries]


def _message(entry: Message) -> dict[str, Any]:
    chat: dict[str, Any] = {"role": entry.role, "content": entry.text}
    if entry.tool_calls:
        functions = [{"name": call.name, "arguments": dict(call.arguments)} for call in entry.tool_calls]
        chat["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return chat


def as_text(entries: Sequence[Message]) -> str:
    """What was written, of the prompt's messages or by the policy; a tool's reply is not the policy's."""
    return "\n".join(_with_calls(entry) for entry in entries if entry.role != "tool")


def chatml(episode: Episode) -> tuple[str, str]:
    """The prompt, and prompt and response, as their ids are decoded with special tokens: ChatML.

        <|im_start|>user\\n1+2<|im_end|>\\n<|im_start|>assistant\\n          and then          3<|im_end|>

    The last turn has no end marker where the policy was stopped before it. A BOS of the tokenizer is no part.
    """
    before, after = split(episode)
    prompt = "".join(_turn(entry) for entry in before) + ASSISTANT
    if len(before) == len(episode.transcript):  # the policy never spoke
        return prompt, prompt
    told = "".join(_turn(entry) for entry in after).removeprefix(ASSISTANT).removesuffix("\n")
    if after[-1].role != "assistant":
        return prompt, f"{prompt}{told}\n{ASSISTANT}"
    return prompt, prompt + (told.removesuffix(TURN_END) if episode.stop_reason in CUT else told)


def _turn(entry: Message) -> str:
    return f"{TURN_START}{entry.role}\n{_with_calls(entry)}{TURN_END}\n"


def _with_calls(entry: Message) -> str:
    """A message's text, and its calls in brackets as made."""
    return entry.text + "".join(f"[{call.text}]" for call in entry.tool_calls)
