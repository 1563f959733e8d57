"""Two comparisons as one: what they must have in common, and what then differs between their runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.comparing.comparison import FORMAT, Comparison, Entry, cell_of, short_fails
from scripts.comparing.names import CompareError
from scripts.comparing.plan import Configs, config_diff, require_declared

COMMON = ("format", "recipe", "budget_tokens", "shared", "settings", "threshold", "versions")
"""What two comparisons must have in common to be merged; of the shared options all but THREADS."""
THREADS = "learner_threads"
"""A share of the cores: how many runs were trained side by side says nothing of what is compared."""
NEEDED = {
    "arms": ("label", "algorithm"),
    "cells": ("setting", "arm", "seed", "trial", "failure", "seconds"),
    "tuning_cells": ("setting", "arm", "seed", "trial", "failure", "seconds"),
    "commands": ("command",),
}
"""Lists of a comparison.json, and what each of their entries must have."""


def merge(ours: Comparison, path: Path) -> Comparison:
    """`ours` with the arms and cells of another comparison.json, and with what differs among all of them.

    Raises:
        CompareError: it is none, its budget, settings, shared options or versions differ, an arm of one label
            is another arm there, a cell is in both, or cells differ in more than is declared.
    """
    theirs = _read(path)
    differ = [name for name in COMMON if _common(ours, name) != _common(theirs, name)]
    if differ:
        found = "; ".join(
            f"{name}: {ours[name]!r} here, {theirs.get(name, 'absent')!r} there" for name in differ
        )
        raise CompareError(f"--merge {path}: not the same comparison ({found})")
    known: Mapping[str, Entry] = {arm["label"]: arm for arm in ours["arms"]}
    for arm in theirs["arms"]:
        if known.get(arm["label"], arm) != arm:
            raise CompareError(
                f"--merge {path}: {arm['label']} is another arm there; name it otherwise, as "
                f"new={arm['label']}"
            )
    keys = {_key(cell) for cell in ours["cells"]}
    twice = [_key(cell) for cell in theirs["cells"] if _key(cell) in keys]
    if twice:
        setting, name, seed = twice[0]
        raise CompareError(
            f"--merge {path}: {name} on {setting}, seed {seed} is in both; leave it out of one"
        )
    labels = {arm["label"] for arm in (*ours["arms"], *theirs["arms"])}
    for cell in (*theirs["cells"], *theirs["tuning_cells"]):
        if cell["arm"] not in labels:
            raise CompareError(f"--merge {path}: a cell is of {cell['arm']!r}, which is none of its arms")
    merged = {
        **ours,
        "arms": [*ours["arms"], *(arm for arm in theirs["arms"] if arm["label"] not in known)],
        "cells": [*ours["cells"], *(short_fails(cell, ours["budget_tokens"]) for cell in theirs["cells"])],
        "tuning_cells": [*ours["tuning_cells"], *theirs["tuning_cells"]],
        "commands": [*ours["commands"], *theirs["commands"]],
        "unchecked": [*ours.get("unchecked", ()), *theirs.get("unchecked", ())],
    }
    if any("config" not in cell for cell in theirs["cells"] if not cell["failure"]):
        merged["unchecked"].append(str(path))
    try:
        require_declared(_configs(merged, "cells", "tuning_cells"), besides={THREADS})
    except CompareError as error:
        raise CompareError(f"--merge {path}: {error}") from error
    return merged | {"diff": config_diff(_configs(merged, "cells")) or ours["diff"]}


def _read(path: Path) -> Comparison:
    try:
        theirs = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CompareError(f"--merge {path}: cannot be read ({error}); expected a comparison.json") from error
    if not isinstance(theirs, dict) or theirs.get("format") != FORMAT:
        raise CompareError(f"--merge {path}: expected a comparison.json of format {FORMAT}")
    for name, needed in NEEDED.items():
        entries = theirs.get(name)
        if not isinstance(entries, list):
            raise CompareError(f"--merge {path}: has no list of {name}; expected a comparison.json")
        for number, entry in enumerate(entries):
            absent = [key for key in needed if key not in entry]
            if absent:
                raise CompareError(f"--merge {path}: {name}[{number}] has no {', '.join(absent)}")
    return theirs


def _common(comparison: Comparison, name: str) -> Any:
    value = comparison.get(name)
    return without_threads(value) if name == "shared" and isinstance(value, list) else value


def without_threads(options: Sequence[str]) -> list[str]:
    """`options` without the learner's threads, given as `--learner-threads N` or with an equals sign."""
    kept = []
    words = iter(options)
    for word in words:
        name, equals, _ = word.removeprefix("--").partition("=")
        if word.startswith("--") and name.replace("-", "_") == THREADS:
            if not equals:
                next(words, None)
        else:
            kept.append(word)
    return kept


def _configs(comparison: Comparison, *kinds: str) -> Configs:
    """Cells with the settings that they wrote down."""
    return [
        (cell_of(entry, comparison), entry["config"])
        for kind in kinds
        for entry in comparison[kind]
        if "config" in entry
    ]


def _key(cell: Entry) -> tuple[str, str, int]:
    return cell["setting"], cell["arm"], cell["seed"]
