"""Nothing that the attack programs try gets them anything, on each backend, for root and for a user."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from envs.sandbox import bubblewrap, factory, syscalls
from tests.envs.sandbox import as_user
from tests.envs.sandbox.attack_run import load, names
from tests.envs.sandbox.plants import Plants

DEFAULT = [("ns", "root"), ("landlock", "root")]
SLOW = [
    ("ns", "user"),
    ("landlock", "user"),
    ("bwrap", "user"),
    ("landlock-abi-5", "root"),
    ("landlock-abi-5", "user"),
    ("landlock-abi-1", "user"),
]
"""Backend and who starts it. bwrap under root needs an interpreter that all can read: tried as a user."""


def marks_of(backend: str, who: str) -> list[pytest.MarkDecorator]:
    """Older Landlocks are beyond CI's time."""
    return [pytest.mark.slow, *([pytest.mark.extra] if "-abi-" in backend else [])]


def _cases(plain: list[tuple[str, str]], slow: list[tuple[str, str]]) -> list[Any]:
    marked = [pytest.param(*case, name, marks=marks_of(*case)) for case in slow for name in names()]
    return [pytest.param(*case, name) for case in plain for name in names()] + marked


@cache
def verdicts(backend: str, who: str) -> dict[str, Any]:
    """All attacks on one backend, several at once, in a process of its own."""
    name, _, abi = backend.partition("-abi-")
    command = [sys.executable, "-m", "tests.envs.sandbox.attack_run", "--backend", name]
    command += ["--landlock-abi", abi] if abi else []
    command += ["--argv-secret", secrets.token_hex(16)]
    command = as_user.command(command) if who == "user" else command
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if done.returncode:
        pytest.fail(f"the attacks could not be run: {done.stderr[-3000:]}", pytrace=False)
    return json.loads(done.stdout)


def _require(backend: str, who: str) -> None:
    if who == "root" and os.getuid() != 0:
        pytest.skip("these tests run as an ordinary user: the half of root is not there")
    if who == "user" and (problem := as_user.problem()):
        pytest.skip(problem)
    if backend == "bwrap" and not bubblewrap.PROGRAM:
        pytest.skip("bwrap is not installed")
    if backend.startswith("landlock") and not syscalls.landlock_abi():
        pytest.skip("this kernel has no Landlock")


@pytest.mark.parametrize(("backend", "who", "attack"), _cases(DEFAULT, SLOW))
def test_an_attack_is_contained(backend: str, who: str, attack: str) -> None:
    _require(backend, who)
    found = {verdict["name"]: verdict["problems"] for verdict in verdicts(backend, who)["verdicts"]}
    if attack not in found:
        pytest.skip(f"{backend} says that it does not hold this one")
    assert found[attack] == []


@pytest.mark.parametrize(
    ("backend", "who"), [*DEFAULT, *(pytest.param(*case, marks=marks_of(*case)) for case in SLOW)]
)
def test_the_host_is_as_it_was_after_every_attack(backend: str, who: str) -> None:
    _require(backend, who)
    report = verdicts(backend, who)
    assert report["host"] == []
    assert (report["uid"] == 0) == (who == "root")


def test_the_attacks_get_through_where_there_are_only_limits() -> None:
    """What the suite would be worth if it found nothing: level 1 stops few of them."""
    if problem := as_user.problem():
        pytest.skip(problem)
    chosen = ["host_canary", "network", "unix_sockets"]  # those that do no harm
    command = [sys.executable, "-m", "tests.envs.sandbox.attack_run", "--backend", "rlimits", "--weak"]
    command = as_user.command([*command, "--argv-secret", secrets.token_hex(16), "--only", *chosen])
    environ = {**os.environ, "WHETSTONE_ALLOW_WEAK_SANDBOX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environ)
    assert done.returncode == 0, done.stderr
    through = {verdict["name"] for verdict in json.loads(done.stdout)["verdicts"] if verdict["problems"]}
    assert through == set(chosen)


BY_COMMAND = {
    "inherited_descriptors": 0,
    "secrets_of_others": 0,
    "argv_of_others": 0,
    "exit_254": 254,
    "crash": 128 + 11,
    "memory_of_one": 137,
    "spin": 124,
    "held_pipes": 0,
}
"""Attacks that a careless caller makes worse, and the exit code that the command gives each."""


@pytest.mark.parametrize("backend", ["ns", "landlock"])
def test_the_command_gives_them_no_more_than_the_library(backend: str) -> None:
    _require(backend, "root" if os.getuid() == 0 else "user")
    with Plants(secrets.token_hex(16)) as plants:
        for name, exit_code in BY_COMMAND.items():
            attack = load(name, plants)
            command = [sys.executable, "-m", "scripts.sandbox_exec", "--backend", backend, "-"]
            command += ["--wall-s", str(attack.limits().wall_s), "--mem-mb", str(attack.limits().mem_mb)]
            done = subprocess.run(
                command,
                input=attack.code,
                capture_output=True,
                text=True,
                pass_fds=plants.descriptors,
                timeout=60,
            )
            assert (name, done.returncode, "ESCAPED" in done.stdout) == (name, exit_code, False), done.stderr
        assert plants.problems() == []


@pytest.mark.parametrize("backend", ["ns", "landlock"])
def test_the_factory_gives_them_no_more_than_the_library(backend: str) -> None:
    _require(backend, "root" if os.getuid() == 0 else "user")
    with Plants(secrets.token_hex(16)) as plants:
        for name in BY_COMMAND:
            attack = load(name, plants)
            found = factory(attack.limits(), backend=backend).run(attack.code, attack.limits().wall_s)
            assert found["status"] in attack.allowed(), found
            assert "ESCAPED" not in found["stdout"]
            assert found["timed_out"] == (name == "spin")
        assert plants.problems() == []
