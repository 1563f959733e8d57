"""M4: the loss head's memory and time beside TRL's chunked one, at the vocabulary of Qwen."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import psutil

from scripts.benching.children import Child, column, measure_in_turns, trl_python
from scripts.benching.fitting import slope
from scripts.benching.report import Figure, Measurement, ratio_text

VOCAB, HIDDEN = 151_936, 256
COMPARED, COUNTS = 2048, (1024, 2048, 4096)
MEMORY_RATIO, CPU_RATIO, BYTES_A_TOKEN = 6.0, 2.2, 12.0 * HIDDEN
TOLERANCE = 1e-4


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--head-vocab", type=int, default=VOCAB, help="head: size of the vocabulary")


def measure(options: argparse.Namespace) -> list[Measurement]:
    vocab = options.head_vocab
    subject = f"head: M4, forward and backward in float32, V = {vocab:,}, H = {HIDDEN}, TRL's beside ours"
    memory: dict[str, dict[int, float]] = {"trl": {}, "ours": {}, "later": {}}
    answers: dict[str, list[dict[str, Any]]] = {}
    for num_tokens in COUNTS:
        if too_much(memory, num_tokens):
            break
        with ExitStack() as stack:
            sides = {
                name: partial(stack.enter_context(head_child(name, num_tokens, vocab)).ask, "pass")
                for name in memory
            }
            first = {name: side() for name, side in sides.items()}
            for name, answer in first.items():
                memory[name][num_tokens] = answer["mib"]
            for name in ("ours", "later"):
                if void := difference(first["trl"], first[name]):
                    return [Measurement(subject=subject, figures=(), void=f"{name}: {void}")]
            if num_tokens == COMPARED:
                # The first passes are warm-ups already.
                answers = measure_in_turns(sides, rounds=options.rounds, warm_ups=1)
    return [Measurement(subject=subject, figures=_figures(memory, answers))]


def too_much(memory: Mapping[str, Mapping[int, float]], num_tokens: int) -> bool:
    """Whether both sides, should they grow with N, would not fit into what memory is free."""
    at_worst = [mib * num_tokens / count for sizes in memory.values() for count, mib in [*sizes.items()][-1:]]
    return sum(at_worst) > psutil.virtual_memory().available / 2**20


def head_child(side: str, num_tokens: int, vocab: int, hidden: int = HIDDEN) -> Child:
    """A fresh process of either side with this head's inputs."""
    python = trl_python() if side == "trl" else sys.executable
    return Child("scripts.benching.head_runner", side, *map(str, (num_tokens, vocab, hidden)), python=python)


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What the two heads do not agree on: the gate."""
    values = [[answer["logprob"], *answer["grads"]] for answer in (theirs, ours)]
    for what, a, b in zip(
        ("mean log-prob", "gradient to the states", "to the weights"), *values, strict=True
    ):
        if not math.isclose(a, b, rel_tol=TOLERANCE):
            return f"{what}: {a:.7g} of TRL's head, {b:.7g} of ours"
    return ""


def _figures(
    memory: Mapping[str, Mapping[int, float]], answers: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Figure]:
    cpu_s = {name: column(rounds, "cpu_s") for name, rounds in answers.items()}
    per_token = {name: 2**20 * slope([*sizes], [*sizes.values()]) for name, sizes in memory.items()}
    of_n = {
        name: ", ".join(f"{mib:,.0f} at {count:,}" for count, mib in sizes.items())
        for name, sizes in memory.items()
    }
    return [
        Figure(name="TRL: peak memory", value=memory["trl"][COMPARED], unit="MiB", detail=of_n["trl"]),
        Figure(name="ours: peak memory", value=memory["ours"][COMPARED], unit="MiB", detail=of_n["ours"]),
        Figure(
            name=f"TRL / ours: peak memory, N = {COMPARED:,}",
            value=memory["trl"][COMPARED] / memory["ours"][COMPARED],
            unit="x",
            target=MEMORY_RATIO,
            is_floor=True,
        ),
        Figure(
            name="ours: memory that a further token takes",
            value=per_token["ours"],
            unit="B",
            target=BYTES_A_TOKEN,
            detail=f"12 H; TRL {per_token['trl']:,.0f} B",
        ),
        Figure(
            name="ours on later updates: peak memory",
            value=memory["later"][COMPARED],
            unit="MiB",
            detail=of_n["later"],
        ),
        Figure(name="TRL: least CPU", value=min(cpu_s["trl"]), unit="s"),
        Figure(name="ours: least CPU", value=min(cpu_s["ours"]), unit="s"),
        Figure(
            name=f"TRL / ours: least CPU, N = {COMPARED:,}",
            value=min(cpu_s["trl"]) / min(cpu_s["ours"]),
            unit="x",
            target=CPU_RATIO,
            is_floor=True,
            detail=ratio_text(cpu_s["trl"], cpu_s["ours"]),
        ),
        Figure(
            name="TRL / ours on later updates: least CPU",
            value=min(cpu_s["trl"]) / min(cpu_s["later"]),
            unit="x",
            detail=ratio_text(cpu_s["trl"], cpu_s["later"]),
        ),
    ]
