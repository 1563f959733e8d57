"""Loading tokenizers: Hugging Face folders and hub ids, fast tokenizers only."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model folder or hub id. Code that comes with it is never run.

    Raises:
        ValueError: there is none, or it is not a fast one (literal text must be separable from special
        tokens).
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"--model {path!r} has no tokenizer that can be loaded: {error}. Expected tokenizer.json beside "
            f"the "
            f"weights; save it there with tokenizer.save_pretrained"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"--model {path!r} has a slow tokenizer ({type(tokenizer).__name__}); convert it to a fast one "
            f"(tokenizer.json): only those keep literal text apart from special tokens"
        )
    return tokenizer
