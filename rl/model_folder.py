"""What a Hugging Face model folder lacks, found from its files alone: nothing is loaded, nothing is run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl.lora_settings import LoraBase
from rollout.renderer import TURN_END, TURN_START
from rollout.tokenizer import TOKENIZER_FILES

ADAPTER = "adapter_config.json"
FORMAT = "base.json"
"""Beside an adapter whose base was in 4 bits: peft has no place to say so, and beside whole weights the same
adapter answers otherwise."""
MARKERS = (TURN_START, TURN_END)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_problems(model: str, *, option: str = "model") -> Iterator[str]:
    """Why `model` cannot be used. A hub id is checked once it is fetched; "" is the recipe's own model."""
    folder = Path(model).expanduser()
    if not model or (HUB_ID.fullmatch(model) and not folder.exists()):
        return
    if not folder.is_dir():
        yield f"{option} = {model!r}: no such folder, and not a hub id of the form owner/name"
        return
    settings = _read_json(folder / "config.json")
    adapter = _read_json(folder / ADAPTER)
    if settings is None and adapter is not None:
        base = adapter.get("base_model_name_or_path")
        yield (
            f"{option} = {model!r} holds an adapter, not a model: give {option} {base} with --lora.adapter "
            f"{model}, or merge it first: python -m scripts.export {model} --to FOLDER"
        )
        return
    if settings is None:
        yield f"{option} = {model!r}: no readable config.json; expected a Hugging Face model folder"
    elif "auto_map" in settings:
        yield f"{option} = {model!r}: its config.json asks to run code of its own (auto_map), never done here"
    if not any(folder.glob("*.safetensors")):
        yield f"{option} = {model!r}: no *.safetensors weights; save it with save_pretrained"
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        yield f"{option} = {model!r}: no tokenizer (one of {', '.join(TOKENIZER_FILES)}); save it there too"
    tokenizer = _read_json(folder / "tokenizer.json")
    missing = [] if tokenizer is None else [token for token in MARKERS if token not in _tokens(tokenizer)]
    if missing:
        yield (
            f"{option} = {model!r}: its tokenizer lacks {' and '.join(missing)}, which ChatML needs; use "
            "a model that has them, or add them and resize the embeddings"
        )


def _read_json(path: Path) -> dict[str, Any] | None:
    """The file's content; None where there is no file or it holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _tokens(tokenizer: dict[str, Any]) -> set[str]:
    """Every token that a tokenizer.json names."""
    vocabulary = tokenizer["model"].get("vocab", ())
    # BPE and WordPiece map token to id; Unigram lists (token, score).
    named = vocabulary if isinstance(vocabulary, dict) else (entry[0] for entry in vocabulary)
    return {*named, *(token["content"] for token in tokenizer.get("added_tokens", ()))}


def format_of(folder: str | Path) -> LoraBase:
    """How the base was held that the adapter in `folder` was trained beside; full where nothing says so.

    Raises:
        ValueError: what is there cannot be read.
    """
    file = Path(folder).expanduser() / FORMAT
    if not file.is_file():
        return "full"
    try:
        if json.loads(file.read_text())["lora_base"] == "nf4":
            return "nf4"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    raise ValueError(f'{file} names a base that is not known here; expected {{"lora_base": "nf4"}}')
