"""Whether runs were made of the same: our code, the versions of the stack, and files that a user names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rl.config import Config
from rl.inputs import code_digests, input_digests
from rl.machine import stack_versions
from scripts.comparing.names import CompareError
from scripts.comparing.plan import Cell

Manifests = Sequence[tuple[Cell, Mapping[str, Any]]]
"""Cells with the manifest.json of their runs, or with what it would hold."""
FILES = ("algorithm", "env", "reward", "model")
"""Settings that may name a file or folder; the same name must be the same content in all cells."""
NUM_NAMES = 3
"""So many cells of each kind are named in a message."""


def manifests_now(configs: Iterable[tuple[Cell, Config]]) -> list[tuple[Cell, dict[str, Any]]]:
    """What the manifests of runs that start now will say of their making."""
    common = {"code": code_digests(), "versions": stack_versions()}
    return [
        (
            cell,
            {
                **common,
                **{name: getattr(config, name) for name in FILES},
                "inputs": input_digests(config),
            },
        )
        for cell, config in configs
    ]


def require_same_source(manifests: Manifests) -> None:
    """Raise CompareError where runs were made by other code, other versions, or another file of one name.

    The digests of our packages count, not the commit: one that touches documentation only changes no run, and
    two checkouts with changes share a commit. An algorithm's file, an environment's and a reward's are
    compared wherever they are named, hence within an arm and within a setting. Files that a user's own file
    imports have no digest, so a change in them is not seen.
    """
    if problems := source_differences(manifests):
        raise CompareError(
            "runs were not made by the same code, so their scores cannot be compared; remove the folders of "
            "the older ones and repeat the command, or go back to the code that made them, or give another "
            "--out:\n  " + "\n  ".join(problems)
        )


def source_differences(manifests: Manifests) -> list[str]:
    """What runs were not made alike of: one line each, with the cells that have each value."""
    return [problem for what, values in _facts(manifests) for problem in _differences(what, values)]


def _facts(manifests: Manifests) -> Iterator[tuple[str, list[tuple[Cell, str]]]]:
    """What must be one value each, with that value by cell."""
    for field in ("code", "versions"):
        for name in sorted({name for _, manifest in manifests for name in manifest.get(field) or {}}):
            values = [(cell, (manifest.get(field) or {}).get(name, "absent")) for cell, manifest in manifests]
            yield f"{field}: {name}", values
    for field in FILES:
        digests: dict[str, list[tuple[Cell, str]]] = {}
        for cell, manifest in manifests:
            digest = (manifest.get("inputs") or {}).get(field)
            if digest is not None:
                digests.setdefault(_file(str(manifest.get(field, ""))), []).append((cell, digest))
        yield from ((f"{field}: {file} with digest", values) for file, values in digests.items())


def _differences(what: str, values: Sequence[tuple[Cell, str]]) -> Iterator[str]:
    holders: dict[str, list[str]] = {}
    for cell, value in values:
        holders.setdefault(value, []).append(cell.name)
    if len(holders) > 1:
        yield f"{what} " + ", ".join(f"{value} in {_named(cells)}" for value, cells in holders.items())


def _named(cells: Sequence[str]) -> str:
    more = len(cells) - NUM_NAMES
    return " and ".join([*cells[:NUM_NAMES], *([f"{more} more"] if more > 0 else [])])


def _file(name: str) -> str:
    """The file of `file.py:function`."""
    head = name.partition(":")[0]
    return head if head.endswith(".py") else name
