"""check_env: a sound environment passes; each way to be unsound is found and named."""

import random
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from envs.check import EnvContractError, check_env
from envs.episode import Score
from envs.messages import StepResult
from envs.registry import Lengths, resolve_env
from envs.tasks.calc import ENV, CalcEnv
from envs.tools import ToolError, tool


def violations(definition, **options) -> str:
    with pytest.raises(EnvContractError) as caught:
        check_env(definition, levels=[1], **{"num_seeds": 4, **options})
    return "\n".join(caught.value.violations)


def with_env(**attributes):
    return replace(ENV, make_env=type("BadEnv", (CalcEnv,), attributes))


def test_calc_keeps_the_contract():
    check_env(ENV, num_seeds=24)


def test_an_environment_whose_score_is_async_keeps_the_contract():
    async def score(episode):
        return ENV.score(episode)

    check_env(replace(ENV, score=score), levels=[1], num_seeds=4)


def test_an_environment_in_a_users_file_can_be_checked(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        dedent("""
        from dataclasses import replace
        from envs.tasks.calc import ENV as CALC
        NAME = __file__ + ":ENV"
        make_task = lambda level, seed: replace(CALC.make_task(level, seed), env=NAME)
        ENV = replace(CALC, name=NAME, make_task=make_task)
        """)
    )
    check_env(resolve_env(f"{file}:ENV"), levels=[2], num_seeds=4)


def test_tasks_that_differ_between_processes_are_found(tmp_path: Path):
    file = tmp_path / "salted.py"
    file.write_text(
        dedent("""
        from dataclasses import replace
        from envs.tasks.calc import ENV as CALC
        NAME = __file__ + ":ENV"
        def make_task(level, seed):
            return replace(CALC.make_task(level, seed), env=NAME, id=f"{seed}-{hash(str(seed))}")
        ENV = replace(CALC, name=NAME, make_task=make_task)
        """)
    )
    assert violations(resolve_env(f"{file}:ENV")) == "make_task gave other tasks in another process"


def test_a_name_that_leads_nowhere_is_found():
    lost = replace(ENV, name="lost", make_task=lambda *at: replace(ENV.make_task(*at), env="lost"))
    assert "its name does not lead back to it: unknown environment 'lost'" in violations(lost)


def test_impure_tasks_are_found():
    draws = iter(range(10**6))
    impure = replace(
        ENV, make_task=lambda level, seed: replace(ENV.make_task(level, seed), answer=str(next(draws)))
    )
    assert "gave two different tasks" in violations(impure)


def test_tasks_that_say_something_else_of_themselves_are_found():
    found = violations(replace(ENV, make_task=lambda level, seed: replace(ENV.make_task(2, seed), id="x")))
    assert "says env='calc', level=2" in found
    assert "task id 'x' names two seeds" in found


def test_metadata_that_no_record_can_hold_is_found():
    def make_task(level, seed):
        task = ENV.make_task(level, seed)
        return replace(task, metadata={**task.metadata, "pair": (1, 2), "at": {1: 2}})

    assert "metadata changes when written as JSON" in violations(replace(ENV, make_task=make_task))


def test_held_out_tasks_that_are_trained_on_are_found():
    def make_task(level, seed):
        return replace(ENV.make_task(level, seed % 2**61), seed=seed, id=str(seed))

    assert "is also trained on" in violations(replace(ENV, make_task=make_task))


def test_a_reference_player_that_fails_is_found():
    found = violations(replace(ENV, reference=lambda task, _: "0"))
    assert "the reference player scored 0.0" in found
    found = violations(replace(ENV, reference=lambda task, _: {}["plan"]))
    assert "reference solves: raised KeyError: 'plan'" in found


def test_lengths_that_are_too_short_are_found():
    short = Lengths(prompt_chars=8, turns=9, turn_chars=11, reply_chars=1)
    found = violations(replace(ENV, lengths=lambda level: short))
    assert "lengths(1).prompt_chars is 8, needed 9" in found
    assert "lengths(1).turn_chars is 11, needed 12" in found
    assert "lengths(1).reply_chars is 1, needed" in found


def test_rewarded_silence_and_hacks_are_found():
    found = violations(replace(ENV, score=lambda episode: Score(value=1.0)))
    assert "the wrong player 'silence' scored 1.0" in found
    assert "the wrong player 'mental_arithmetic' scored 1.0" in found
    found = violations(
        replace(ENV, score=lambda episode: replace(s := ENV.score(episode), value=max(s.value, 0.1)))
    )
    assert "'echo' scored 0.1" in found
    assert "'silence'" not in found  # less than 1 for nothing may be


def test_state_that_episodes_share_is_found():
    shared = random.Random(0)

    def final_state(self):
        return {"operations": list(self.operations), "draw": shared.random()}

    assert "the episode went differently beside others" in violations(with_env(final_state=final_state))


def test_global_randomness_is_found():
    async def setup(self):
        await CalcEnv.setup(self)
        random.random()

    assert "global random state was touched" in violations(with_env(setup=setup))


def test_an_environment_that_serves_twice_is_found():
    found = violations(with_env(_require=lambda self, phase, verb: None))
    assert "a second reset was accepted" in found
    assert "a step after the end was accepted" in found
    assert "a step after close was accepted" in found


def test_tools_that_change_are_found():
    specs = CalcEnv().tools
    changing = property(lambda self: specs if not hasattr(self, "task") else specs[:1])
    assert "tools changed during the episode" in violations(with_env(tools=changing))


def test_bad_calls_that_are_swallowed_or_crash_are_found():
    async def swallow(self, action):
        return StepResult(done=True)

    assert "'[no_such_tool 1]' was answered by ()" in violations(with_env(step=swallow))

    async def crash(self, action):
        if any(call.name == "close" for call in action.tool_calls):
            raise KeyError("close")
        return await CalcEnv.step(self, action)

    assert "bad calls are told: raised KeyError: 'close'" in violations(with_env(step=crash))

    async def shrug(self, action):
        result = await CalcEnv.step(self, action)
        return replace(result, messages=tuple(replace(m, is_error=False) for m in result.messages))

    assert "expected an error message" in violations(with_env(step=shrug))


def test_all_violations_come_at_once():
    @tool
    def calc(self, expression: str) -> str:
        """Broken."""
        raise ToolError("broken")

    found = violations(replace(with_env(calc=calc), score=lambda episode: Score(value=0.5)))
    assert "level 1, reference solves: calc-1-" in found
    assert "level 1, wrong players fail: calc-1-" in found


def test_a_wrong_request_is_refused():
    with pytest.raises(ValueError, match="unknown level"):
        check_env(ENV, levels=[7])
    with pytest.raises(ValueError, match="num_seeds is 0"):
        check_env(ENV, num_seeds=0)
