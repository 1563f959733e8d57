"""Compare algorithms over seeds and environments, at one budget of tokens, with error bars.

    python -m scripts.compare --algorithms grpo,dr_grpo,rloo --env calc:2 --seeds 5 --budget-tokens 300000 \\
        [--tune learning_rate=1e-4,3e-4,1e-3] [-- --num-steps 40 --eval-every 10]

An entry of --algorithms is a row of rl/rows.py or `my_algorithm.py:ROW`, with a label before it and changed
fields after it where they are wanted: `again=grpo`, `frozen=grpo+learning_rate=0`. An --env is NAME:LEVEL or
`my_env.py:ENV:LEVEL`, with changed fields likewise; a reward of your own is `+reward=my_rewards.py:short` in
either. What follows `--` are options of every run's recipe. What the recipe itself changes in its algorithm's
row is taken back, unless it is given there.

Every run gets the same sampled tokens, the same tasks and starting policy by seed, and as many tuning trials,
on other seeds. Written to --out: report.html, three PNGs, comparison.json, and every run with its log. The
same command again goes on where it was cut off. Exit code 0: every run has a score; 1: some failed, one
that only tuned included; 2: refused; 130: interrupted.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from rl.config import Config
from rl.defaults import resolve
from rl.machine import Machine
from scripts.comparing.cells import Job, Outcome, run_jobs, status
from scripts.comparing.comparison import (
    FORMAT,
    Comparison,
    arm_entry,
    choose_trials,
    entry_of,
    portable,
    setting_entry,
)
from scripts.comparing.locks import held
from scripts.comparing.merging import merge
from scripts.comparing.names import CompareError, parse_arms, parse_settings, parse_tuning, recipe_config
from scripts.comparing.plan import Cell, Plan, config_diff, require_declared
from scripts.comparing.report import summary, write_report
from scripts.comparing.results import RunResult, read_run
from scripts.comparing.shares import shares
from scripts.comparing.sources import Manifests, manifests_now, require_same_source
from scripts.comparing.wall import Wall

DONE, SOME_FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared, and how it is run."""

    algorithms: str
    """Algorithms between commas: rows, LABEL=ROW, ROW+FIELD=VALUE, my_algorithm.py:ROW."""
    env: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Environment with its level, as calc:2; once for each."""
    seeds: int = 5
    """Seeds 0, 1, ... of every algorithm on every environment."""
    budget_tokens: int
    """Tokens that each run samples for training; it ends after the first step that reaches it."""
    tune: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Field with the values to try, as learning_rate=1e-4,3e-4,1e-3; several fields: every combination."""
    tuning_seeds: int = 1
    """Seeds of each tuning trial, from 1000 on; none of them is reported."""
    threshold: float = 0.0
    """Success that counts as learned; 0: halfway from the starting policies' mean to 1."""
    merge: tuple[Path, ...] = ()
    """comparison.json of earlier comparisons with the same budget, environments and shared options."""
    recipe: str = "calc_grpo"
    """Recipe that runs every cell."""
    parallel: int = 1
    """Runs at a time; more than one: as Ray tasks, each with its share of the cores and GPUs."""
    cell_deadline_s: float = 3600.0
    """Wall seconds after which a run is ended and counts as failed."""
    out: Path = Path("runs/compare")
    """Folder of the runs and the report."""


def make_plan(options: Options, shared: Sequence[str]) -> Plan:
    """The plan of `options`, every name checked. Raises CompareError."""
    for name in ("seeds", "budget_tokens", "tuning_seeds", "parallel"):
        if getattr(options, name) < 1:
            raise CompareError(f"{name} = {getattr(options, name)}: expected at least 1")
    if options.tuning_seeds != Options.tuning_seeds and not options.tune:
        raise CompareError(
            f"tuning_seeds = {options.tuning_seeds} has no effect without --tune; leave it out"
        )
    if not 0 <= options.threshold <= 1:
        raise CompareError(f"threshold = {options.threshold:g}: expected a success between 0 and 1")
    if not os.environ.get("RAY_ADDRESS"):  # a cluster's cores are known once it is joined
        machine = Machine.here()
        shares([(machine.cores, len(machine.gpus))], options.parallel)
    config = recipe_config(options.recipe)
    arms = parse_arms(options.algorithms, config)
    settings = parse_settings(options.env, config)
    return Plan(
        recipe=options.recipe,
        config=config,
        arms=arms,
        settings=settings,
        num_seeds=options.seeds,
        budget_tokens=options.budget_tokens,
        shared=tuple(shared),
        share=tuple(_learner_share(options.parallel, shared)),
        trials=parse_tuning(options.tune, arms, config, settings=settings, shared=shared),
        num_tuning_seeds=options.tuning_seeds,
    )


def _learner_share(num_parallel: int, shared: Sequence[str]) -> list[str]:
    """Runs side by side share the cores, unless the learner's threads are given."""
    if num_parallel == 1 or any(option.startswith("--learner-threads") for option in shared):
        return []
    return ["--learner-threads", str(max(1, Machine.here().cores // num_parallel))]


def check_cells(plan: Plan, cells: Sequence[Cell]) -> dict[str, Any]:
    """Refuse what cannot run or differs in more than was declared; returns the declared differences."""
    machine = Machine.here()
    resolved = [(cell, vars(resolve(plan.parsed(cell), machine))) for cell in cells]
    require_declared(resolved)
    return config_diff(resolved)


def show_diff(diff: dict[str, Any]) -> None:
    """Print the declared differences."""
    print("runs differ in these fields, and no other:")
    for field, values in diff.items():
        print(f"  {field}")
        for value, who in values.items():
            print(f"    {value:<24} {who}")


Results = list[tuple[Cell, RunResult]]


def run_cells(
    plan: Plan, cells: Sequence[Cell], options: Options, wall: Wall, earlier: Results
) -> tuple[list[dict[str, Any]], Results]:
    """Run what is not finished yet; entries of all cells, and the results of those that have one.

    Everything is held against everything that has finished, `earlier` included, before the first run starts
    and whenever one ends: the hours after a difference would be lost. Raises CompareError.
    """
    by_job = {
        Job(
            name=cell.name,
            folder=(folder := options.out.absolute() / cell.name),
            command=tuple(plan.command(cell, folder / "run")),
            deadline_s=options.cell_deadline_s,
        ): cell
        for cell in cells
    }
    waiting = [cell for job, cell in by_job.items() if status(job) != "finished"]
    results = [(cell, read_run(job.run)) for job, cell in by_job.items() if cell not in waiting]
    require_comparable([*earlier, *results], manifests_now((cell, plan.parsed(cell)) for cell in waiting))

    def ended(job: Job, outcome: Outcome) -> None:
        wall.note()
        if not outcome.reason:
            results.append((by_job[job], read_run(job.run)))
            require_comparable([*earlier, *results])

    run_jobs(list(by_job), lambda text: print(text, flush=True), num_parallel=options.parallel, ended=ended)
    entries = [entry_of(cell, job, plan.budget_tokens) for job, cell in by_job.items()]
    return entries, sorted(results, key=lambda result: cells.index(result[0]))


def require_comparable(results: Results, planned: Manifests = ()) -> None:
    """Raise CompareError where runs differ in more than was declared, or were not made by the same code."""
    require_declared([(cell, result.config) for cell, result in results])
    require_same_source([*((cell, result.manifest) for cell, result in results), *planned])


def compare(options: Options, shared: Sequence[str]) -> tuple[Comparison, list[Path]]:
    """Run the comparison to its end and write its report; the paths of that. Raises CompareError."""
    plan = make_plan(options, shared)
    show_diff(check_cells(plan, [*plan.tuning_cells, *plan.reported_cells({})]))
    with held(options.out):  # not before: what is refused leaves nothing behind
        comparison = _run(plan, options)
        return comparison, write_report(comparison, options.out)


def _run(plan: Plan, options: Options) -> Comparison:
    """Run every cell that is not finished, and put all of them together."""
    wall = Wall(options.out)
    tuning, num_reported = plan.tuning_cells, len(plan.reported_cells({}))
    print(f"{len(tuning)} tuning runs, then {num_reported} runs, {options.parallel} at a time\n", flush=True)
    try:
        tuning_entries, tuning_results = run_cells(plan, tuning, options, wall, [])
        chosen = choose_trials(tuning_entries, plan.arms, plan.settings) if tuning else {}
        for (setting, arm), trial in chosen.items():
            print(f"tuned: {arm} on {setting}: {', '.join(f'{field}={value}' for field, value in trial)}")
        reported = plan.reported_cells(chosen)
        entries, results = run_cells(plan, reported, options, wall, tuning_results)
    finally:
        wall_s = wall.note()
    manifests = [result.manifest for _, result in (*tuning_results, *results)]
    manifest = manifests[0] if manifests else {}
    comparison: Comparison = {
        "format": FORMAT,
        "recipe": plan.recipe,
        "budget_tokens": plan.budget_tokens,
        "shared": list(plan.shared),
        "settings": [setting_entry(setting) for setting in plan.settings],
        "threshold": options.threshold,
        "versions": manifest.get("versions", {}),
        "arms": [arm_entry(arm, _in_words(plan, arm.label)) for arm in plan.arms],
        "cells": entries,
        "tuning_cells": tuning_entries,
        "diff": config_diff([(cell, portable(result.config)) for cell, result in results]),
        "commands": [_made(manifests, wall_s)],
    }
    for path in options.merge:
        comparison = merge(comparison, path)
    return comparison


def _in_words(plan: Plan, arm: str) -> str:
    """The row that an arm trains with."""
    cell = next(cell for cell in plan.reported_cells({}) if cell.arm.label == arm)
    config: Config = plan.parsed(cell)
    return config.describe_algorithm()


def _made(manifests: Sequence[Mapping[str, Any]], wall_s: float) -> dict[str, Any]:
    machine = (manifests[0].get("machine") if manifests else None) or {}
    sources = [manifest.get("source") or {} for manifest in manifests] or [{}]
    commits = [f"{s.get('commit', 'unknown')}{' with changes' if s.get('dirty') else ''}" for s in sources]
    gpus = ", ".join(machine.get("gpus", ())) or "no GPU"
    return {
        "command": shlex.join(["python", "-m", "scripts.compare", *sys.argv[1:]]),
        "wall_s": round(wall_s, 1),
        "commit": ", ".join(dict.fromkeys(commits)),
        "machine": f"{machine.get('cores', os.cpu_count())} cores, {gpus}",
    }


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    own, shared = split_shared(sys.argv[1:])
    options = tyro.cli(Options, args=own, description=__doc__)
    try:
        comparison, written = compare(options, shared)
    except CompareError as error:
        print(f"Nothing is compared:\n{error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        again = shlex.join(["python", "-m", "scripts.compare", *sys.argv[1:]])
        print(f"\nINTERRUPTED. Finished runs are kept; to go on:\n  {again}", file=sys.stderr)
        return INTERRUPTED
    print(f"\n{summary(comparison)}")
    print("written: " + ", ".join(str(path) for path in written))
    return exit_code(comparison)


def exit_code(comparison: Comparison) -> int:
    """SOME_FAILED where a run has no score, also one that only tuned."""
    cells = (*comparison["cells"], *comparison["tuning_cells"])
    return SOME_FAILED if any(cell["failure"] for cell in cells) else DONE


def split_shared(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our options, and what follows `--`: those of the recipe."""
    words = list(arguments)
    where = words.index("--") if "--" in words else len(words)
    return words[:where], words[where + 1 :]


if __name__ == "__main__":
    sys.exit(main())
