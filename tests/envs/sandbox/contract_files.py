"""The contract of files and of state: what stays in a sandbox, and what does not leave it."""

from __future__ import annotations

import asyncio
import time

from envs.sandbox.base import Limits, SandboxError, SandboxFileError
from tests.envs.sandbox.contract_tools import Opens, check, equal, holds, printed, raises


@check
async def files_are_there_from_the_start(opens: Opens) -> None:
    files = {"a.txt": b"A", "deep/er/b.bin": bytes(range(256)), "empty": b"", "naïve 漢.txt": b"name"}
    async with opens(files=files) as box:
        for path, data in files.items():
            equal(await box.read_file(path), data)
        code = "import os; print(sorted(os.listdir('.')), open('a.txt').read())"
        equal(await printed(box, code), "['a.txt', 'deep', 'empty', 'naïve 漢.txt'] A\n")


@check
async def many_files_are_there_from_the_start(opens: Opens) -> None:
    files = {f"folder/{'n' * 100}{number}": b"x" for number in range(3000)}
    async with opens(files=files) as box:
        equal(await printed(box, "import os; print(len(os.listdir('folder')))"), "3000\n")


@check
async def files_go_in_and_come_out(opens: Opens) -> None:
    async with opens() as box:
        for path in ("x", "a/b/c d.bin", "ümlaut/漢", "./dot", "-dash", "new\nline"):
            for data in (b"", bytes(range(256)) * 300, b"shorter"):
                await box.write_file(path, data)
                equal(await box.read_file(path), data, path)
        await box.python("open('made', 'wb').write(b'\\xff' * 10)")
        equal(await box.read_file("made"), b"\xff" * 10)


@check
async def large_files_come_out_whole_or_not_at_all(opens: Opens) -> None:
    async with opens() as box:
        data = bytes(range(256)) * (1 << 14)
        await box.write_file("large", data)
        equal(len(await box.read_file("large", max_bytes=len(data))), len(data))
        error = await raises(SandboxFileError, box.read_file("large", max_bytes=len(data) - 1))
        holds("large" in str(error), error)


@check
async def nothing_is_no_size_of_a_file(opens: Opens) -> None:
    async with opens(files={"a": b"A"}) as box:
        for wrong in (0, -1, 1.5, True, None):
            error = await raises(ValueError, box.read_file("a", max_bytes=wrong))  # type: ignore[arg-type]
            holds(f"max_bytes is {wrong!r}; expected a whole number above 0" in str(error), error)
        equal(await box.read_file("a", max_bytes=1), b"A")


@check
async def what_is_no_file_is_refused(opens: Opens) -> None:
    async with opens() as box:
        code = "import os; os.mkdir('folder'); os.symlink('/etc/passwd', 'link'); os.mkfifo('fifo')\n"
        await printed(box, code + "os.symlink('nowhere', 'dangling')")
        odd = ("missing/too", "/dev/zero", "x" * 300, "y/" * 3000)
        for path in ("folder", "link", "fifo", "dangling", "missing", *odd):
            started = time.monotonic()
            await raises(SandboxFileError, box.read_file(path))
            holds(time.monotonic() - started < 8, f"{path} took long")


@check
async def what_cannot_be_written_is_refused(opens: Opens) -> None:
    async with opens(Limits(disk_mb=8)) as box:
        await printed(box, "import os; os.mkdir('folder'); os.symlink('t', 'link'); os.mkfifo('fifo')")
        for path in ("folder", "link", "fifo", "/proc/x", "/usr/x", "folder/" + "x" * 300, "z" * 5000):
            await raises(SandboxFileError, box.write_file(path, b"data"))
        for path in ("", "a\0b"):
            await raises(ValueError, box.write_file(path, b"data"))
        await raises(SandboxFileError, box.write_file("too-large", b"x" * (20 << 20)))


@check
async def state_is_in_files_and_in_nothing_else(opens: Opens) -> None:
    async with opens() as box:
        await printed(box, "import json; json.left = 1; left = 2; open('kept', 'w').write('3')")
        code = "import json; print(hasattr(json, 'left'), 'left' in globals(), open('kept').read())"
        equal(await printed(box, code), "False False 3\n")
        await printed(box, "import os; os.mkdir('d'); os.chdir('d'); os.umask(0)")
        equal(await printed(box, "import os; print(os.path.exists('kept'), oct(os.umask(0)))"), "True 0o22\n")


@check
async def calls_work_where_the_files_are(opens: Opens) -> None:
    async with opens(files={"here": b"1"}) as box:
        equal(await printed(box, "import os; print(os.listdir(os.getcwd()))"), "['here']\n")
        equal((await box.shell(["ls"])).stdout, "here\n")
        equal(await printed(box, "import tempfile; print(len(tempfile.TemporaryFile().read()))"), "0\n")


@check
async def a_sandbox_survives_what_a_program_did_to_its_folder(opens: Opens) -> None:
    async with opens() as box:
        await box.python("import os, shutil; os.chmod('.', 0); shutil.rmtree('.', ignore_errors=True)")
        result = await box.python("print('alive')")
        holds(result.status in ("ok", "nonzero"), result)


@check
async def two_sandboxes_do_not_see_each_other(opens: Opens) -> None:
    async with opens(files={"mine": b"1"}) as one, opens() as other:
        write = "import tempfile; open(tempfile.gettempdir() + '/sign', 'w').write('x')"
        await printed(one, write)
        code = "import os, tempfile; print(os.listdir('.'), os.path.exists(tempfile.gettempdir() + '/sign'))"
        equal(await printed(other, code), "[] False\n")


@check
async def a_daemon_ends_with_its_call(opens: Opens) -> None:
    async with opens() as box:
        code = """if True:
            import os, time
            if os.fork() == 0:
                os.setsid()
                if os.fork():
                    os._exit(0)
                while True:
                    open("beat", "a").write("x")
                    time.sleep(0.01)
            time.sleep(0.3)
        """
        equal((await box.python(code)).status, "ok")
        first = await box.read_file("beat")
        await asyncio.sleep(0.3)
        equal(await box.read_file("beat"), first)
        holds(len(first) > 0, "it never ran")


@check
async def calls_take_turns(opens: Opens) -> None:
    async with opens() as box:
        code = "import time\nopen('log', 'a').write('<')\ntime.sleep(0.1)\nopen('log', 'a').write('>')"
        await asyncio.gather(*(box.python(code) for _ in range(4)))
        equal(await box.read_file("log"), b"<><><><>")


@check
async def many_sandboxes_work_at_once(opens: Opens) -> None:
    async def one(number: int) -> str:
        async with opens(files={"n": str(number).encode()}) as box:
            return await printed(box, "print(open('n').read())")

    equal(await asyncio.gather(*map(one, range(12))), [f"{number}\n" for number in range(12)])


@check
async def cancelling_a_call_closes_the_sandbox(opens: Opens) -> None:
    async with opens() as box:
        call = asyncio.create_task(box.python("import time; time.sleep(60)"))
        await asyncio.sleep(0.3)
        call.cancel()
        await raises(asyncio.CancelledError, call)
        await raises(SandboxError, box.python("print(1)"))


@check
async def closing_twice_is_closing_once(opens: Opens) -> None:
    async with opens() as box:
        await box.close()
        await box.close()
        for work in (box.python("1"), box.shell(["ls"]), box.read_file("x"), box.write_file("x", b"")):
            await raises(SandboxError, work)


@check
async def an_exception_of_the_caller_passes_through(opens: Opens) -> None:
    async def fails() -> None:
        async with opens() as box:
            await printed(box, "print(1)")
            raise KeyError("the caller's own")

    await raises(KeyError, fails())
