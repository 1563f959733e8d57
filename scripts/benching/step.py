"""M1: a whole GRPO step, generation, training and what comes between, TRL's beside ours."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from scripts.benching.children import Child, column, measure_in_turns
from scripts.benching.learner import Prepared, chosen_cases
from scripts.benching.report import Figure, Measurement, ratio_text
from scripts.benching.workload import FIXED, RAGGED, Case

TARGETS = {FIXED.name: 2.5, RAGGED.name: 4.5}
GAP_LIMIT = 1e-4  # of engine and learner in float32, as rl/config.py has it


def add_options(parser: argparse.ArgumentParser) -> None:
    del parser  # those of the learner's


def measure(options: argparse.Namespace) -> list[Measurement]:
    return [
        measure_case(replace(case, seed=options.bench_seed), rounds=options.rounds)
        for case in chosen_cases(options)
    ]


def measure_case(case: Case, *, rounds: int) -> Measurement:
    subject = f"step: M1, {case.name}, CPU seconds of one thread, TRL (its own generation) beside ours (vLLM)"
    with tempfile.TemporaryDirectory(prefix="whetstone-bench-") as folder, ExitStack() as stack:
        place = Prepared(case, Path(folder), reference=False)
        peer = stack.enter_context(place.trl())
        options = {"model": str(place.model), "context_length": 2 * (case.prompt_len + case.completion_len)}
        ours = stack.enter_context(Child("scripts.benching.step_runner", json.dumps(options)))
        answers = measure_in_turns(
            {
                "TRL": partial(peer.ask, "step", path=place.path),
                "ours": partial(ours.ask, "step", path=place.path),
            },
            rounds=rounds,
        )
    gap = max(column(answers["ours"], "gap"))
    void = ""
    if gap > GAP_LIMIT:
        void = f"the learner gives a token {gap:.2g} nats from what the engine said, {GAP_LIMIT:g} allowed"
    return Measurement(subject=subject, figures=_figures(case, answers, gap), void=void)


def _figures(case: Case, answers: Mapping[str, Sequence[Mapping[str, Any]]], gap: float) -> list[Figure]:
    theirs, ours = column(answers["TRL"], "step_cpu_s"), column(answers["ours"], "cpu_s")
    num_trained = answers["TRL"][0]["num_trained"]
    training = statistics.median(column(answers["TRL"], "cpu_s"))
    parts = {
        name: statistics.median(column(answers["ours"], name))
        for name in ("generate", "score", "update", "sync")
    }
    told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items())
    return [
        Figure(name="gate: engine and learner, max |dlogp|", value=gap, unit="nats", target=GAP_LIMIT),
        Figure(
            name="TRL: step, a trained token",
            value=1e3 * min(theirs) / num_trained,
            unit="ms",
            detail=f"{min(theirs):.2f} s, of it training {training:.2f} s",
        ),
        Figure(
            name="ours: step, a trained token",
            value=1e3 * min(ours) / num_trained,
            unit="ms",
            detail=f"{min(ours):.2f} s: {told}",
        ),
        Figure(
            name="TRL / ours: step, least CPU",
            value=min(theirs) / min(ours),
            unit="x",
            target=TARGETS[case.name],
            is_floor=True,
            detail=ratio_text(theirs, ours),
        ),
    ]
