import pytest

from envs.base import Env, WorldError
from envs.messages import Task, message
from envs.tool_env import ToolEnv
from envs.tools import assistant_message, tool

TASK = Task(id="dice-1", env="dice", messages=(message("user", "roll"),), seed=3)


class Dice(ToolEnv):
    teardowns = 0

    @tool
    def roll(self, sides: int) -> str:
        """Roll one die."""
        return str(self.rng.randint(1, sides))

    @tool
    async def score(self) -> str:
        """A tool may have any name that the environment itself does not use."""
        return f"turn {self.turn}"

    @tool
    def crash(self) -> str:
        """The world fails."""
        raise WorldError("table is on fire")

    async def teardown(self):
        self.teardowns += 1


async def say(env: ToolEnv, text: str):
    return await env.step(assistant_message(text, env.tools))


async def rolls(task: Task) -> list[str]:
    env = Dice()
    await env.reset(task)
    return [(await say(env, "[roll 1000000]")).messages[0].text for _ in range(3)]


async def test_an_episode_runs_until_a_message_without_a_call():
    env = Dice()
    assert isinstance(env, Env)
    assert [spec.name for spec in env.tools] == ["roll", "score", "crash"]
    assert await env.reset(TASK) == TASK.messages
    called = await say(env, "[score] [score]")
    assert [m.text for m in called.messages] == ["turn 0", "turn 0"]
    assert not called.done
    assert (await say(env, "[score]")).messages[0].text == "turn 1"
    answered = await say(env, "46")
    assert answered.done
    assert answered.messages == ()
    assert answered.metrics["tool_calls"] == 0


class OneRoll(Dice):
    def is_over(self) -> bool:
        return self.turn == 1

    def turn_reward(self) -> float:
        return 0.5


async def test_the_environment_may_end_the_episode_itself():
    env = OneRoll()
    await env.reset(TASK)
    assert not (await say(env, "[score]")).done
    last = await say(env, "[score]")
    assert (last.done, last.reward, last.messages[0].text) == (True, 0.5, "turn 1")
    with pytest.raises(RuntimeError, match="the environment is done, it must be running"):
        await say(env, "[score]")


async def test_randomness_is_the_tasks_seed_and_nothing_else():
    assert await rolls(TASK) == await rolls(TASK)
    assert await rolls(TASK) != await rolls(Task(id="dice-1", env="dice", messages=(), seed=4))
    row = Task(id="row-1", env="dice", messages=())  # a row of a data set has no seed: its id takes the place
    assert await rolls(row) == await rolls(row)
    assert await rolls(row) != await rolls(Task(id="row-2", env="dice", messages=()))


async def test_an_environment_serves_one_episode():
    env = Dice()
    with pytest.raises(RuntimeError, match=r"Dice.step: the environment is new, it must be running"):
        await say(env, "46")
    await env.reset(TASK)
    with pytest.raises(RuntimeError, match=r"Dice.reset: the environment is running, it must be new"):
        await env.reset(TASK)
    await say(env, "46")
    with pytest.raises(RuntimeError, match="is done"):
        await say(env, "46")
    await env.close()
    with pytest.raises(RuntimeError, match="is closed"):
        await say(env, "46")


@pytest.mark.parametrize(
    "name", ["close", "reset", "step", "final_state", "tools", "rng", "__init__", "say", "_phase"]
)
async def test_the_policy_cannot_reach_what_is_no_tool(name):
    env = Dice()
    await env.reset(TASK)
    result = await say(env, f"[{name}]")
    assert result.messages[0].text.startswith(f"error: unknown tool {name}, ")
    assert not (await say(env, "[score]")).messages[0].is_error  # still running


@pytest.mark.parametrize("name", ["close", "step", "setup", "rng", "task", "_secret"])
def test_a_tool_cannot_take_a_name_of_the_environment(name):
    def function(self) -> str:
        """Doc."""
        return ""

    function.__name__ = name
    with pytest.raises(TypeError, match=f"Bad.{name} cannot be a tool"):
        type("Bad", (ToolEnv,), {name: tool(function)})


async def test_teardown_runs_once_and_after_a_failing_world_too():
    env = Dice()
    await env.reset(TASK)
    with pytest.raises(WorldError, match="table is on fire"):
        await say(env, "[crash]")
    await env.close()
    await env.close()
    assert env.teardowns == 1
    unused = Dice()
    await unused.close()
    assert unused.teardowns == 0  # setup never ran


async def test_setup_that_fails_is_torn_down():
    class Broken(Dice):
        async def setup(self):
            raise WorldError("no sandbox")

    env = Broken()
    with pytest.raises(WorldError):
        await env.reset(TASK)
    await env.close()
    assert env.teardowns == 1


def test_a_subclass_keeps_replaces_and_removes_tools():
    class Quiet(Dice):
        crash = None

        @tool
        def roll(self, sides: int) -> str:
            """Roll a loaded die."""
            return str(sides)

    assert [(spec.name, spec.description[:13]) for spec in Quiet().tools] == [
        ("roll", "Roll a loaded"),
        ("score", "A tool may ha"),
    ]
