"""The contract of limits: what is too much ends, and ends with the right name."""

from __future__ import annotations

import asyncio
import time

from envs.sandbox.base import Limits
from tests.envs.sandbox.contract_tools import Opens, check, equal, holds, printed, raises


@check
async def a_call_ends_at_its_deadline_and_keeps_what_it_wrote(opens: Opens) -> None:
    async with opens(Limits(wall_s=0.5)) as box:
        started = time.monotonic()
        result = await box.python("print('before', flush=True)\nimport time\ntime.sleep(60)")
        equal((result.status, result.stdout, result.exit_code), ("timeout", "before\n", None))
        holds(time.monotonic() - started < 8, "it took long")
        equal(await printed(box, "print('after')"), "after\n")


@check
async def a_call_may_ask_for_less_time_and_not_for_more(opens: Opens) -> None:
    async with opens(Limits(wall_s=1)) as box:
        result = await box.python("while True: pass", wall_s=0.3)
        holds(result.status == "timeout" and result.wall_s < 1, result)
        equal((await box.python("import time; time.sleep(5)", wall_s=60)).status, "timeout")
        equal((await box.shell(["sleep", "5"], wall_s=0.2)).status, "timeout")
        for wall_s in (0, -1):
            await raises(ValueError, box.python("1", wall_s=wall_s))


@check
async def the_children_of_a_call_end_with_it(opens: Opens) -> None:
    async with opens(Limits(wall_s=0.8)) as box:
        beat = "while true; do echo x >> beat; sleep 0.02; done"
        code = f"import subprocess\nsubprocess.run(['sh', '-c', {beat!r}])"
        equal((await box.python(code)).status, "timeout")
        first = await box.read_file("beat")
        await asyncio.sleep(0.3)
        equal(await box.read_file("beat"), first)


@check
async def too_much_output_ends_a_call(opens: Opens) -> None:
    async with opens(Limits(output_kb=4, wall_s=20)) as box:
        result = await box.python("import os\nwhile True: os.write(1, b'x' * 4096)")
        equal((result.status, result.stdout, result.truncated), ("output_limit", "x" * 4096, True))
        equal(await printed(box, "print('after')"), "after\n")


@check
async def too_much_memory_ends_a_call(opens: Opens) -> None:
    async with opens(Limits(mem_mb=96, wall_s=20)) as box:
        code = "import time\nprint('before', flush=True)\nx = bytearray(b'x') * (300 << 20)\ntime.sleep(20)"
        result = await box.python(code)
        equal((result.status, result.stdout), ("oom", "before\n"))
        equal((await box.python("x = bytearray(1 << 45)")).status, "oom")
        equal(await printed(box, "x = bytearray(b'x') * (30 << 20); print(len(x) >> 20)"), "30\n")


@check
async def a_caught_lack_of_memory_is_no_failure(opens: Opens) -> None:
    async with opens() as box:
        code = "try:\n    bytearray(1 << 45)\nexcept MemoryError:\n    print('caught')"
        equal(await printed(box, code), "caught\n")


@check
async def too_much_on_disk_fails_or_ends_a_call(opens: Opens) -> None:
    async with opens(Limits(disk_mb=8, wall_s=20)) as box:
        fill = "for n in range(40):\n    open(f'f{n}', 'wb').write(b'x' * (1 << 20))\n"
        code = f"{fill}import time\ntime.sleep(10)"
        result = await box.python(code)
        holds(result.status in ("nonzero", "disk_limit"), result)
        used = "import os; print(sum(os.path.getsize(n) for n in os.listdir('.')) >> 20)"
        holds(box.level < 3 or int((await box.python(used)).stdout) <= 8, "more than 8 MiB are there")
        code = "import os\nfor n in os.listdir('.'): os.unlink(n)\nprint(open('g', 'wb').write(b'x' * 10**6))"
        equal(await printed(box, code), "1000000\n", "there is room again")


@check
async def too_many_processes_fail_or_end_a_call(opens: Opens) -> None:
    async with opens(Limits(procs=8, wall_s=20)) as box:
        code = """if True:
            import os, time
            for _ in range(60):
                if os.fork() == 0:
                    time.sleep(30)
                    os._exit(0)
            time.sleep(5)
            print("many")
        """
        result = await box.python(code)
        holds(result.status != "ok" and "many" not in result.stdout, result)
        equal(await printed(box, "import subprocess; print(subprocess.run(['true']).returncode)"), "0\n")


@check
async def as_many_processes_as_allowed_are_allowed(opens: Opens) -> None:
    async with opens(Limits(procs=16)) as box:
        start = "[subprocess.Popen(['sleep', '0.3']) for _ in range(12)]"
        code = f"import subprocess\nprint([process.wait() for process in {start}])"
        equal(await printed(box, code), f"{[0] * 12}\n")


@check
async def too_much_cpu_time_ends_a_call(opens: Opens) -> None:
    async with opens(Limits(cpu_s=1, wall_s=40)) as box:
        result = await box.python("print('before', flush=True)\nwhile True: pass")
        equal((result.status, result.stdout), ("timeout", "before\n"))


@check
async def no_network_is_there(opens: Opens) -> None:
    async with opens() as box:
        code = (
            "import socket\ntry:\n    socket.create_connection(('192.0.2.1', 9), timeout=1)\n"
            "except OSError as error:\n    print('none')"
        )
        equal(await printed(box, code), "none\n")


@check
async def a_program_is_not_root(opens: Opens) -> None:
    async with opens() as box:
        equal(
            await printed(box, "import os; print(os.getuid() == 0, os.geteuid() == 0, 0 in os.getgroups())"),
            "False False False\n",
        )
