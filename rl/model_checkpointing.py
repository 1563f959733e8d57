"""Activation checkpointing of transformers' models: memory for time."""

from __future__ import annotations

from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_layers(model: Any) -> None:
    """Compute a model's layers again in the backward pass, and keep only what goes into each.

    Raises:
        ValueError: the architecture has no such layers.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"activation_checkpointing: {type(model).__name__} has no layers that can be computed again; "
            "leave it out"
        )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True  # what transformers asks; what is inside stays without dropout
