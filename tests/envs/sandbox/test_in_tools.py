"""What a policy does wrong in a sandbox is its observation; limits and times that are none are refused."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Any

import pytest

from envs.messages import Message, Task, message
from envs.sandbox.base import Limits, Sandbox
from envs.sandbox.blocking import factory
from envs.sandbox.sql import SqlError
from envs.tool_env import ToolEnv
from envs.tools import ToolError, assistant_message, tool


class Analyst(ToolEnv):
    """Reads a database and files of its sandbox."""

    async def setup(self) -> None:
        connection = sqlite3.connect(":memory:")
        connection.executescript("CREATE TABLE item(name); INSERT INTO item VALUES ('tea')")
        self.box = await Sandbox.open(Limits(wall_s=5), files={"data.db": connection.serialize()})

    @tool
    async def query(self, sql: str) -> str:
        """Rows of a statement."""
        return str(await self.box.sql(sql))

    @tool
    async def read(self, path: str) -> str:
        """A file."""
        return (await self.box.read_file(path)).decode()

    async def teardown(self) -> None:
        await self.box.close()


async def replies_to(*said: str) -> list[Message]:
    env = Analyst()
    await env.reset(Task(id="t", env="analyst", messages=(message("user", "?"),)))
    try:
        results = [await env.step(assistant_message(text, env.tools)) for text in said]
    finally:
        await env.close()
    return [result.messages[0] for result in results]


async def test_a_bad_statement_or_path_is_an_observation_and_the_episode_goes_on():
    denied, typo, missing, rows = await replies_to(
        "[query DELETE FROM item]", "[query SELEC 1]", "[read nothing.txt]", "[query SELECT * FROM item]"
    )
    assert [reply.is_error for reply in (denied, typo, missing, rows)] == [True, True, True, False]
    assert denied.text == "error: not allowed: DELETE; reading is all there is"
    assert "syntax error" in typo.text
    assert "cannot read 'nothing.txt'" in missing.text
    assert rows.text == "[('tea',)]"


def test_every_error_of_a_statement_is_a_tool_error():
    assert all(issubclass(kind, ToolError) for kind in SqlError.__subclasses__())


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        ("wall_s", 86_400),
        ("cpu_s", 86_400),
        ("mem_mb", 1 << 20),
        ("procs", 4096),
        ("disk_mb", 1 << 20),
        ("files", 10_000_000),
        ("output_kb", 1 << 20),
    ],
)
def test_a_limit_has_a_most(limit: str, most: int):
    allowed: dict[str, Any] = {limit: most}
    assert getattr(Limits(**allowed), limit) == most
    with pytest.raises(ValueError, match=rf"Limits.{limit} is {most + 1}; expected at most {most}"):
        replace(Limits(), **allowed | {limit: most + 1})


@pytest.mark.parametrize("timeout", ["5", 0, -1, True, float("nan"), [1]])
def test_a_timeout_that_is_no_number_above_0_is_refused(timeout: Any):
    with pytest.raises(ValueError, match=r"timeout is .*; expected seconds above 0"):
        factory().run("print(1)", timeout=timeout)
