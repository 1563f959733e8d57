"""Loading tokenizers: Hugging Face folders and hub ids, fast tokenizers only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""A model folder holds at least one of them."""


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model folder or hub id. Code that comes with it is never run.

    Raises:
        ValueError: there is none, or it is not a fast one (literal text must be separable from special
        tokens).
    """
    from transformers import AutoTokenizer  # takes a second, and only loading needs it

    folder = Path(model)
    # transformers makes an empty tokenizer for a folder that names its architecture and holds none.
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"--model {model!r} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save the model's "
            "own there with tokenizer.save_pretrained"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"--model {model!r} has no tokenizer that can be loaded: {error}. Expected a Hugging Face model "
            "folder, or the id of such a model on the hub"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"--model {model!r} has a slow tokenizer ({type(tokenizer).__name__}); convert it to a fast one "
            "(tokenizer.json): only those keep literal text apart from special tokens"
        )
    return tokenizer
