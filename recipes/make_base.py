"""The policy that training starts from: a tiny Qwen3 that knows the task's format and solves some of it.

Trained on the environment's own reference episodes until its sampled success on held-out tasks is where RL
has something to learn from: with far less no group has a winner, with far more few have a loser. Success
rises from nothing to everything within some dozens of steps, so it is measured: no number of steps hits it.

    python -m recipes.make_base --spec.seed 1

Expect on a CPU: half a minute, about 100 steps, success 0.35 to 0.5.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

import torch
import transformers
import tyro

from envs.registry import EnvDefinition, resolve_env
from recipes.warm_start import BaseSpec, WarmStart
from rl.durable import atomic_folder, atomic_write_json

DEFAULT_CACHE = Path("~/.cache/whetstone")

SOURCES = ("recipes.warm_start", "recipes.char_tokenizer", "rollout.renderer")
"""Modules whose code shapes the weights, besides the environment's own."""


def make_base(env: str, *, level: int = 1, seed: int = 0, cache_dir: Path | str = "") -> Path:
    """The folder of the default base policy for an environment; see `make_base_from`."""
    return make_base_from(BaseSpec(env=env, level=level, seed=seed), cache_dir)


def make_base_from(spec: BaseSpec, cache_dir: Path | str = "", *, role: str = "base policy") -> Path:
    """The folder of the base policy of `spec`, in Hugging Face format: trained now, or found in the cache.

    `cache_dir` "" is DEFAULT_CACHE; `role` begins the lines of progress. Of processes that make the same base
    at once, the first to end is kept.

    Raises:
        ValueError: unknown environment or level.
        BaseError: its success never was inside the window.
    """
    definition = resolve_env(spec.env)
    definition.require_level(spec.level)
    inputs = {
        "spec": asdict(spec),
        "sources": input_sources(definition),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    key = blake2b(json.dumps(inputs, sort_keys=True).encode(), digest_size=8).hexdigest()
    folder = Path(cache_dir or DEFAULT_CACHE).expanduser() / f"base-{key}"
    if folder.is_dir():
        return folder
    warm_start = WarmStart(spec, definition, role=role)
    with one_thread():
        result = warm_start.run()
    transformers.utils.logging.disable_progress_bar()  # one shard of 2 MB
    try:
        with atomic_folder(folder) as temporary:
            warm_start.model.save_pretrained(temporary)
            warm_start.tokenizer.save_pretrained(temporary)
            atomic_write_json(temporary / "base.json", {"inputs": inputs, "result": asdict(result)})
    except FileExistsError:
        if not folder.is_dir():
            raise
    return folder


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one CPU thread: sums have one order, and so small a model gains nothing from more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def input_sources(definition: EnvDefinition) -> dict[str, str]:
    """Digest of each source file that makes episodes or weights, by file name."""
    modules = {definition.make_task.__module__, definition.reference.__module__, *SOURCES}
    files = {__file__, *(inspect.getfile(sys.modules[name]) for name in modules)}
    paths = sorted(Path(file) for file in files)
    return {path.name: blake2b(path.read_bytes(), digest_size=8).hexdigest() for path in paths}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Make a base policy, and say where it is."""

    spec: BaseSpec = field(default_factory=BaseSpec)
    cache_dir: str = ""
    """Where base policies are kept. Empty: ~/.cache/whetstone."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    folder = make_base_from(options.spec, options.cache_dir)
    result = json.loads((folder / "base.json").read_text())["result"]
    print(f"\nsuccess {result['success']:.3f}, {result['steps']} steps, {result['seconds']:.0f} s: {folder}")


if __name__ == "__main__":
    main()
