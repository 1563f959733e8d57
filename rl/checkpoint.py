"""Saving the policy, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rl.durable import atomic_folder, require_free_bytes


def save_policy(model: Any, tokenizer: Any, path: Path) -> None:
    """Save model and tokenizer in Hugging Face format as the folder `path`.

    Raises:
        OSError: the disk is too small or full; the message names the path and what is missing. Nothing is
            left at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    require_free_bytes(path.parent, num_bytes, f"the checkpoint {path.name}")
    with atomic_folder(path) as folder:
        try:
            model.save_pretrained(folder, safe_serialization=True)
            tokenizer.save_pretrained(folder)
        except SafetensorError as error:  # how safetensors says that a write failed
            raise OSError(f"checkpoint {path} could not be written: {error}") from error
