"""The contract of a call: what goes in, what comes out, and what it came to."""

from __future__ import annotations

import signal

from envs.sandbox.base import Limits
from tests.envs.sandbox.contract_tools import Opens, check, equal, holds, printed, raises


@check
async def text_comes_out_as_it_was_printed(opens: Opens) -> None:
    async with opens() as box:
        equal(await printed(box, "print('é 漢 🎉', '\\u202e')"), "é 漢 🎉 \u202e\n")
        equal(await printed(box, "import os; os.write(1, b'a\\r\\n\\tb')"), "a\r\n\tb")


@check
async def what_is_no_text_comes_out_as_escapes(opens: Opens) -> None:
    async with opens() as box:
        code = "import os; os.write(1, b'\\xff\\xfe\\x00\\x1b[2J\\x7f'); os.write(2, b'\\xc0')"
        result = await box.python(code)
        equal((result.stdout, result.stderr), ("\\xff\\xfe\\x00\\x1b[2J\\x7f", "\\xc0"))


@check
async def both_outputs_are_kept_apart(opens: Opens) -> None:
    async with opens() as box:
        result = await box.python("import sys; print('out'); print('err', file=sys.stderr)")
        equal((result.stdout, result.stderr, result.truncated), ("out\n", "err\n", False))


@check
async def input_arrives_byte_by_byte(opens: Opens) -> None:
    async with opens() as box:
        code = "import sys; data = sys.stdin.buffer.read(); print(data == bytes(range(256)), len(data))"
        equal(await printed(box, code, stdin=bytes(range(256))), "True 256\n")
        equal(await printed(box, "print(input(), input())", stdin="é\nzwei\n".encode()), "é zwei\n")


@check
async def no_input_is_an_empty_one(opens: Opens) -> None:
    async with opens() as box:
        equal(await printed(box, "import sys; print(repr(sys.stdin.read()))"), "''\n")


@check
async def large_input_arrives_whole(opens: Opens) -> None:
    async with opens() as box:
        code = "import sys; print(len(sys.stdin.buffer.read()))"
        equal(await printed(box, code, stdin=b"x" * 5_000_000), "5000000\n")


@check
async def a_large_program_arrives_whole(opens: Opens) -> None:
    async with opens() as box:
        for sign in ("x", "é", "\N{PARTY POPPER}", "\x01", "\\"):
            for size in (20_000, 60_000, 400_000):
                code = f"text = {sign * size!r}\nprint(len(text))"
                equal(await printed(box, code), f"{size}\n", f"{sign!r} x {size}")


@check
async def a_program_that_is_no_text_fails_as_a_program(opens: Opens) -> None:
    async with opens() as box:
        for code in ("print('\ud800')", "x = '\udcff'" + " " * 200_000, "def", "print(1)\0"):
            equal((await box.python(code)).status, "nonzero", repr(code[:20]))


@check
async def output_is_kept_up_to_its_limit(opens: Opens) -> None:
    async with opens(Limits(output_kb=8)) as box:
        result = await box.python("print('x' * 8191)")
        equal((len(result.stdout), result.truncated), (8192, False))
        result = await box.python("print('x' * 9000); import sys; print('y' * 9000, file=sys.stderr)")
        equal((result.stdout, result.stderr, result.truncated), ("x" * 8192, "y" * 8192, True))
        equal(result.status, "ok")


@check
async def exit_codes_come_out(opens: Opens) -> None:
    async with opens() as box:
        for code in (0, 1, 7, 124, 125, 137, 253, 254, 255):
            result = await box.python(f"import sys; sys.exit({code})")
            equal((result.exit_code, result.status), (code, "nonzero" if code else "ok"))
        result = await box.python("import sys; sys.exit('why')")
        equal((result.exit_code, result.stderr), (1, "why\n"))
        equal((await box.python("import os; os._exit(254)")).exit_code, 254)
        equal((await box.python("raise SystemExit")).exit_code, 0)


@check
async def an_exception_shows_its_line(opens: Opens) -> None:
    async with opens() as box:
        result = await box.python("def half(n):\n    return 1 / n  # here\n\nhalf(0)\n")
        equal((result.exit_code, result.status), (1, "nonzero"))
        for words in ("return 1 / n  # here", "line 4, in <module>", "ZeroDivisionError: division by zero"):
            holds(words in result.stderr, result.stderr)


@check
async def a_signal_is_told(opens: Opens) -> None:
    async with opens() as box:
        for number in (signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL):
            result = await box.python(f"print('x', flush=True); import os; os.kill(os.getpid(), {number:d})")
            equal(
                (result.status, result.signal, result.exit_code, result.stdout),
                ("signal", number, None, "x\n"),
            )


@check
async def a_private_result_comes_by_descriptor_3(opens: Opens) -> None:
    async with opens() as box:
        code = "import os; os.write(3, b'\\x00\\xff' * {}); print('public')"
        result = await box.python(code.format(5), max_result_bytes=10)
        equal((result.result, result.stdout), (b"\x00\xff" * 5, "public\n"))
        equal((await box.python("print(1)", max_result_bytes=10)).result, b"")
        equal((await box.python(code.format(6), max_result_bytes=10)).result, None)
        result = await box.python(code.format(1))
        equal((result.result, result.status), (None, "nonzero"), "nobody asked for one")


@check
async def a_program_is_started_with_words_and_no_shell(opens: Opens) -> None:
    async with opens() as box:
        result = await box.shell(["echo", "$HOME", "a  b", ";", "é"])
        equal(result.stdout, "$HOME a  b ; é\n")
        result = await box.shell("echo one | tr a-z A-Z; echo two >&2; exit 3", sh=True)
        equal((result.stdout, result.stderr, result.exit_code), ("ONE\n", "two\n", 3))
        equal((await box.shell(["cat"], stdin=b"in")).stdout, "in")


@check
async def a_wrong_command_is_refused_or_fails(opens: Opens) -> None:
    async with opens() as box:
        equal((await box.shell(["no-such-program"])).exit_code, 127)
        equal((await box.shell(["/usr"])).exit_code, 126)
        for command, sh in (("ls", False), (["ls"], True), ([], False), (["a\0b"], False)):
            await raises(ValueError, box.shell(command, sh=sh))


@check
async def a_command_too_long_fails_as_a_program(opens: Opens) -> None:
    async with opens() as box:
        equal((await box.shell(["true", "x" * 100_000])).status, "ok")
        for words in (["x" * 3_000_000], ["y" * 1000] * 5000):
            equal((await box.shell(["true", *words])).status, "nonzero")


@check
async def a_program_finds_itself_as_a_script(opens: Opens) -> None:
    async with opens() as box:
        code = "import sys; print(__name__, len(sys.argv), __file__ == sys.argv[0])"
        equal(await printed(box, code), "__main__ 1 True\n")


@check
async def the_environment_is_an_allowed_list(opens: Opens) -> None:
    async with opens() as box:
        code = "import os; print(*sorted(set(os.environ) - {'LC_CTYPE'}))"
        known = "HOME LANG MKL_NUM_THREADS OMP_NUM_THREADS OPENBLAS_NUM_THREADS PATH PYTHONDONTWRITEBYTECODE"
        allowed = set(f"{known} PYTHONHASHSEED TMPDIR USER PWD SHLVL OLDPWD _".split())
        found = set((await printed(box, code)).split())
        holds(found <= allowed, found - allowed)
        names = (await box.shell("env", sh=True)).stdout.splitlines()
        holds({line.partition("=")[0] for line in names} <= allowed, names)
        equal(await printed(box, "import os; os.environ['LEFT'] = '1'"), "")
        equal(await printed(box, "import os; print('LEFT' in os.environ)"), "False\n")


@check
async def chance_is_the_seed_s(opens: Opens) -> None:
    code = "import random; print(random.random(), list({'a', 'b', 'c', 'd'}))"
    found = []
    for seed in (1, 1, 2):
        async with opens(seed=seed) as box:
            found += [await printed(box, code), await printed(box, code)]
    equal(len(set(found[:4])), 1, found)
    holds(found[4] != found[0], found)


@check
async def a_result_says_what_it_took(opens: Opens) -> None:
    async with opens() as box:
        result = await box.python("sum(range(3_000_000)); import time; time.sleep(0.1)")
        holds(0.1 < result.wall_s < 30 and 0 < result.cpu_s < 30 and 1 < result.peak_mb < 600, result)
        equal(result.level, box.level)
