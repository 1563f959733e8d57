"""A reward that does to its process what the episode's answer names, and one of a group that does so."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

from envs.episode import Score
from rewards.base import group_reward


def hang():
    while True:
        pass


def swallow():
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


def deaf():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(60)


def alarm():
    def ring(number, frame):
        raise TimeoutError("rang")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        time.sleep(10)
    except TimeoutError:
        return 0.5
    return 0.0


def leave_alarm():
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    return 0.5


def fork_sleeper(*, new_session=False):
    if (pid := os.fork()) == 0:
        if new_session:
            os.setsid()
        time.sleep(600)
        os._exit(0)
    with open(os.environ["SLEEPERS"], "a") as file:
        file.write(f"{pid}\n")
    return 0.5


def fork_and_return():
    return 0.25 if os.fork() == 0 else 0.5


def spew():
    print("x" * 10_000_000)
    sys.stderr.write('{"scores": []}\n' * 10_000)
    return 0.5


def threads():
    for _ in range(20):
        threading.Thread(target=time.sleep, args=(600,)).start()
    return 0.5


def own_loop():
    return asyncio.run(asyncio.sleep(0, result=0.5))


def raises():
    return {}["no such key"]


def slow():
    time.sleep(0.4)
    return 0.75


DEEDS = {
    "slow": slow,
    "hang": hang,
    "swallow": swallow,
    "deaf": deaf,
    "alarm": alarm,
    "leave_alarm": leave_alarm,
    "raise": raises,
    "nan": lambda: float("nan"),
    "text": lambda: "0.5",
    "none": lambda: None,
    "exit": lambda: sys.exit(3),
    "hard_exit": lambda: os._exit(7),
    "segfault": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "fork": fork_sleeper,
    "escape": lambda: fork_sleeper(new_session=True),
    "fork_and_return": fork_and_return,
    "spew": spew,
    "threads": threads,
    "loop": own_loop,
    "gorge": lambda: float(len(bytearray(9 << 30))),
}


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    deed = DEEDS.get(solution_str)
    return 1.0 if deed is None else deed()


def all_of(completions, **kwargs):
    said = [completion[-1]["content"] for completion in completions]
    return [compute_score("", word, "") for word in said][: 1 if "short" in said else None]


def batch_of(data_sources, solution_strs, ground_truths, extra_infos):
    return [compute_score("", said, "") for said in solution_strs]


@group_reward
def compared(episodes):
    return [Score(value=compute_score("", episode.answer, "")) for episode in episodes]


def needs_column(completions, hardness, **kwargs):
    return [0.0 for _ in completions]
