"""The adapters that scripts/evaluate.py evaluates beside one model: found, named, and refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rl.checkpoint import NUMBERS, CheckpointError, load_learner_state
from rl.evaluation import EvaluationError
from rl.lora import unserved
from rl.model import load_causal_lm, meta_model
from rl.model_folder import ADAPTER
from rollout.engine_adapters import adapter_manifest, adapter_shape
from rollout.engine_spec import ADAPTER_RANKS, EngineSpec
from rollout.manifest import Manifest
from scripts._evaluated import Source, find_policy

MODEL_ALONE = "base"
"""The name of the model without any adapter: in the report, and of its folder in --out."""

NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedAdapter:
    """An adapter: its name on the engines, in the report and of its folder in --out; what it is made of."""

    name: str
    source: Source
    manifest: Manifest


def find_adapters(words: Sequence[str], base: Source) -> list[NamedAdapter]:
    """The adapters that PATH and NAME=PATH stand for, each of another version from 1 on.

    Raises:
        EvaluationError: one is no adapter of `base`, is larger than engines have room for, or names repeat;
            everything that is wrong is told at once.
    """
    if base.adapter:
        raise EvaluationError(
            f"--model {base.name} holds an adapter itself; with --adapters it is the model that they are "
            "beside: give that one, and this with the adapters"
        )
    names = [_name_of(word) for word in words]
    problems = [*_name_problems(names)]
    model = meta_model(base.model)
    found: list[NamedAdapter] = []
    for name, path in names:
        try:
            source = find_policy(path)
            folder = Path(source.model).expanduser()
            if not (folder / ADAPTER).is_file():
                raise EvaluationError(
                    f"--adapters {path}: {folder} holds no {ADAPTER}; expected an adapter in peft's format, "
                    "a checkpoint or the directory of a run that trained one. A whole model is --model"
                )
            if unfit := [*_problems(model, str(folder), base)]:
                raise EvaluationError("\n".join(unfit))
            manifest = adapter_manifest(folder, version=len(found) + 1)
        except ValueError as error:
            problems.append(str(error))
            continue
        problems += _room_problems(model, base, path, manifest)
        found.append(NamedAdapter(name=name, source=replace(source, name=name), manifest=manifest))
    if not problems:
        problems += _base_problems(base, found)
    if problems:
        raise EvaluationError("\n".join(problems))
    return found


def _name_of(word: str) -> tuple[str, str]:
    """(name, path) of NAME=PATH, or of a PATH, whose last part is the name."""
    name, equals, path = word.partition("=")
    return (name, path) if equals else (Path(word).expanduser().resolve().name, word)


def _name_problems(names: Sequence[tuple[str, str]]) -> Iterator[str]:
    given = [name for name, _ in names]
    for name, path in names:
        if not NAME.fullmatch(name):
            yield (
                f"--adapters {path}: the name {name!r} is also that of a folder; expected letters, digits, "
                "_ . -: give NAME=PATH"
            )
    for name in sorted({name for name in given if given.count(name) > 1}):
        yield f"--adapters: {given.count(name)} are called {name!r}; name each, NAME=PATH"
    if MODEL_ALONE in given:
        yield f"--adapters: {MODEL_ALONE!r} is the name of the model alone; give another, NAME=PATH"


def _problems(model: Any, folder: str, base: Source) -> Iterator[str]:
    from rl.model_adapter import adapter_problems  # with peft

    yield from adapter_problems(model, folder, base.model, base_format="full", option="--adapters")


def _room_problems(model: Any, base: Source, path: str, manifest: Manifest) -> Iterator[str]:
    rank, targets = adapter_shape(manifest)
    merge = f"evaluate it merged, by itself (--model {path})"
    for problem in unserved(model, base.model, targets):
        yield f"--adapters {path}: {problem}; {merge}"
    if rank > ADAPTER_RANKS[-1]:
        yield f"--adapters {path} has rank {rank}; engines have room for {ADAPTER_RANKS[-1]}: {merge}"


def _base_problems(base: Source, adapters: Sequence[NamedAdapter]) -> Iterator[str]:
    """Which checkpoints were trained beside other weights than the model has by now."""
    from rl.model_lora import base_crc32, require_crc32  # with peft

    folders = [Path(each.manifest.path) for each in adapters]
    saved = [folder for folder in folders if (folder / NUMBERS).is_file()]
    if not saved:
        return
    crc32 = base_crc32(load_causal_lm(base.model))
    for folder in saved:
        try:
            require_crc32(load_learner_state(folder).numbers, folder, base=base.model, crc32=crc32)
        except CheckpointError as error:
            yield f"--adapters {error}"


def with_room(specs: Sequence[EngineSpec], adapters: Sequence[NamedAdapter]) -> list[EngineSpec]:
    """`specs` with room for the adapters, if there are any."""
    if not adapters:
        return [*specs]
    shapes = [adapter_shape(each.manifest) for each in adapters]
    return [
        replace(
            spec,
            adapter_rank=max(rank for rank, _ in shapes),
            adapter_targets=tuple(sorted({target for _, targets in shapes for target in targets})),
            num_adapters=len(adapters),
        )
        for spec in specs
    ]
