"""LoRA adapters for tests, made from a seed by peft."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from tests.tiny import load

TARGETS = ("down_proj", "q_proj", "v_proj")


def make_adapter(
    base: Path,
    folder: Path,
    *,
    seed: int,
    rank: int = 4,
    targets: Sequence[str] = TARGETS,
    scale: float = 0.2,
) -> Path:
    """An adapter in peft's format with seeded weights, by default so large that it moves every log-prob."""
    torch.manual_seed(seed)
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[*targets], task_type="CAUSAL_LM")
    settings.base_model_name_or_path = str(base)
    model: Any = get_peft_model(load(base), settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(scale * torch.randn(parameter.shape))
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(base)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder
