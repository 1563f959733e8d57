"""Functions written for TRL, verl and OpenRLHF: how they are told apart, what they get, what comes of it."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from trl.rewards import get_soft_overlong_punishment, think_format_reward

from envs.episode import Episode, Score
from envs.messages import StopReason, Task, TextPart, ToolCall, message
from rewards.adapters import adapt, from_file, from_openrlhf, from_trl, from_verl, from_verl_batch
from rewards.forms import DOES_NOT_APPLY, RewardBugError, Sample, group_reward
from tests.finished_run import ROOT

FILES = ROOT / "tests" / "rewards" / "user_rewards"
USER, CALL = message("user", "(1+2)*3"), ToolCall(id="c0", name="calc", arguments={"a": 1}, text="calc 1+2")


def sample(said: str = "9", *, id: str = "s", answer: str | None = "9", **metadata) -> Sample:
    task = Task(id="t", env="calc", messages=(USER,), answer=answer, metadata=metadata)
    spoken = replace(message("assistant", "so "), tool_calls=(CALL,))
    tool = message("tool", "TOOL 3", tool_call_id="c0")
    episode = Episode(
        task=task,
        transcript=(USER, spoken, tool, message("assistant", said)),
        stop_reason=StopReason.ANSWERED,
    )
    return Sample(id=id, episode=episode, token_ids=(5, 6, 7), step=4, num_steps=16)


async def scores(form, *samples) -> list[Score]:
    found = form.score(samples)
    return await found if inspect.isawaitable(found) else found


def verl_own(solution_str, ground_truth, method="strict", format_score=0.0, score=1.0): ...
def verl_full(data_source, solution_str, ground_truth, extra_info=None, **kwargs): ...
def verl_batch(data_sources, solution_strs, ground_truths, extra_infos, **kwargs): ...
def openrlhf(queries, prompts, labels, **kwargs): ...
def trl(prompts, completions, completion_ids, **kwargs): ...
def trl_columns(completions, solution, log_extra=None, **kwargs): ...
async def trl_async(completions, **kwargs): ...
def native(episode): ...
def annotated(it: Episode) -> Score: ...
def listed(them: list[Episode]) -> list[Score]: ...
@group_reward
def marked(episodes): ...


class Exact:
    def __call__(self, completions, **kwargs): ...


@pytest.mark.parametrize(
    ("function", "kind", "is_group", "columns"),
    [
        (verl_own, "verl", False, ("ground_truth",)),
        (verl_full, "verl", False, ("ground_truth",)),
        (verl_batch, "verl batch", True, ("ground_truth",)),
        (openrlhf, "openrlhf", False, ("label",)),
        (trl, "trl", True, ()),
        (trl_columns, "trl", True, ("solution",)),
        (trl_async, "trl", True, ()),
        (think_format_reward, "trl", True, ()),
        (get_soft_overlong_punishment(10, 5), "trl", True, ()),
        (Exact, "trl", True, ()),
        (partial(trl_columns, solution=["9"]), "trl", True, ()),
        (native, "native", False, ()),
        (annotated, "native", False, ()),
        (listed, "native", True, ()),
        (marked, "native", True, ()),
    ],
)
def test_whose_a_function_is_is_read_off_its_parameters(function, kind, is_group, columns):
    form = adapt(function)
    assert (form.kind, form.is_group, form.columns) == (kind, is_group, columns)


def kwargs_alone(**kwargs): ...
def prompts_alone(prompts, **kwargs): ...
def two_of_them(completions, solution_str, ground_truth): ...
def rubric(completions, answers, **kwargs): ...
def rubric_of_one(completion, answer, state): ...


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (kwargs_alone, "is none that is known"),
        (prompts_alone, "is none that is known"),
        (rubric_of_one, "is none that is known"),
        (two_of_them, "could be verl's or TRL's"),
        (rubric, "answers may be columns of the data, as in TRL, or what verifiers gives"),
    ],
)
def test_a_signature_that_is_not_clear_is_refused_with_those_that_are(function, complaint):
    with pytest.raises(ValueError, match=complaint) as refused:
        adapt(function)
    for word in ("(episode) -> Score", "TRL", "verl", "OpenRLHF", "from_trl", "from_verl_batch"):
        assert word in str(refused.value)
    assert from_trl(rubric).columns == ("answers",)


async def test_trl_gets_lists_over_the_group_and_the_columns_of_the_data():
    seen = {}

    def reward(**kwargs):
        seen.update(kwargs)
        kwargs["log_extra"]("note", ["first", "second"])
        kwargs["log_metric"]("length", 2.5)
        return [1.0, None]

    first, second = await scores(
        from_trl(reward, conversational=True), sample(level=1), sample("8", id="z", level=2)
    )
    assert seen["prompts"] == [[{"role": "user", "content": "(1+2)*3"}]] * 2
    call = {"type": "function", "function": {"name": "calc", "arguments": {"a": 1}}}
    assert seen["completions"][1] == [
        {"role": "assistant", "content": "so ", "tool_calls": [call]},
        {"role": "tool", "content": "TOOL 3"},
        {"role": "assistant", "content": "8"},
    ]
    assert seen["completion_ids"] == [[5, 6, 7]] * 2
    assert (seen["level"], seen["answer"], seen["solution"]) == ([1, 2], ["9", "9"], ["9", "9"])
    assert seen["trainer_state"].global_step == 4
    assert (seen["trainer_state"].max_steps, seen["trainer_state"].epoch) == (16, 0.25)
    with pytest.raises(AttributeError, match="it has global_step, max_steps and epoch"):
        _ = seen["trainer_state"].best_metric
    assert first == Score(value=1.0, parts={"length": 2.5}, explanation='{"note": "first"}')
    assert second == DOES_NOT_APPLY


async def test_trl_in_standard_format_has_texts_without_what_tools_said():
    form = from_trl(lambda prompts, completions, **_: [float(len(completions[0]))], conversational=False)
    (score,) = await scores(form, sample())
    assert score.value == len("so [calc 1+2]\n9")


async def test_trls_own_functions_run_unmodified():
    thought = sample("<think>hm</think>9")
    first_turn = replace(thought.episode.transcript[1], content=(TextPart("<think>a</think>b"),))
    told = replace(thought.episode, transcript=(USER, first_turn))
    values = await scores(adapt(think_format_reward), replace(thought, episode=told), sample())
    assert [score.value for score in values] == [1.0, 0.0]
    # 3 sampled ids, of at most 4 with the last 2 punished: (2 - 3) / 2
    (overlong,) = await scores(adapt(get_soft_overlong_punishment(4, 2)), sample())
    assert overlong.value == -0.5


async def test_verl_hears_what_the_policy_said_and_no_tool():
    seen = {}

    def compute_score(data_source, solution_str, ground_truth, extra_info, strict):
        seen.update(locals())
        return {"score": True, "acc": np.float32(0.5), "pred": "9", "nan": float("nan")}

    (score,) = await scores(from_verl(compute_score, strict=True), sample(hint="h"))
    assert seen["solution_str"] == "so [calc 1+2]\n9"
    assert (seen["data_source"], seen["ground_truth"], seen["strict"]) == ("calc", "9", True)
    assert seen["extra_info"] == {
        "hint": "h",
        "num_turns": 2,
        "rollout_reward_scores": {},
        "tool_extra_fields": {},
    }
    assert (score.value, score.parts) == (1.0, {"acc": 0.5})
    assert score.explanation == '{"pred": "9", "nan": NaN}'
    with pytest.raises(ValueError, match=r"nothing gives strict.*REWARD = from_verl\(compute_score, strict="):
        adapt(compute_score)


async def test_each_library_scores_the_same_answers_alike():
    right, wrong = sample("9", id="right"), sample("8", id="wrong")
    for name in (
        "trl.py:exact",
        "verl.py:compute_score",
        "verl.py:compute_scores",
        "openrlhf.py:reward_func",
    ):
        found = await scores(from_file(f"{FILES}/{name}"), right, wrong)
        assert [score.value for score in found] == [1.0, 0.0], name
    (score,) = await scores(from_file(f"{FILES}/openrlhf.py:reward_func"), right)
    assert score.parts == {"scores": 1.0, "length": 1.0}
    (score,) = await scores(from_file(f"{FILES}/verl.py:compute_score"), right)
    assert (score.parts, score.explanation) == ({"turns": 2.0}, '{"pred": "9"}')


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", [1.0], {"score": None}, {"acc": 1}])
async def test_what_is_no_finite_number_leaves_its_sample_alone_unscored(value):
    def compute_scores(data_sources, solution_strs, **kwargs):
        return [0.25, value, 0.75]

    form = from_verl_batch(compute_scores)
    first, second, third = await scores(form, sample(), sample(id="4-2-1"), sample())
    assert (first.value, third.value) == (0.25, 0.75)
    assert (second.value, second.error_kind) == (None, "invalid")
    assert second.error.startswith("reward compute_scores on 4-2-1: returned ")


@pytest.mark.parametrize("value", [None, True])
async def test_bools_count_and_none_leaves_out_where_the_library_says_so(value):
    (verl_score,) = await scores(from_verl(lambda solution_str, ground_truth: value), sample())
    (trl_score,) = await scores(from_trl(lambda completions: [value]), sample())
    assert verl_score.value == trl_score.value == (None if value is None else 1.0)
    assert (verl_score.error_kind, trl_score.error_kind) == ("invalid" if value is None else "", "")


@pytest.mark.parametrize("returned", [[1.0], [1.0] * 3, torch.ones(1), []])
async def test_a_wrong_length_is_raised_with_function_and_counts(returned):
    form = adapt(lambda completions, **_: returned, "mine")
    count = len(returned)
    with pytest.raises(
        RewardBugError, match=f"reward mine returned {count} results, expected 2: one for each"
    ):
        await scores(form, sample(), sample(id="z"))


async def test_a_group_call_that_raises_leaves_every_member_unscored_and_says_so():
    def reward(completions, **kwargs):
        raise KeyError("x")

    found = await scores(adapt(reward), sample(id="a"), sample(id="b"))
    assert [score.error_kind for score in found] == ["exception"] * 2
    assert "reward reward on b: KeyError: 'x'" in found[1].error
    assert "in one call for 2 samples: none has a score" in found[1].error


async def test_ours_may_name_columns_too():
    def one(episode, answer, weight=2.0):
        return Score(value=weight * float(episode.answer == answer))

    def all_of(episodes: list[Episode], level):
        return [Score(value=float(number)) for number in level]

    assert adapt(one).columns == ("answer",)
    assert (await scores(adapt(one), sample()))[0].value == 2.0
    assert [s.value for s in await scores(adapt(all_of), sample(level=3), sample(level=4))] == [3.0, 4.0]


PROMPT = "<|im_start|>user\n(1+2)*3<|im_end|>\n<|im_start|>assistant\n"
TOOL = "<|im_start|>tool\nTOOL 3<|im_end|>\n"


async def test_an_openrlhf_query_begins_with_its_prompt():
    seen = {}

    def reward_func(queries, prompts, labels, **kwargs):
        seen.update(queries=queries, prompts=prompts, labels=labels)
        return {"rewards": torch.tensor([0.5])}

    (score,) = await scores(from_openrlhf(reward_func), sample())
    assert seen == {
        "queries": [f"{PROMPT}so [calc 1+2]<|im_end|>\n{TOOL}<|im_start|>assistant\n9<|im_end|>"],
        "prompts": [PROMPT],
        "labels": ["9"],
    }
    assert score == Score(value=0.5)
