"""Which runs a comparison is made of, each a full command line, and whether they differ only as declared."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.cli import parse
from rl.config import Config
from scripts.comparing.names import Arm, Changes, CompareError, Setting, as_options, row_options, slug

FIRST_TUNING_SEED = 1000
"""Tuning runs on other seeds than those that are reported: other tasks, other starting policies."""

PLACE = frozenset({"run_dir", "reward_workers"})
"""Where a run writes, and how many processes score: neither decides a number."""
BY_SETTING = frozenset({"env", "level"})
BY_SEED = frozenset({"seed", "model"})
"""The small starting policy is made of environment and seed; a model that is given is the same everywhere."""
BY_ARM = frozenset({"algorithm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of a comparison. `trial` are the tuned fields, in a tuning run and in the reported one."""

    arm: Arm
    setting: Setting
    seed: int
    trial: Changes = ()

    @property
    def is_tuning(self) -> bool:
        return self.seed >= FIRST_TUNING_SEED

    def sets(self, field: str) -> bool:
        """Whether an arm, a setting or a trial declares a value of its own for `field`."""
        return field in dict((*self.setting.changes, *self.arm.changes, *self.trial))

    @property
    def name(self) -> str:
        """Where it lies under the comparison's folder, and what messages call it."""
        kind = "tuning" if self.is_tuning else "cells"
        trial = [",".join(f"{field}={value}" for field, value in self.trial)] if self.is_tuning else []
        parts = [kind, slug(self.setting.label), slug(self.arm.label), *trial, f"seed_{self.seed}"]
        return "/".join(parts)


Configs = Sequence[tuple[Cell, Mapping[str, Any]]]
"""Cells with the fields of their configurations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all cells have in common, and of what the cells are made."""

    recipe: str
    config: Config  # the recipe's own
    arms: tuple[Arm, ...]
    settings: tuple[Setting, ...]
    num_seeds: int
    budget_tokens: int
    shared: tuple[str, ...] = ()
    share: tuple[str, ...] = ()  # of this machine, for a run that is not alone on it
    trials: tuple[Changes, ...] = ()
    num_tuning_seeds: int = 1

    @property
    def tuning_cells(self) -> list[Cell]:
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.num_tuning_seeds)
        return [
            Cell(arm=arm, setting=setting, seed=seed, trial=trial)
            for seed in seeds
            for setting in self.settings
            for trial in self.trials
            for arm in self.arms
        ]

    def reported_cells(self, chosen: Mapping[tuple[str, str], Changes]) -> list[Cell]:
        """The cells whose scores are reported, each with the trial that was `chosen` for (setting, arm).

        A seed's cells come together: a comparison that is cut off holds whole seeds.
        """
        return [
            Cell(arm=arm, setting=setting, seed=seed, trial=chosen.get((setting.label, arm.label), ()))
            for seed in range(self.num_seeds)
            for setting in self.settings
            for arm in self.arms
        ]

    def options(self, cell: Cell) -> list[str]:
        """The options of the recipe for `cell`, without its run directory; the later ones win."""
        changes = (*cell.setting.changes, *cell.arm.changes, *cell.trial)
        return [
            *row_options(self.config, self.shared),
            *self.shared,
            *self.share,
            *("--algorithm", cell.arm.algorithm, "--env", cell.setting.env),
            *("--level", str(cell.setting.level), "--seed", str(cell.seed)),
            *("--budget-tokens", str(self.budget_tokens)),
            *as_options(changes, self.config),
        ]

    def command(self, cell: Cell, run_dir: Path) -> list[str]:
        """The command line that runs `cell`."""
        return [
            sys.executable,
            "-m",
            f"recipes.{self.recipe}",
            *self.options(cell),
            "--run-dir",
            str(run_dir),
        ]

    def parsed(self, cell: Cell) -> Config:
        """The configuration that `cell` will run; CompareError with its name where it cannot run."""
        try:
            return parse(self.config, self.options(cell))
        except SystemExit as error:
            raise CompareError(
                f"{cell.name} cannot run (the reason stands above); its options: "
                f"{' '.join(self.options(cell))}"
            ) from error


def undeclared(configs: Configs, besides: Set[str] = frozenset()) -> list[str]:
    """Every field in which cells differ though nothing declares it: one line each, naming field and cells.

    Fields of `besides` may differ anywhere.

    Cells that share setting and seed may differ by arm only, those of one arm by setting and seed. A field
    that an arm, a setting or a trial sets is compared among the cells where it is not set.
    """
    problems = []
    for key, allowed in (
        (lambda cell: (cell.setting.label, cell.seed), BY_ARM),
        (lambda cell: cell.arm.label, BY_SETTING | BY_SEED),
        (lambda cell: (cell.arm.label, cell.setting.label), BY_SEED),
    ):
        groups: dict[Any, list[tuple[Cell, Mapping[str, Any]]]] = {}
        for cell, config in configs:
            groups.setdefault(key(cell), []).append((cell, config))
        for group in groups.values():
            problems += _differences(group, allowed | PLACE | besides)
    return list(dict.fromkeys(problems))


def _differences(group: Configs, allowed: Set[str]) -> Iterator[str]:
    for field in sorted({field for _, config in group for field in config} - allowed):
        comparable = [(cell, config.get(field, "absent")) for cell, config in group if not cell.sets(field)]
        for cell, value in comparable[1:]:
            first, expected = comparable[0]
            if value != expected:
                yield f"{field}: {expected!r} in {first.name}, {value!r} in {cell.name}"


def require_declared(configs: Configs, besides: Set[str] = frozenset()) -> None:
    """Raise CompareError where cells differ in more than was declared."""
    if problems := undeclared(configs, besides):
        raise CompareError(
            "cells differ in more than was declared, so their scores cannot be compared:\n  "
            + "\n  ".join(problems)
        )


def config_diff(configs: Configs) -> dict[str, dict[str, str]]:
    """The declared differences: field -> value -> the arms, settings and seeds that have it, in words."""
    diff: dict[str, dict[str, str]] = {}
    for field in sorted({field for _, config in configs for field in config} - PLACE):
        holders: dict[str, list[Cell]] = {}
        for cell, config in configs:
            holders.setdefault(str(config.get(field, "absent")), []).append(cell)
        if len(holders) > 1:
            diff[field] = {value: _who(cells) for value, cells in holders.items()}
    return diff


def _who(cells: Iterable[Cell]) -> str:
    arms, settings, seeds = (
        list(dict.fromkeys(names))
        for names in zip(*((c.arm.label, c.setting.label, str(c.seed)) for c in cells), strict=True)
    )
    return f"{', '.join(arms)} on {', '.join(settings)}, seed {', '.join(seeds)}"
