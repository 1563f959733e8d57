"""peft: a LoRA adapter beside a loaded model, saved and read in peft's own format."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils.save_and_load import load_peft_weights
from torch import Tensor

from rl.checkpoint import NUMBERS, CheckpointError, load_learner_state
from rl.lora import (
    differing_keys,
    load_base,
    named_targets,
    shape_problems,
    target_problems,
    token_layers,
    told,
)
from rl.lora_layers import POLICY, share_gradients, whole_tensors
from rl.lora_settings import LoraBase, LoraSpec
from rl.model import load_causal_lm
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


class Adapter:
    """The LoRA adapter of a policy. Its weights are float32 and alone learn; the base stays bit-identical.

    With a starting adapter there is a second copy of its tensors, for the reference.
    """

    def __init__(self, model: Any, spec: LoraSpec, *, base: str) -> None:
        """Put an adapter beside the layers of `model`, in place.

        Raises:
            ValueError: the targets match no module, or the starting adapter does not fit the model.
        """
        self.base, self._format = base, spec.base
        if spec.adapter:
            _require(adapter_problems(model, spec.adapter, base, base_format=spec.base))
            self.peft = PeftModel.from_pretrained(model, spec.adapter, adapter_name=POLICY, is_trainable=True)
            for config in self.peft.peft_config.values():
                config.base_model_name_or_path = base
        else:
            _require(target_problems(model, spec.targets))
            config = LoraConfig(
                r=spec.rank,
                lora_alpha=spec.alpha,  # pyright: ignore[reportArgumentType]  (peft divides: any number will do)
                target_modules=named_targets(model, spec.targets),
                task_type="CAUSAL_LM",
                ensure_weight_tying=_is_tied(model, spec.targets),
                base_model_name_or_path=base,
            )
            self.peft = get_peft_model(model, config)
        share_gradients(model)
        self.peft.eval()  # a starting adapter may have dropout, and log-probs must be repeatable
        self.base_crc32 = base_crc32(model)
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._start = [p.detach().clone() for p in self._trained] if spec.adapter else None

    def tensors(self) -> dict[str, Tensor]:
        """The trained adapter's tensors by their names in a file of peft's."""
        return get_peft_model_state_dict(self.peft, adapter_name=POLICY, save_embedding_layers=False)

    def parameters(self) -> Iterator[Tensor]:
        """What is saved."""
        return iter(self.tensors().values())

    @property
    def num_bytes(self) -> int:
        """Of what is saved and sent."""
        return sum(tensor.nbytes for tensor in self.parameters())

    def save_pretrained(self, folder: Path, *, safe_serialization: bool = True) -> None:
        """Save the trained adapter for `PeftModel.from_pretrained`."""
        self.peft.save_pretrained(
            str(folder),
            safe_serialization=safe_serialization,
            selected_adapters=[POLICY],
            save_embedding_layers=False,  # "auto" would ask the hub for the base's vocabulary
        )
        if self._format != "full":
            (folder / FORMAT).write_text(json.dumps({"lora_base": self._format}))

    def load(self, folder: Path) -> None:
        """Take the weights of a checkpoint's adapter; the reference stays.

        Raises:
            CheckpointError: it is of an adapter with other layers or ranks; the differing keys are named.
        """
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(f"{folder} holds no {WEIGHTS}: it is of a run that trained all weights")
        theirs = load_peft_weights(str(folder), device="cpu")
        if problems := differing_keys(self.tensors(), theirs):
            raise CheckpointError(f"checkpoint {folder} is of another adapter: {told(problems)}")
        set_peft_model_state_dict(self.peft, theirs, adapter_name=POLICY)

    def require_base(self, numbers: Mapping[str, Any], folder: Path) -> None:
        """Raise CheckpointError unless the checkpoint `folder`, of these numbers, is of this very base."""
        base = numbers["base"]
        if base["crc32"] != self.base_crc32:
            raise CheckpointError(
                f"checkpoint {folder} is of an adapter beside {base['model']}, CRC {base['crc32']:08x}; "
                f"model {self.base} in {self._format} has {self.base_crc32:08x}: use the model that it was "
                "trained with"
            )

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """The model as training began: with its starting adapter, or without any."""
        if self._start is None:
            with self.as_base():
                yield
            return
        kept = [parameter.detach().clone() for parameter in self._trained]
        self._set(self._start)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._trained, values, strict=True):
            parameter.copy_(value)

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The model without any adapter."""
        with self.peft.disable_adapter():
            yield


def _is_tied(model: Any, targets: Sequence[str]) -> bool:
    """Whether an adapter of these targets is of a tied embedding, and so of the head as well."""
    tied = model.config.get_text_config().tie_word_embeddings
    return tied and any(name.rpartition(".")[2] in targets for name in token_layers(model))


def shape_of(path: str) -> tuple[int, tuple[str, ...]]:
    """The largest rank of the adapter `path`, and the last parts of its modules' names."""
    weights = load_peft_weights(path, device="cpu")
    rank = max(tensor.shape[0] for name, tensor in weights.items() if ".lora_A." in name)
    return rank, tuple(sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in weights}))


def base_crc32(model: Any) -> int:
    """A CRC over every parameter of the base, names included: which base an adapter belongs to."""
    crc = 0
    for name, tensor in whole_tensors(model, merged=False):
        payload = tensor.contiguous().cpu().view(torch.uint8).numpy()
        crc = zlib.crc32(memoryview(payload), zlib.crc32(name.encode(), crc))  # pyright: ignore[reportArgumentType]
    return crc


def base_of(folder: Path) -> str:
    """The model that an adapter is beside. Raises ValueError where there is no adapter that can be read."""
    try:
        return str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder} cannot be read as an adapter in peft's format: {error}") from error


def merged_model(folder: Path) -> Any:
    """The model of an adapter in `folder`, with what the adapter adds, in float32: as engines are given it.

    Of a base in 4 bits it is what these stand for, and what the adapter adds.

    Raises:
        ValueError: the adapter cannot be read, or its base is not there, or is another one by now.
    """
    base = base_of(folder)
    spec = LoraSpec(adapter=str(folder), base=format_of(folder))
    adapter = Adapter(load_base(base, spec), spec, base=base)
    if (folder / NUMBERS).is_file():
        adapter.require_base(load_learner_state(folder).numbers, folder)
    model = load_causal_lm(base)
    model.load_state_dict(dict(whole_tensors(adapter.peft.get_base_model())), strict=False)
    model.tie_weights()
    return model


def adapter_problems(model: Any, path: str, base: str, *, base_format: LoraBase) -> Iterator[str]:
    """Why the adapter `path` (folder or hub id) cannot go on beside `model` (meta will do), called `base`."""
    where = f"lora_adapter = {path!r}"
    try:
        config = PeftConfig.from_pretrained(path)
        weights = load_peft_weights(path, device="cpu")
        trained_beside = format_of(path)
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


def _is_same(theirs: str | None, ours: str) -> bool:
    """Whether two names are of one base: equal, one folder, or unknown."""
    if not theirs or theirs == ours:
        return True
    return (
        Path(theirs).expanduser().exists()
        and Path(theirs).expanduser().resolve() == Path(ours).expanduser().resolve()
    )


def _require(problems: Iterator[str]) -> None:
    if lines := list(problems):
        raise ValueError("\n".join(lines))
