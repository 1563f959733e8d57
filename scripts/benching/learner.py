"""M1's learner half and M3: an update of ours beside TRL's training step, on the same tokens and weights."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benching.children import Child, column, measure_in_turns, trl_python
from scripts.benching.report import Figure, Measurement, ratio_text
from scripts.benching.workload import FIXED, RAGGED, Batch, Case, least_flops, make_batch

MAX_DLOGP, MIN_COSINE = 1e-5, 1 - 1e-6
TARGETS = {FIXED.name: 3.0, RAGGED.name: 6.0}
UNIQUE_SHARE, FLOOR_SHARE = 1.01, 0.65
LAYOUTS = ("trie", "packed", "padded")
RATE = "products"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="learner, head, step: rounds that count")
    parser.add_argument("--bench-seed", type=int, default=0, help="learner, step, growth: of the workload")
    parser.add_argument(
        "--cases", nargs="+", choices=("fixed", "ragged"), default=["fixed", "ragged"], help="learner, step"
    )
    parser.add_argument("--leak", action="store_true", help=argparse.SUPPRESS)


def measure(options: argparse.Namespace) -> list[Measurement]:
    return [
        measure_case(replace(case, seed=options.bench_seed), rounds=options.rounds, leak=options.leak)
        for case in chosen_cases(options)
    ]


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    return [case for case in (FIXED, RAGGED) if case.name.split()[0] in options.cases]


def measure_case(case: Case, *, rounds: int, leak: bool = False) -> Measurement:
    """The gate, then rounds in which TRL and each of our layouts take the same step in turn."""
    subject = f"learner: M3, {case.name}, CPU seconds of one thread, TRL 1.16 beside ours"
    with tempfile.TemporaryDirectory(prefix="whetstone-bench-") as folder, ExitStack() as stack:
        place = Prepared(case, Path(folder))
        peer = stack.enter_context(place.trl())
        ours = {name: stack.enter_context(place.ours(layout=name, leak=leak)) for name in our_layouts()}
        told = peer.ask("logprobs", path=place.path, to=f"{folder}/trl.npz")
        gates = {
            name: child.ask("gate", path=place.path, reference=place.reference)
            for name, child in ours.items()
        }
        gates["TRL"] = {"max_dlogp": place.distance(f"{folder}/trl.npz")}
        figures = [_gate_figure(name, gate) for name, gate in gates.items()]
        if void := problem(gates):
            return Measurement(subject=subject, figures=figures, void=void)
        sides = {name: partial(child.ask, "update", path=place.path) for name, child in ours.items()}
        sides["TRL"] = partial(peer.ask, "train", path=place.path)
        # The machine's rate drifts: its best is of the same rounds as the best of the others.
        sides[RATE] = partial(next(iter(ours.values())).ask, "gemm")
        answers = measure_in_turns(sides, rounds=rounds)
        peak = max(column(answers.pop(RATE), "flops"))
    versions = ", ".join(f"{name} {version}" for name, version in told.items())
    figures += _figures(case, place.batch, answers, peak, versions)
    return Measurement(subject=subject, figures=figures)


def our_layouts() -> tuple[str, ...]:
    """The layouts that the learner has, its default first."""
    from rl.learner_spec import LearnerSpec

    has_choice = any(field.name == "layout" for field in fields(LearnerSpec))
    return LAYOUTS if has_choice else ("padded",)


class Prepared:
    """A case's model, batch and dense reference in a folder, and children that read them."""

    def __init__(self, case: Case, folder: Path, *, reference: bool = True) -> None:
        # They import torch and transformers, which other subjects of the bench do not need.
        from scripts.benching.made_model import dense_reference, write_model

        self.case, self.batch = case, make_batch(case)
        self.model = write_model(folder / "model", max_length=2 * (case.prompt_len + case.completion_len))
        self.path = str(self.batch.save(folder / "batch.json"))
        self.reference = str(folder / "reference.npz")
        if reference:
            self.logprobs, gradient = dense_reference(self.model, self.batch)
            np.savez(self.reference, *self.logprobs, gradient=gradient)

    def trl(self) -> Child:
        shape = (len(self.batch.completions), self.batch.group_size, self.case.completion_len)
        return Child("scripts.benching.trl_runner", str(self.model), *map(str, shape), python=trl_python())

    def ours(self, **options: Any) -> Child:
        return Child("scripts.benching.learner_runner", json.dumps({"model": str(self.model), **options}))

    def distance(self, path: str) -> float:
        """The largest difference of the log-probs in a file to the reference's."""
        with np.load(path) as file:
            found = [file[name] for name in file.files]
        return max(float(np.abs(a - b).max()) for a, b in zip(found, self.logprobs, strict=True))


def problem(gates: Mapping[str, Mapping[str, float]]) -> str:
    """What is wrong with what was computed; "" for nothing."""
    for name, gate in gates.items():
        if not gate["max_dlogp"] <= MAX_DLOGP:
            off = gate["max_dlogp"]
            return f"log-probs of {name} are {off:.2g} off the dense reference's, {MAX_DLOGP:g} allowed"
        if not gate.get("cosine", 1.0) >= MIN_COSINE:
            return (
                f"the gradient of {name} has cosine {gate['cosine']:.7f} to the reference's, 1 - 1e-6 needed"
            )
    return ""


def _gate_figure(name: str, gate: Mapping[str, float]) -> Figure:
    detail = f"gradient cosine 1 - {1 - gate['cosine']:.1g}" if "cosine" in gate else ""
    return Figure(
        name=f"gate, {name}: max |dlogp| to dense float32",
        value=gate["max_dlogp"],
        unit="nats",
        target=MAX_DLOGP,
        detail=detail,
    )


def _figures(
    case: Case, batch: Batch, answers: Mapping[str, Sequence[Mapping[str, Any]]], peak: float, versions: str
) -> list[Figure]:
    floor = least_flops(batch) / peak
    theirs = column(answers["TRL"], "cpu_s")
    figures = [_per_token("TRL: training part", theirs, batch, detail=versions)]
    default, *_ = (name for name in answers if name != "TRL")
    for name, rounds in answers.items():
        if name == "TRL":
            continue
        cpu_s = column(rounds, "cpu_s")
        is_default = name == default
        figures += [
            _per_token(f"ours, {name}: update", cpu_s, batch, detail="with the old log-probs"),
            Figure(
                name=f"TRL / ours, {name}: least CPU",
                value=min(theirs) / min(cpu_s),
                unit="x",
                target=TARGETS[case.name] if is_default else None,
                is_floor=True,
                detail=ratio_text(theirs, cpu_s),
            ),
            Figure(
                name=f"ours, {name}: forwarded / unique tokens",
                value=rounds[0]["forwarded"] / batch.num_unique,
                unit="x",
                target=UNIQUE_SHARE if is_default else None,
                detail=f"TRL {answers['TRL'][0]['forwarded'] / batch.num_unique:.2f}",
            ),
            Figure(
                name=f"ours, {name}: share of the limit",
                value=floor / min(cpu_s),
                target=FLOOR_SHARE if is_default else None,
                is_floor=True,
                detail=f"{floor:.2f} s of products at {peak / 1e9:.0f} GF/s; TRL {floor / min(theirs):.0%}",
            ),
        ]
    return figures


def _per_token(name: str, cpu_s: Sequence[float], batch: Batch, *, detail: str) -> Figure:
    value = 1e3 * min(cpu_s) / batch.num_trained
    return Figure(
        name=f"{name}, a trained token", value=value, unit="ms", detail=f"{min(cpu_s):.2f} s; {detail}"
    )
