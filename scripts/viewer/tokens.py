"""Token ids as text, one by one, with the tokenizer that the run used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl.token_colors import printable

TOKENIZER_FILE = "tokenizer.json"


class TokenTexts:
    """The text of single tokens. `note` says why there is none, and is empty where there is.

    The tokenizer is that of the run's newest checkpoint, else of its model: a folder, or a hub id whose files
    lie in the local cache. Nothing is downloaded, and no code that comes with a model is run.
    """

    def __init__(self, run: Path, model: str) -> None:
        self._known: dict[int, str] = {}
        self._tokenizer: Any = None
        self.note = ""
        path = _tokenizer_file(run, model)
        if path is None:
            self.note = (
                f"token ids are shown without text: neither the run's checkpoints nor its model {model!r} "
                f"has a {TOKENIZER_FILE} on this machine"
            )
            return
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for a file that it cannot read
            self.note = f"token ids are shown without text: {path} cannot be loaded ({error})"

    def of(self, token_id: int) -> str | None:
        """The token's text with control characters spelled out; None where there is no tokenizer.

        A token that is a part of a character reads as U+FFFD.
        """
        if self._tokenizer is None:
            return None
        if token_id not in self._known:
            text = self._tokenizer.decode([token_id], skip_special_tokens=False)
            self._known[token_id] = printable(text)
        return self._known[token_id]


def _tokenizer_file(run: Path, model: str) -> Path | None:
    newest_first = sorted((run / "checkpoints").glob(f"step_*/{TOKENIZER_FILE}"), reverse=True)
    folders = [*newest_first, *([Path(model) / TOKENIZER_FILE] if model else [])]
    found = next((path for path in folders if path.is_file()), None)
    return found or _cached(model)


def _cached(model: str) -> Path | None:
    """The tokenizer of a hub id in Hugging Face's local cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, TOKENIZER_FILE)
    except HFValidationError:  # a path, or nothing at all
        return None
    return Path(found) if isinstance(found, str) else None
