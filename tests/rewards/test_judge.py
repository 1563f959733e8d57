"""A judge behind a real HTTP endpoint: orders, costs, length, and failures that are nobody's zero."""

import asyncio
import json
import re
import threading
import time
from dataclasses import replace

import pytest

from envs.episode import Episode, Score
from envs.messages import StopReason, Task, message
from envs.registry import resolve_env
from rewards.base import Reward, resolve_reward, score_episode
from rewards.judge import judge, length_penalty
from rewards.judge_asking import EndpointAsker
from rewards.judge_file import JudgeSpec
from tests.chat_server import completion, serving

KEY = "sk-very-secret"


def episode(answer="four", reference="4"):
    task = Task(id="t", env="calc", messages=(message("user", "2+2"),), answer=reference)
    return Episode(
        task=task, transcript=(*task.messages, message("assistant", answer)), stop_reason=StopReason.ANSWERED
    )


def spec_of(url, **changes):
    fields = {"mode": "pairwise", "template": "{task}: is {first} better than {second}?", "high": 10.0}
    return JudgeSpec(endpoint=url, model="m", **{**fields, **changes})


async def score(spec, given=None, timeout_s=9.0) -> Score:
    reward = Reward(name="j", fn=judge(spec, EndpointAsker(spec)))
    return await score_episode(reward, given or episode(), timeout_s=timeout_s)


def fields_of(body):
    """The texts of the fields of a question, in order."""
    found = re.findall(r"\[data \w+\](.*?)\[end \w+\]", body["messages"][1]["content"], re.DOTALL)
    return [json.loads(f'"{text}"') for text in found]


def verdict(number, explanation="so"):
    return completion(json.dumps({"score": number, "explanation": explanation}))


async def test_both_orders_are_asked_and_their_mean_is_the_score():
    # Says 9 of 10 for "four" first, and 3 of 10 for "4" first: 7 of 10 for "four". (0.9 + 0.7) / 2 = 0.8.
    with serving(lambda body: verdict(9 if fields_of(body)[1] == "four" else 3)) as server:
        scored = await score(spec_of(server.url))
    assert sorted(map(fields_of, server.requests)) == [["2+2", "4", "four"], ["2+2", "four", "4"]]
    assert scored.value == pytest.approx(8.0)
    assert scored.parts["judge/score"] == pytest.approx(0.8)
    assert scored.parts["judge/order_gap"] == pytest.approx(0.2)
    assert scored.parts["judge/calls"] == 2
    assert scored.explanation == "so\nso"


async def test_a_judge_that_always_prefers_the_first_says_nothing_and_is_found_out():
    with serving(lambda body: verdict(10)) as server:
        scored = await score(spec_of(server.url))
    assert (scored.value, scored.parts["judge/order_gap"]) == (5.0, 1.0)


async def test_agreement_means_the_same_in_both_orders():
    with serving(lambda body: verdict(9 if fields_of(body)[1] == "four" else 7)) as server:
        scored = await score(spec_of(server.url, mode="agreement"))
    assert scored.value == pytest.approx(8.0)
    assert scored.parts["judge/order_gap"] == pytest.approx(0.2)


async def test_one_answer_is_asked_about_once_and_what_it_cost_is_counted():
    usage = {"prompt_tokens": 70, "completion_tokens": 8, "total_tokens": 78}

    def answer(body):
        status, said = verdict(2)
        return status, {**said, "usage": usage}

    with serving(answer) as server:
        scored = await score(spec_of(server.url, mode="pointwise", template="Rate {answer}", low=-10.0))
    assert scored == Score(
        value=pytest.approx(2.0),
        parts={
            "judge/score": pytest.approx(0.6),  # (2 + 10) / 20
            "judge/calls": 1,
            "judge/prompt_tokens": 70,
            "judge/completion_tokens": 8,
        },
        explanation="so",
    )


async def test_requests_are_greedy_and_their_seeds_are_the_episodes_own():
    with serving(lambda body: verdict(5)) as server:
        spec = spec_of(server.url, json_mode=True)
        for given in (episode(), episode(), episode("five")):
            await score(spec, given)
    seeds = [{body["seed"] for body in server.requests[at : at + 2]} for at in (0, 2, 4)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert len(seeds[0]) == 2  # one an order
    assert {body["temperature"] for body in server.requests} == {0}
    assert server.requests[0]["response_format"] == {"type": "json_object"}


async def test_what_cannot_be_read_leaves_unscored_with_its_text_and_is_not_asked_again():
    with serving(lambda body: completion("I love it")) as server:
        scored = await score(spec_of(server.url))
    assert scored.value is None
    assert scored.error_kind == "judge"
    assert scored.explanation == "I love it"
    assert "reward j: JudgeError: its reply cannot be read: it is not one JSON object" in (scored.error or "")
    assert len(server.requests) == 2


async def test_a_cut_reply_says_what_cut_it():
    with serving(lambda body: completion('{"score": 1', finish_reason="length")) as server:
        scored = await score(spec_of(server.url, max_tokens=3))
    assert "its reply, cut at max_tokens = 3, cannot be read" in (scored.error or "")


async def test_transport_errors_are_retried_and_then_the_episode_is_unscored(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    tries = []

    def answer(body):
        tries.append(1)
        return (503, {"error": KEY}) if len(tries) < 3 else verdict(10)

    options = {"mode": "pointwise", "template": "Rate {answer}", "key_variable": "JUDGE_KEY"}
    with serving(answer) as server:
        assert (await score(spec_of(server.url, num_retries=2, **options))).value == 10.0
        assert len(tries) == 3
        tries.clear()
        lost = await score(spec_of(server.url, num_retries=1, **options))
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert (lost.value, lost.error_kind, len(tries)) == (None, "judge", 2)
    assert KEY not in (lost.error or "")


@pytest.mark.alone
async def test_a_slow_judge_is_unscored_at_its_deadline():
    def answer(body):
        time.sleep(3)
        return verdict(1)

    with serving(answer) as server:
        started = time.monotonic()
        scored = await score(spec_of(server.url), timeout_s=0.5)
    assert scored.value is None
    assert "no result after 0.5 s" in (scored.error or "")
    assert time.monotonic() - started < 2.5


async def test_no_more_than_num_concurrent_are_asked_at_once():
    lock, running, most = threading.Lock(), 0, 0

    def answer(body):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return verdict(1)

    with serving(answer) as server:
        spec = spec_of(server.url, num_concurrent=3)
        fn = judge(spec, EndpointAsker(spec))
        scores = await asyncio.gather(*(fn(episode(str(number))) for number in range(8)))
    assert {scored.value for scored in scores} == {5.0}
    assert most == 3


async def test_a_task_without_an_answer_is_unscored_and_says_so():
    with serving(lambda body: verdict(1)) as server:
        scored = await score(spec_of(server.url), episode(reference=None))
    assert scored.error_kind == "judge"
    assert "task t has no answer" in (scored.error or "")
    assert server.requests == []


async def test_a_longer_answer_pays_for_its_length_and_only_where_that_is_asked():
    # 24 characters against 4, scale 20: 0.3 * tanh(1) = 0.22848; 10 * (0.5 - 0.22848) = 2.7152
    spec = spec_of("http://x/v1", length_coef=0.3, length_scale=20.0)
    long = episode("x" * 24, "four")
    assert length_penalty(spec, long) == pytest.approx(0.228478, abs=1e-6)
    assert length_penalty(spec, episode("four", "x" * 24)) == pytest.approx(-0.228478, abs=1e-6)
    assert length_penalty(spec_of("http://x/v1"), long) == 0.0
    with serving(lambda body: verdict(5)) as server:
        scored = await score(replace(spec, endpoint=server.url), long)
    assert scored.value == pytest.approx(2.7152, abs=1e-4)
    assert scored.parts["judge/length_penalty"] == pytest.approx(0.228478, abs=1e-6)
    assert scored.parts["judge/score"] == 0.5  # what the judge said


async def test_success_is_the_environments_own(tmp_path):
    with serving(lambda body: verdict(1)) as server:
        path = tmp_path / "judge.json"
        path.write_text(json.dumps({"endpoint": server.url, "model": "m", "template": "Rate {answer}"}))
        reward = resolve_reward(f"judge:{path}", resolve_env("calc"))
        task = resolve_env("calc").make_task(1, 0)
        said = replace(episode("no"), task=task, final_state={"operations": []})
        scored = await score_episode(reward, said, timeout_s=9)
    assert (scored.value, scored.success) == (1.0, 0.0)


async def test_a_judge_of_ones_own_policy_is_unscored_where_there_is_none(tmp_path):
    path = tmp_path / "judge.json"
    path.write_text(json.dumps({"policy": "self", "template": "Is {answer} right?"}))
    reward = resolve_reward(f"shuffled:judge:{path}", resolve_env("calc"))
    assert (reward.name, reward.shuffled) == (f"shuffled:judge:{path}", True)
    scored = await score_episode(reward, episode(), timeout_s=1)
    assert (scored.value, scored.error_kind) == (None, "judge")
    assert "no engine of ours runs here" in (scored.error or "")
