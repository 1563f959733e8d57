"""Whether an adapter in peft's format, a folder or on the hub, can be beside a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import PeftConfig
from peft.utils.save_and_load import load_peft_weights

from rl.lora import shape_problems, told
from rl.lora_settings import LoraBase
from rl.model_folder import FORMAT, format_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of peft's that take something out of the base: it would not stay as it is."""


EXTRAS = (
    "use_dora",
    "modules_to_save",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
)
"""Settings of peft's that add more to the base than scale * B @ A."""


def adapter_problems(
    model: Any, path: str, base: str, *, base_format: LoraBase, option: str = "lora_adapter"
) -> Iterator[str]:
    """Why the adapter `path` (folder or hub id) cannot be beside `model` (meta will do), called `base`.

    `option` is the setting that names it; `base_format` is how the model's weights are held.
    """
    where = f"{option} = {path!r}"
    try:
        config = PeftConfig.from_pretrained(path)
        weights = load_peft_weights(path, device="cpu")
        trained_beside = format_at(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        yield (
            f"{where} cannot be read as an adapter: {error}. Expected a folder with {CONFIG} and {WEIGHTS}, "
            "as peft saves them, or the id of such an adapter on the Hugging Face hub"
        )
        return
    if trained_beside not in ("full", base_format):
        yield (
            f"{where} was trained beside its base in {trained_beside}, and lora_base is {base_format!r}, "
            f"beside which it answers otherwise; add lora_base {trained_beside}"
        )
    if config.peft_type != "LORA":
        yield f"{where} is of peft's type {config.peft_type}; only LORA is trained here"
        return
    settings: Any = config
    used = [name for name in EXTRAS if getattr(settings, name, None)]
    used += ["bias"] if settings.bias != "none" else []
    if used:
        yield f"{where} has {', '.join(used)}; only W + scale * B @ A is trained here"
    if str(settings.init_lora_weights).startswith(CHANGES_BASE):
        yield (
            f"{where} was begun by init_lora_weights = {settings.init_lora_weights!r}, which changes the "
            "base; convert it to a plain one (peft: path_initial_model_for_weight_conversion)"
        )
    if problems := shape_problems(model, {name: tensor.shape for name, tensor in weights.items()}):
        yield (
            f"{where} is of another base ({settings.base_model_name_or_path}) than model {base}: "
            f"{told(problems)}"
        )
    elif not _is_same(settings.base_model_name_or_path, base):
        yield (
            f"{where} was trained beside {settings.base_model_name_or_path!r}, and model is {base!r}, whose "
            "layers have the same shapes. Use that model; if it is the same under another name, say so in "
            f"{CONFIG} (base_model_name_or_path)"
        )


def format_at(path: str) -> LoraBase:
    """As format_of, of a folder or a hub id: there too base.json says so, and an adapter without it is full.

    Raises:
        OSError: the hub cannot be asked.
        ValueError: what is there cannot be read.
    """
    if Path(path).expanduser().is_dir():
        return format_of(path)
    try:
        file = hf_hub_download(path, FORMAT)
    except EntryNotFoundError as error:
        # A hub that did not answer has said nothing of the file; offline, what was fetched is all there is.
        if isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
            raise
        return "full"
    return format_of(Path(file).parent)


def _is_same(theirs: str | None, ours: str) -> bool:
    """Whether two names are of one base: equal, one folder, or unknown."""
    if not theirs or theirs == ours:
        return True
    return (
        Path(theirs).expanduser().exists()
        and Path(theirs).expanduser().resolve() == Path(ours).expanduser().resolve()
    )
