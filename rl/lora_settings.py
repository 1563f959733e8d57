"""Settings of LoRA (arXiv 2106.09685): a frozen base, and a small adapter beside it that learns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, TypeVar

from rl.overrides import NonNegative, Positive, Size

if TYPE_CHECKING:
    from rl.config import Config

LoraSync = Literal["auto", "merged", "adapter"]
LoraBase = Literal["full", "nf4"]

BITSANDBYTES = "0.50.2"
"""The release that quantises, as pyproject.toml pins it: an extra, which only lora_base nf4 imports."""

ALL_LINEAR = "all-linear"
AUTO = "auto"

C = TypeVar("C", bound="Config")

LR_FACTOR = 10.0
"""The adapter's learning rate as a multiple of the one for all weights: the best rate of LoRA was found to be
about ten times that of full fine-tuning, whatever the rank (Thinking Machines, "LoRA Without Regret", 2025).
"""

ALPHA_FACTOR = 2.0
"""alpha / rank where no alpha is given: the scale of what the adapter adds does not depend on the rank."""

OPTION = "--lora."


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """An adapter to be trained: a new one of `rank`, or with `adapter` (folder or hub id) one that goes on.

    With `serves_adapter` engines get the adapter alone, else the base with what it adds. `base` says how the
    frozen weights are held.
    """

    rank: int = 0
    alpha: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    adapter: str = ""
    serves_adapter: bool = False
    base: LoraBase = "full"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The part of a Config that says what learns: all weights, or an adapter. --lora.rank is --lora-rank."""

    lora_rank: Size = 0
    """Rank of the adapter (LoRA) that is trained beside the frozen model; 0: none. Also --lora.rank."""
    lora_alpha: Positive | None = None
    """The adapter counts alpha / rank times. None: twice the rank. Also --lora.alpha."""
    lora_targets: str = AUTO
    """Modules with an adapter, by the ends of their names, such as q_proj,v_proj; all-linear: every linear
    layer but the head. auto: that, and merged also the token embedding of a vocabulary of at most 1,024,
    where that is not tied to the head or backend is plain. Also --lora.targets."""
    lora_adapter: str = ""
    """Folder or hub id of an adapter to go on with, in peft's format; rank, alpha and targets are its own. A
    KL's reference is then the model with it. Also --lora.adapter."""
    lora_lr: NonNegative | None = None
    """Peak learning rate of the adapter. None: ten times learning_rate. Also --lora.lr."""
    lora_sync: LoraSync = "auto"
    """What engines get: the adapter alone, or merged, the whole model with it added. auto: the adapter on a
    GPU, merged on a CPU, where an engine samples half as fast with an adapter. Also --lora.sync."""
    lora_base: LoraBase = "full"
    """How the learner holds the frozen model. nf4: its linear layers in 4 bits (QLoRA), which takes an eighth
    of the memory; engines are sent what these 4 bits stand for, with the adapter merged. Needs bitsandbytes.
    Also --lora.base."""

    @property
    def trains_adapter(self) -> bool:
        """Whether LoRA is on."""
        return self.lora_rank > 0 or bool(self.lora_adapter)

    @property
    def starts_from_its_model(self) -> bool:
        """Whether the policy of a new run is the model's folder, from which engines load."""
        return not self.lora_adapter and self.lora_base == "full"

    @property
    def lora(self) -> LoraSpec | None:
        """The adapter of a resolved configuration; None where all weights are trained."""
        if not self.trains_adapter:
            return None
        return LoraSpec(
            rank=self.lora_rank,
            alpha=self.lora_alpha or 0.0,
            targets=self.target_names,
            adapter=self.lora_adapter,
            serves_adapter=self.lora_sync == "adapter",
            base=self.lora_base,
        )

    @property
    def target_names(self) -> tuple[str, ...]:
        """The targets, one by one."""
        return tuple(name.strip() for name in self.lora_targets.split(",") if name.strip())


def undotted(word: str) -> str:
    """--lora.rank as the option of the field that it is, --lora-rank; any other word as it is."""
    return word.replace(OPTION, "--lora-", 1) if word.startswith(OPTION) else word


def resolved_lora(config: Config, *, on_gpu: bool) -> dict[str, object]:
    """The settings of LoRA in place of "auto" and None; nothing where it is off."""
    if not config.trains_adapter:
        return {}
    automatic = "adapter" if on_gpu and config.lora_base == "full" else "merged"
    alpha = config.lora_alpha
    if alpha is None and not config.lora_adapter:
        alpha = ALPHA_FACTOR * config.lora_rank
    return {
        "lora_sync": automatic if config.lora_sync == "auto" else config.lora_sync,
        "lora_alpha": alpha,
        "lora_lr": LR_FACTOR * config.learning_rate if config.lora_lr is None else config.lora_lr,
    }


def lora_problems(config: Config) -> Iterator[str]:
    """Settings of LoRA without effect, or that do not fit together; what needs the model is in rl/lora.py."""
    given = [name for name in _NAMES if getattr(config, name) != getattr(LoraSettings, name)]
    if config.sabotage == "no_adapter" and config.lora_sync != "adapter":
        yield "sabotage = 'no_adapter' has no effect: engines get all weights; add lora_sync adapter"
    if not config.trains_adapter:
        for name in given:
            yield f"{name} has no effect without an adapter; set lora_rank (8 is usual), or leave it out"
        return
    if config.lora_adapter:
        for name in [name for name in given if name in ("lora_rank", "lora_alpha", "lora_targets")]:
            yield (
                f"{name} = {getattr(config, name)!r} with lora_adapter = {config.lora_adapter!r}, which "
                "brings its own: leave it out"
            )
    if not config.target_names:
        yield f"lora_targets = {config.lora_targets!r} names no module; give {ALL_LINEAR} or names of modules"
    if AUTO in config.target_names and len(config.target_names) > 1:
        yield f"lora_targets = {config.lora_targets!r}: {AUTO} stands alone; leave it or the others out"
    if config.lora_sync == "adapter" and config.sabotage not in ("", "no_adapter", "perturb_learner"):
        yield (
            f"sabotage = {config.sabotage!r} breaks a load of all weights, and lora_sync = 'adapter' loads "
            "the adapter alone; use lora_sync merged"
        )
    if config.backend == "deepspeed":
        yield (
            "backend = 'deepspeed' with an adapter: adapters are trained by plain torch and by FSDP2 so far; "
            "use backend fsdp or plain, or leave the adapter out"
        )
    if config.lora_sync == "adapter" and config.sync_backend not in ("auto", "shm"):
        yield (
            f"sync_backend = {config.sync_backend!r} has no effect with lora_sync = 'adapter', which engines "
            "load from files on this host; use auto"
        )
    if config.lora_base == "nf4":
        yield from _nf4_problems(config)


def _nf4_problems(config: Config) -> Iterator[str]:
    if config.lora_sync == "adapter":
        yield (
            "lora_base = 'nf4' with lora_sync = 'adapter': engines would serve the adapter beside the whole "
            "model, and it is trained beside a rounded one; use lora_sync merged, which sends what it is "
            "trained beside"
        )
    if config.backend != "plain":
        yield (
            f"lora_base = 'nf4' with backend = {config.backend!r}: weights in 4 bits are not sharded here; "
            "use backend plain, or lora_base full"
        )
    yield from missing_bitsandbytes()


def missing_bitsandbytes() -> Iterator[str]:
    """What to do where the package is not there. It is not imported."""
    if find_spec("bitsandbytes") is None:
        yield (
            "lora_base = 'nf4': the package bitsandbytes is not installed; bring it in with `"
            f"{sys.executable} -m pip install --no-deps bitsandbytes=={BITSANDBYTES}`, or use lora_base full"
        )


_NAMES = tuple(LoraSettings.__dataclass_fields__)
