"""Export what a run has trained as a model folder without the run's own state, or as an adapter.

    python -m scripts.export runs/NAME --to my_model               # a whole model, an adapter merged into it
    python -m scripts.export runs/NAME --to my_adapter --adapter   # of a LoRA run the adapter alone, for peft

Takes the directory of a run (its newest sound checkpoint), a checkpoint, or any adapter in peft's format.
What is written gives the log-probs of the trained policy: AutoModelForCausalLM.from_pretrained reads the
first, PeftModel.from_pretrained the second, beside the model that it names, loaded in 4 bits where base.json
says so (--lora.base nf4). Exit code 0: exported; 2: refused.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rl.checkpoint import HASHES, newest_sound, verify
from rl.durable import atomic_folder
from rl.model_folder import ADAPTER, format_of
from rollout.tokenizer import TOKENIZER_FILES, load_tokenizer

STATE = ("training", HASHES)
"""Of a checkpoint: what a resume needs and nothing else does."""

REFUSED = 2


class ExportError(ValueError):
    """Nothing was exported; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Options:
    source: Annotated[Path, tyro.conf.Positional]
    """Directory of a run, a checkpoint of one, or an adapter."""
    to: Path
    """Folder to write, which is not there yet."""
    adapter: bool = False
    """Export the adapter alone."""


def find_checkpoint(source: Path) -> Path:
    """The newest sound checkpoint of a run; a checkpoint or adapter itself, sound by its own hashes.

    Raises:
        ExportError: there is none.
        CheckpointError: the checkpoint is damaged.
    """
    if (source / "checkpoints").is_dir():
        found, problems = newest_sound(source / "checkpoints")
        if found is None:
            raise ExportError(f"{source} has no sound checkpoint: {'; '.join(problems) or 'it holds none'}")
        return found
    if not (source / ADAPTER).is_file() and not (source / HASHES).is_file():
        raise ExportError(f"{source} is no directory of a run, no checkpoint and no adapter")
    if (source / HASHES).is_file():
        verify(source)
    return source


def export(checkpoint: Path, to: Path, *, adapter: bool = False) -> None:
    """Write the model of `checkpoint`, or its adapter alone, to the folder `to`, whole or not at all.

    Raises:
        ExportError: an adapter is asked for, and all weights were trained.
        FileExistsError: `to` is there.
        ValueError: the adapter's base is not there, or is another one by now.
    """
    is_adapter = (checkpoint / ADAPTER).is_file()
    if adapter and not is_adapter:
        raise ExportError(f"{checkpoint} holds a whole model, no adapter: leave --adapter out")
    with atomic_folder(to) as folder:
        if is_adapter and not adapter:
            from rl.model_lora import base_of, merged_model  # with peft

            merged_model(checkpoint).save_pretrained(folder)
            tokenizer = load_tokenizer(str(checkpoint) if _has_tokenizer(checkpoint) else base_of(checkpoint))
            tokenizer.save_pretrained(folder)
        else:
            shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns(*STATE), dirs_exist_ok=True)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    try:
        checkpoint = find_checkpoint(options.source.expanduser())
        export(checkpoint, options.to, adapter=options.adapter)
    except (OSError, ValueError) as error:
        print(f"Nothing was exported:\n{error}", file=sys.stderr)
        return REFUSED
    print(f"{checkpoint} exported to {options.to}")
    if options.adapter and (held := format_of(options.to)) != "full":
        print(f"It is for its base in {held}, doubly quantised: load the base so, or export the whole model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
