"""What a run suggests at its end can be run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from envs.registry import resolve_env, split_level
from recipes.training import _next_commands
from rl.config import Config


@pytest.mark.parametrize("env", ["calc", "arith", "grid", "guess", "coding"])
def test_the_next_commands_name_levels_that_exist_and_keep_the_runs_own(env: str) -> None:
    levels = resolve_env(env).levels
    for level in levels:
        again, _, onward = _next_commands(Config(env=env, level=level), "calc_grpo", Path("step"))
        if (env, level) == ("calc", 1):
            assert "--env" not in again
        else:
            assert f"--env {env}:{level} --seed 1" in again
        assert split_level(onward.split("--env ")[1]) == (env, min(level + 1, max(levels)))


def test_the_next_run_from_an_adapter_is_told_how_its_base_was_held() -> None:
    config = Config(model="base", lora_rank=8)
    *_, onward = _next_commands(config, "calc_grpo", Path("step"))
    assert "--model base --lora.adapter step --env" in onward
    *_, onward = _next_commands(replace(config, lora_base="nf4"), "calc_grpo", Path("step"))
    assert "--model base --lora.adapter step --lora.base nf4 --env" in onward
