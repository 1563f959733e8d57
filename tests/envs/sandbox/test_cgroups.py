"""Control groups bound a sandbox where this machine gives some, cost nothing where it gives none, and go."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from envs.sandbox import cgroups, syscalls, usage
from envs.sandbox.base import Limits, Sandbox, SandboxFileError
from envs.sandbox.choosing import BuiltIn, probed
from envs.sandbox.delegation import Place, find, words_of, write
from envs.sandbox.spawning import Launcher
from tests.envs.sandbox import traces

SMALL = {"mem_mb": 32, "disk_mb": 8, "procs": 8}
BOMB = "x = bytearray(b'x') * (400 << 20)\nprint('through')"
"""Less than may be mapped, more than the cgroup of `TIGHT` holds."""

TIGHT = Limits(mem_mb=64, disk_mb=8, wall_s=60)


async def test_the_line_of_a_run_says_what_this_machine_gives() -> None:
    place, reason = find()
    assert (place is None) == bool(reason)
    probe = await probed("ns")
    if probe.missing:
        pytest.skip(f"ns is not here: missing {probe.missing}")
    assert f"cgroup={','.join(place.controllers) if place else 'none'}" in probe.details.split()


def require(*names: str) -> Place:
    place, reason = find()
    if place is None or not {*names} <= {*place.controllers}:
        pytest.skip(f"no cgroup with {' and '.join(names)} is delegated here: {reason or place}")
    return place


@pytest.fixture
def place() -> Iterator[Place]:
    """One with controllers of ours or, for what any cgroup can, with another one that this machine has."""
    found, reason = find()
    found, _ = (found, "") if found else find(("hugetlb",))
    if found is None:
        pytest.skip(f"no cgroup is delegated here: {reason}")
    yield found
    if found.controllers == ("hugetlb",):
        write(found.folder, "cgroup.subtree_control", "-hugetlb")


@contextmanager
def backend(name: str, place: Place) -> Iterator[BuiltIn]:
    if name == "landlock" and not syscalls.landlock_abi():
        pytest.skip("this kernel has no Landlock")
    made = BuiltIn(name, 2)
    made.launcher = Launcher(name, controllers=place.controllers)
    try:
        yield made
    finally:
        made.launcher.stop()


def groups_of(launcher: int, place: Place) -> list[str]:
    return [name for name in os.listdir(place.folder) if f"-{launcher}-" in name]


def soon_empty(folder: str) -> bool:
    end = time.monotonic() + traces.PATIENCE_S
    while (left := words_of(folder, "cgroup.procs")) and time.monotonic() < end:
        time.sleep(0.02)
    return not left


@pytest.mark.parametrize("name", ["ns", "landlock"])
async def test_a_sandbox_has_one_and_it_goes_with_it(name: str, place: Place) -> None:
    with backend(name, place) as made:
        async with await made.open(Limits(), {}, 0) as box:
            assert (await box.python("print(1)")).stdout == "1\n"
            folder = f"{made.launcher.cgroup['folder']}/1"
            assert {*usage.descendants(made.launcher.pid)} <= {*map(int, words_of(folder, "cgroup.procs"))}
            inside = await box.python("print(open('/proc/self/cgroup').read())")
            assert "whetstone" not in inside.stdout
        launcher = made.launcher.pid
        assert words_of(made.launcher.cgroup["folder"], "cgroup.procs") == []
        assert "1" not in os.listdir(made.launcher.cgroup["folder"])
    assert groups_of(launcher, place) == []


@pytest.mark.parametrize("name", ["ns", "landlock"])
async def test_that_of_a_launcher_that_was_killed_goes_with_the_next_start(name: str, place: Place) -> None:
    with backend(name, place) as made:
        box = await made.open(Limits(), {}, 0)
        launcher = made.launcher.pid
        tree = list(usage.descendants(launcher))
        os.kill(launcher, signal.SIGKILL)
        assert traces.gone([launcher, *tree]) == []
        end = time.monotonic() + traces.PATIENCE_S
        while made.launcher.is_running and time.monotonic() < end:  # noqa: ASYNC110 -- who cleans up after it
            await asyncio.sleep(0.02)
        async with await made.open(Limits(), {}, 0):
            assert groups_of(launcher, place) == []
            assert len(groups_of(made.launcher.pid, place)) == 1
        await box.close()


def test_a_whole_tree_ends_at_once(place: Place) -> None:
    groups, reason = cgroups.start(place, "")
    assert groups is not None, reason
    group = groups.make(1, SMALL)
    if not os.path.exists(f"{group.folder}/cgroup.kill"):
        pytest.skip("before Linux 5.14 the kernel ends no cgroup")
    script = "setsid sleep 300 & (setsid sleep 300 &) ; sleep 300"
    process = subprocess.Popen(["sh", "-c", script], preexec_fn=group.enter)
    while len(words_of(group.folder, "cgroup.procs")) < 4:
        time.sleep(0.01)
    group.kill()
    assert process.wait(20) == -signal.SIGKILL
    assert soon_empty(group.folder)
    group.remove()
    groups.remove()
    assert not os.path.exists(groups.folder)


def test_a_fork_bomb_meets_the_kernel() -> None:
    groups, reason = cgroups.start(require("pids"), "")
    assert groups is not None, reason
    group = groups.make(1, SMALL)
    code = """if True:
        import os, time
        for n in range(100):
            try:
                if os.fork() == 0:
                    os.close(1)
                    time.sleep(300)
            except BlockingIOError:
                break
        print(n)
    """
    try:
        done = subprocess.run(["python3", "-c", code], stdout=subprocess.PIPE, preexec_fn=group.enter)
        assert int(done.stdout) == SMALL["procs"]  # and itself
    finally:
        group.kill()
        soon_empty(group.folder)
        group.remove()
        groups.remove()


async def test_a_fork_bomb_in_a_sandbox_is_held() -> None:
    with backend("landlock", require("pids")) as made:
        async with await made.open(Limits(procs=12, wall_s=3), {}, 0) as box:
            assert words_of(f"{made.launcher.cgroup['folder']}/1", "pids.max") == ["13"]
            await box.python("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass")
            assert (await box.python("print(1)")).stdout == "1\n"


@contextmanager
def unwatched(made: BuiltIn) -> Iterator[None]:
    """Without a monitor, so that what ends a call is the kernel."""
    os.kill(made.launcher.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(made.launcher.pid, signal.SIGCONT)


@pytest.mark.parametrize("name", ["ns", "landlock"])
async def test_what_the_kernel_ends_for_memory_is_oom(name: str) -> None:
    by_child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BOMB!r}])"
    with backend(name, require("memory")) as made:
        async with await made.open(TIGHT, {}, 0) as box:
            with unwatched(made):
                assert (await box.python(BOMB)).status == "oom"
                result = await box.python(by_child)
                assert (result.status, result.stdout) == ("oom", "")
                assert (await box.python("print(1)")).stdout == "1\n"
                if name == "ns":  # before ABI 6 of Landlock a call has no signals
                    assert (await box.python("import os; os.kill(os.getpid(), 9)")).status == "signal"
            await _fails_in_its_own_way(box)


async def _fails_in_its_own_way(box: Sandbox) -> None:
    assert (await box.python("raise SystemExit(3)")).status == "nonzero"
    assert (await box.python("x = bytearray(b'x') * (20 << 20)")).status == "ok"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make the kernel choose the first process")
async def test_a_call_that_takes_the_sandbox_along_is_the_program_s_failure() -> None:
    with backend("ns", require("memory")) as made:
        async with await made.open(TIGHT, {}, 0) as box:
            await box.python("1")
            await asyncio.sleep(0.5)  # until the next call's process is there
            first = usage.children(made.launcher.pid)[0]
            write(f"/proc/{first}", "oom_score_adj", "1000")
            with unwatched(made):
                lower = "open('/proc/self/oom_score_adj', 'w').write('0')\n"
                call = asyncio.create_task(box.python(lower + BOMB))
                assert await asyncio.to_thread(traces.gone, [first]) == []
            assert (await call).status == "oom"
            assert (await box.python("print(1)")).status == "oom"
            with pytest.raises(SandboxFileError, match="oom"):
                await box.read_file("a")


async def test_one_processor_and_no_more_is_a_sandbox_s() -> None:
    with backend("ns", require("cpu")) as made:
        async with await made.open(Limits(), {}, 0):
            assert words_of(f"{made.launcher.cgroup['folder']}/1", "cpu.max") == ["100000", "100000"]
