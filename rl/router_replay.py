"""Router replay: the learner sends each token to the experts that the engine chose for it.

Engine and learner round differently. Where two experts of a mixture are nearly as likely, that is enough for
another expert to be chosen, and then the two compute different functions of the same weights. Rollout Routing
Replay (R3, arXiv 2510.11370) replays the engine's choice in the learner: which experts is given, and with
what weights they count the learner's router says, so that the router goes on learning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

ROUTERS = frozenset({"OlmoeTopKRouter", "Qwen2MoeTopKRouter", "Qwen3MoeTopKRouter", "Qwen3NextTopKRouter"})
"""transformers' routers with one rule: the top k of a softmax, renormalized over them if `norm_topk_prob`."""

LAYER = re.compile(r"\blayers\.(\d+)\.")


def routers_of(model: nn.Module) -> dict[int, Any]:
    """The routers that can be replayed, by the number of their layer."""
    return {
        int(layer[1]): module
        for path, module in model.named_modules()
        if type(module).__name__ in ROUTERS and (layer := LAYER.search(path))
    }


@contextmanager
def replayed(model: Any, routed_experts: Tensor | None) -> Iterator[None]:
    """While it lasts, every router of `model` takes the experts that are given; gradients reach it as ever.

    A forward that is computed again in the backward pass must lie inside as a whole.

    Args:
        model: a mixture of experts of transformers, one of ROUTERS in each sparse layer.
        routed_experts: (B, T, layers, k) integers, the experts of each token; -1 where they are not known:
            such a token is routed freely. `layers` counts dense layers too, whose columns are not read.

    Raises:
        ValueError: nothing is given, or not what the model's routers choose from.
    """
    routers = routers_of(model)
    if routed_experts is None:
        raise ValueError(
            "replay_routing is on and the batch has no routed_experts; expected those of the engine, started "
            "with returns_experts"
        )
    num_layers = model.config.get_text_config().num_hidden_layers
    highest = routed_experts.amax((0, 1, 3)).tolist() if routed_experts.ndim == 4 else []
    for layer, router in routers.items():
        expected = (num_layers, router.top_k)
        if tuple(routed_experts.shape[2:]) != expected or highest[layer] >= router.num_experts:
            raise ValueError(
                f"routed_experts has shape {tuple(routed_experts.shape)} and, by layer, experts up to "
                f"{highest}; layer {layer} expects (B, T, {expected[0]}, {expected[1]}) and experts below "
                f"{router.num_experts}: engine and learner must hold the same model"
            )
    with ExitStack() as hooks:
        for layer, router in routers.items():
            experts = routed_experts[:, :, layer].flatten(0, 1).long()
            hooks.callback(router.register_forward_hook(partial(_replay, experts)).remove)
        yield


def _replay(
    experts: Tensor, router: Any, _: Any, output: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """A router's logits (N, E), weights (N, k) and choice (N, k), with `experts` (N, k) for the choice."""
    logits, weights, own = output
    is_known = (experts >= 0).all(-1, keepdim=True)
    chosen = torch.where(is_known, experts, own)
    gates = logits.softmax(-1, dtype=torch.float).gather(-1, chosen)
    if router.norm_topk_prob:
        gates = gates / gates.sum(-1, keepdim=True)
    return logits, gates.to(weights.dtype), chosen
