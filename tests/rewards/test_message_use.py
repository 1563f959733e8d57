"""TRL functions get messages or texts as they were written for, and OpenRLHF's the text that was sampled."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from trl.rewards import get_soft_overlong_punishment, think_format_reward

from envs.messages import StopReason
from rewards.adapters import adapt, from_trl
from rewards.chat_text import chatml
from rewards.message_use import reads_messages
from rewards.weighted import weighted
from tests.rewards.test_adapters import sample, scores
from tests.scripted import RENDERER, TASK, TOKENIZER, Script, episode, reference_lines


def quick_start(completions, **kwargs):
    """TRL's own first example: content of role."""
    return [-abs(20 - len(completion)) for completion in completions]


def nested(completions, **kwargs):
    def text_of(completion):
        return completion[0]["content"]

    return [float(len(text_of(completion))) for completion in completions]


def _text_of(completion):
    return "".join(message["content"] for message in completion if message.get("role") == "assistant")


def by_helper(completions, **kwargs):
    return [float(len(_text_of(completion))) for completion in completions]


def local_name(completions, **kwargs):
    return [float(content.count("9")) for content in completions]


def decorated(function):
    def wrapper(completions, **kwargs):
        return function(completions=completions, **kwargs)

    return wrapper


class Counts:
    def __call__(self, completions, **kwargs):
        return [self._one(completion) for completion in completions]

    def _one(self, completion):
        return float(len(completion[-1]["content"]))


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (quick_start, ""),
        (local_name, ""),
        (get_soft_overlong_punishment(10, 5), ""),
        (think_format_reward, "content"),
        (nested, "content"),
        (by_helper, "content"),
        (decorated(nested), "content"),
        (decorated(quick_start), ""),
        (Counts(), "content"),
        (Counts().__call__, "content"),
        (partial(by_helper, knob=1), "content"),
        (len, ""),
    ],
)
def test_code_that_names_a_field_of_a_message_is_given_messages(function, wanted):
    assert reads_messages(function) == wanted


async def test_trls_first_example_gets_texts_and_one_that_reads_content_gets_messages():
    told = "so [calc 1+2]\n9"
    (texts,) = await scores(adapt(quick_start), sample())
    assert texts.value == -abs(20 - len(told))
    (messages,) = await scores(adapt(by_helper), sample())
    assert messages.value == len("so 9")


async def test_what_was_decided_is_said_and_may_be_overruled():
    assert adapt(quick_start).note == (
        "quick_start gets completions as texts: its code names no field of a message; "
        "from_trl(quick_start, conversational=True) gives messages"
    )
    assert "gets completions as messages: its code names 'content'" in adapt(nested).note
    assert "quick_start gets" in weighted({"a": (quick_start, 1.0)}).note
    overruled = from_trl(quick_start, conversational=True)
    assert overruled.note.endswith("messages: from_trl(..., conversational=True) says so")
    (score,) = await scores(overruled, sample())
    assert score.value == -abs(20 - 3)  # two turns and a tool's reply


async def test_a_query_is_the_text_of_the_ids_that_were_read_and_sampled():
    played = await episode(Script(*reference_lines(TASK)))
    ids = [token for turn in played.turns for token in (*turn.context_ids, *turn.completion.token_ids)]
    prompt, query = chatml(played.episode)
    assert prompt == TOKENIZER.decode(list(RENDERER.render(TASK.messages)), skip_special_tokens=False)
    assert query == TOKENIZER.decode(ids, skip_special_tokens=False)
    assert len(played.turns) > 2
    cut = replace(played.episode, stop_reason=StopReason.MAX_TURN_TOKENS)
    assert chatml(cut)[1] == query.removesuffix("<|im_end|>")


def test_a_query_of_a_policy_that_never_spoke_is_its_prompt():
    silent = replace(sample().episode, transcript=sample().episode.transcript[:1])
    prompt, query = chatml(silent)
    assert query == prompt == "<|im_start|>user\n(1+2)*3<|im_end|>\n<|im_start|>assistant\n"
