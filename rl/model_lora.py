"""peft: a LoRA adapter beside a loaded model, saved and read in peft's own format."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.utils.save_and_load import load_peft_weights
from torch import Tensor

from rl.backends.tensors import assign, local, num_elements, put_back, whole
from rl.checkpoint import NUMBERS, CheckpointError, load_learner_state
from rl.frozen_base import load_base
from rl.lora import (
    differing_keys,
    named_targets,
    target_problems,
    token_layers,
    told,
)
from rl.lora_layers import POLICY, is_of_adapter, share_gradients, whole_tensors
from rl.lora_settings import LoraBase, LoraSpec
from rl.model import load_causal_lm
from rl.model_adapter import adapter_problems
from rl.model_folder import FORMAT, format_of

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class WholeAdapter:
    """An adapter whose tensors, by their names in the model, are whole; `peft` says how they are saved.

    `base_format` is how the weights are held that it is beside.
    """

    peft: PeftModel
    state: Mapping[str, Tensor]
    base_format: LoraBase

    def tensors(self) -> dict[str, Tensor]:
        """They by their names in a file of peft's."""
        return get_peft_model_state_dict(
            self.peft, state_dict=dict(self.state), adapter_name=POLICY, save_embedding_layers=False
        )

    def parameters(self) -> Iterator[Tensor]:
        """What is saved."""
        return iter(self.tensors().values())

    def save_pretrained(self, folder: Path, *, safe_serialization: bool = True) -> None:
        """Save them for `PeftModel.from_pretrained`."""
        self.peft.save_pretrained(
            str(folder),
            safe_serialization=safe_serialization,
            selected_adapters=[POLICY],
            save_embedding_layers=False,  # "auto" would ask the hub for the base's vocabulary
            state_dict=dict(self.state),
        )
        if self.base_format != "full":
            (folder / FORMAT).write_text(json.dumps({"lora_base": self.base_format}))


class Adapter:
    """The LoRA adapter of a policy. Its weights are float32 and alone learn; the base stays bit-identical.

    With a starting adapter there is a second copy of its tensors, for the reference, whole on every rank.
    """

    def __init__(self, model: Any, spec: LoraSpec, *, base: str) -> None:
        """Put an adapter beside the layers of `model`, in place.

        Raises:
            ValueError: the targets match no module, or the starting adapter does not fit the model.
        """
        self.base = base
        self._format: LoraBase = spec.base
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
        self.is_tied = share_gradients(model)
        self.peft.eval()  # a starting adapter may have dropout, and log-probs must be repeatable
        self.base_crc32 = base_crc32(model)
        self._start = [p.detach().clone() for p in self._trained()] if spec.adapter else None

    def _trained(self) -> list[Tensor]:
        """Its parameters as they are now: a backend that shards puts others in their places."""
        return [parameter for name, parameter in self.peft.named_parameters() if is_of_adapter(name)]

    def _held(self) -> WholeAdapter:
        """The same as they lie on this rank, not gathered."""
        state = self.peft.state_dict(keep_vars=True)
        own = {name: p for name, p in state.items() if is_of_adapter(name)}
        return WholeAdapter(self.peft, own, self._format)

    def gathered(self) -> WholeAdapter:
        """The trained adapter, whole. Of several ranks all must call this: it goes tensor by tensor."""
        held = self._held()
        return replace(held, state={name: whole(p) for name, p in held.state.items()})

    def tensors(self) -> dict[str, Tensor]:
        """The trained adapter's tensors, whole, by their names in a file of peft's: as `gathered`."""
        return self.gathered().tensors()

    def parameters(self) -> Iterator[Tensor]:
        """What is saved, whole: as `gathered`."""
        return iter(self.tensors().values())

    @property
    def num_bytes(self) -> int:
        """Of what is saved and sent."""
        return sum(num_elements(tensor) * tensor.element_size() for tensor in self._held().parameters())

    def load(self, folder: Path) -> None:
        """Take the weights of a checkpoint's adapter; the reference stays.

        Raises:
            CheckpointError: it is of an adapter with other layers or ranks; the differing keys are named.
        """
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(f"{folder} holds no {WEIGHTS}: it is of a run that trained all weights")
        theirs = load_peft_weights(str(folder), device="cpu")
        ours = self._held().tensors()
        if problems := differing_keys(ours, theirs):
            raise CheckpointError(f"checkpoint {folder} is of another adapter: {told(problems)}")
        for name, parameter in ours.items():
            assign(parameter, theirs[name])

    def require_base(self, numbers: Mapping[str, Any], folder: Path) -> None:
        """Raise CheckpointError unless the checkpoint `folder`, of these numbers, is of this very base."""
        require_crc32(numbers, folder, base=f"{self.base} in {self._format}", crc32=self.base_crc32)

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """The model as training began: with its starting adapter, or without any."""
        if self._start is None:
            with self.as_base():
                yield
            return
        trained = self._trained()
        kept = [local(parameter).clone() for parameter in trained]
        for parameter, value in zip(trained, self._start, strict=True):
            assign(parameter, value)
        try:
            yield
        finally:
            for parameter, value in zip(trained, kept, strict=True):
                put_back(parameter, value)

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


def require_crc32(numbers: Mapping[str, Any], folder: Path, *, base: str, crc32: int) -> None:
    """Raise CheckpointError unless the checkpoint `folder`, of these numbers, is of a base of this CRC."""
    theirs = numbers["base"]
    if theirs["crc32"] != crc32:
        raise CheckpointError(
            f"checkpoint {folder} is of an adapter beside {theirs['model']}, CRC {theirs['crc32']:08x}; "
            f"model {base} has {crc32:08x}: use the model that it was trained with"
        )


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


def _require(problems: Iterator[str]) -> None:
    if lines := list(problems):
        raise ValueError("\n".join(lines))
