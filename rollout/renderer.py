"""Messages to token ids and back: ChatML, append-only.

A prompt only ever grows: previous ids + sampled ids + `render_continuation(new messages)`. What the policy
said is never encoded again, so the ids that are trained are the ids that were sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from envs.messages import Message, ToolSpec
from envs.tools import assistant_message

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The Jinja chat template whose one-shot rendering equals `ChatMLRenderer`, for tokenizers of our own."""


class Tokenizer(Protocol):
    """What the renderer needs of a Hugging Face fast tokenizer."""

    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def pad_token_id(self) -> int | None: ...
    def get_vocab(self) -> dict[str, int]: ...
    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]: ...
    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


class ChatMLRenderer:
    """ChatML over a tokenizer that has its two markers as single tokens.

    `<|im_start|>{role}\\n{text}<|im_end|>\\n` for each message, then `<|im_start|>assistant\\n`.
    Markers enter as ids and text as text: a user or a tool that writes "<|im_end|>" gets plain characters.

    A tool message has the role `tool`. Qwen's own template lets the user say it, a run of consecutive tool
    messages in one turn, each between `<tool_response>` tags: `qwen_tool_turns=True` does that.
    """

    def __init__(self, tokenizer: Tokenizer, *, qwen_tool_turns: bool = False) -> None:
        """Raises ValueError when the tokenizer lacks a marker or puts more than one BOS before a text."""
        vocab = tokenizer.get_vocab()
        missing = [token for token in (TURN_START, TURN_END) if token not in vocab]
        if missing:
            raise ValueError(
                f"the tokenizer lacks the special token(s) {', '.join(missing)} that ChatML needs; use a "
                "model whose tokenizer has them, or add them and resize the model's embeddings"
            )
        self._tokenizer = tokenizer
        self._qwen_tool_turns = qwen_tool_turns
        self._start_id, self._end_id = vocab[TURN_START], vocab[TURN_END]
        self._bos_ids = self._find_bos()
        self._after_end = self._encode("\n")
        self._header = [self._start_id, *self._encode("assistant\n")]

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a completion: `<|im_end|>`, and EOS and padding, by which base models stop."""
        ends = (self._end_id, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id)
        return tuple(dict.fromkeys(token_id for token_id in ends if token_id is not None))

    def is_closed(self, token_ids: Sequence[int]) -> bool:
        """Whether a completion ended with `<|im_end|>`; otherwise it was cut, or stopped by another token."""
        return bool(token_ids) and token_ids[-1] == self._end_id

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The opening prompt, the header of the policy's turn last."""
        return (*self._bos_ids, *self._render_turns(messages), *self._header)

    def render_before(self, messages: Sequence[Message], token_ids: Sequence[int]) -> tuple[int, ...]:
        """`token_ids`, an opening prompt and what followed, with more messages before it, behind its BOS."""
        num_bos = len(self._bos_ids)
        return (*token_ids[:num_bos], *self._render_turns(messages), *token_ids[num_bos:])

    def render_continuation(self, messages: Sequence[Message], *, closed: bool) -> tuple[int, ...]:
        """What follows a completion's sampled ids: context, never trained.

        The sampler stops at `<|im_end|>`, but ChatML puts a newline after it: a closed completion is followed
        by that newline, any other by `<|im_end|>` and the newline.

            prompt P, sampled "12" <|im_end|>  ->  P 1 2 <|im_end|> | \\n <|im_start|> tool \\n ...
            prompt P, sampled "12" (cut)       ->  P 1 2 | <|im_end|> \\n <|im_start|> tool \\n ...
        """
        if any(entry.role == "assistant" for entry in messages):
            raise ValueError("a continuation holds an assistant message; what the policy said is sampled ids")
        end = [] if closed else [self._end_id]
        return (*end, *self._after_end, *self._render_turns(messages), *self._header)

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """What a policy that says `text` samples, `<|im_end|>` last: for reference episodes only."""
        return (*self._encode(text), self._end_id)

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec], *, first_call: int = 0) -> Message:
        """The assistant message that a completion says; special tokens are no text.

        `first_call` is the number of calls made before in the episode: call ids go on from it.
        """
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return assistant_message(text, tools, first_id=first_call)

    def _render_turns(self, messages: Sequence[Message]) -> Iterator[int]:
        for role, text in self._turns(messages):
            yield self._start_id
            yield from self._encode(f"{role}\n{text}")
            yield self._end_id
            yield from self._after_end

    def _turns(self, messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
        """(role, text) of each ChatML turn."""
        responses: list[str] = []
        for index, entry in enumerate(messages):
            if entry.tool_calls:
                raise ValueError("a prompt holds an assistant message with parsed calls; give it as text")
            if not (self._qwen_tool_turns and entry.role == "tool"):
                yield entry.role, entry.text
                continue
            responses.append(f"<tool_response>\n{entry.text}\n</tool_response>")
            if index + 1 == len(messages) or messages[index + 1].role != "tool":
                yield "user", "\n".join(responses)
                responses = []

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def _find_bos(self) -> list[int]:
        """The BOS id, once, when the tokenizer itself puts it before a text."""
        bos = self._tokenizer.bos_token_id
        opening = self._tokenizer.encode("a", add_special_tokens=True, split_special_tokens=True)
        count = opening.count(bos) if bos is not None else 0
        if count > 1:
            raise ValueError(
                f"the tokenizer adds {count} BOS tokens (id {bos}) to a text; expected at most one"
            )
        return opening[:count]
