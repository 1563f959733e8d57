"""`python(..., repl=True)`: calls that share one namespace, and what ends it."""

import asyncio

import pytest

from envs.sandbox.base import Limits, Sandbox
from envs.sandbox.client import Box
from tests.envs.sandbox.openings import open_sandbox, require_backend

BACKENDS = ("ns", "bwrap", "landlock")
LIMITS = Limits(wall_s=2, mem_mb=128, procs=8, output_kb=4)


async def say(box: Sandbox, code: str, **options) -> tuple[str, str]:
    result = await box.python(code, repl=True, **options)
    return result.status, result.stdout


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_session_keeps_names_and_a_call_without_it_does_not(backend):
    await require_backend(backend)
    async with open_sandbox(backend, LIMITS) as box:
        assert await say(box, "x = 20\ndef double(n): return 2 * n") == ("ok", "")
        assert await say(box, "x += 1; print(double(x))") == ("ok", "42\n")
        failed = await box.python("y = 5\nraise KeyError('k')", repl=True)
        assert (failed.status, failed.exit_code) == ("nonzero", 1)
        assert "raise KeyError('k')" in failed.stderr
        assert await say(box, "print(x, y)") == ("ok", "21 5\n")
        assert (await box.python("print('x' in globals())")).stdout == "False\n"
        assert await say(box, "print('x' in globals())") == ("ok", "False\n")  # the other call ended it


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("while True: pass", "timeout"),
        ("held = [bytearray(10 << 20) for _ in range(40)]\nwhile True: pass", "oom"),
        ("import os; os.kill(os.getpid(), 9)", "signal"),
        ("exit(3)", "nonzero"),
        ("while True: print('x' * 1000)", "output_limit"),
    ],
)
async def test_what_ends_a_session_is_told_and_the_next_call_begins_anew(backend, code, status):
    await require_backend(backend)
    async with open_sandbox(backend, LIMITS) as box:
        await say(box, "x = 1")
        assert (await say(box, code))[0] == status
        assert await say(box, "print('x' in globals())") == ("ok", "False\n")
        assert (await box.python("print(1)")).stdout == "1\n"


@pytest.mark.parametrize("backend", BACKENDS)
async def test_input_results_and_long_programs_reach_a_session(backend):
    await require_backend(backend)
    async with open_sandbox(backend, LIMITS) as box:
        assert await say(box, "print(input())", stdin=b"first\n") == ("ok", "first\n")
        assert await say(box, f"text = '''{'a' * 100_000}'''") == ("ok", "")
        result = await box.python(
            "import os; os.write(3, b'r'); print(len(text))", repl=True, max_result_bytes=8
        )
        assert (result.stdout, result.result) == ("100000\n", b"r")
        told = await box.python(
            "import os\ntry: os.write(3, b'r')\nexcept OSError: print('closed')", repl=True
        )
        assert told.stdout == "closed\n"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("word", ['b"nonsense"', 'b"[" * 3000', 'b\'{"exit": 0, "cpu_s": NaN}\'', "b''"])
async def test_a_false_word_to_the_first_process_ends_the_session_and_nothing_else(backend, word):
    attack = f"import os\nfor fd in range(3, 30):\n    try: os.write(fd, {word})\n    except OSError: pass"
    await require_backend(backend)
    async with open_sandbox(backend, LIMITS) as box:
        await box.python(attack, repl=True)
        assert (await box.python("print(1)")).stdout == "1\n"
        assert await say(box, "print(2)") == ("ok", "2\n")


@pytest.mark.parametrize("backend", BACKENDS)
async def test_what_a_session_started_ends_with_it(backend):
    start = (
        "import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
    )
    await require_backend(backend)
    async with open_sandbox(backend, LIMITS) as box:
        assert isinstance(box, Box)
        assert (await say(box, start))[0] == "ok"
        assert await say(box, "print(p.poll())") == ("ok", "None\n")
        await box.python("1")
        assert (await say(box, "print('p' in globals())")) == ("ok", "False\n")


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_pause_before_or_within_a_session_changes_nothing(backend):
    await require_backend(backend)
    async with open_sandbox(backend, LIMITS) as box:
        await asyncio.sleep(1.3)  # the process that waited for a call is let go after a second
        assert await say(box, "x = 1") == ("ok", "")
        await asyncio.sleep(1.3)
        assert await say(box, "print(x)") == ("ok", "1\n")
        assert (await box.python("print(2)")).stdout == "2\n"
