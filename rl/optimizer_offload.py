"""AdamW whose moments lie in main memory and come to the weights' device one parameter at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.adamw import adamw

from rl.backends.tensors import local

MOMENTS = ("exp_avg", "exp_avg_sq")


class OffloadedAdamW(AdamW):
    """The numbers of AdamW, in the same kernels; between two steps the device holds no optimizer state.

    `state` has AdamW's names: of a parameter, or of this rank's part of one, float32 moments of its shape in
    main memory, pinned where the parameter is on a GPU. A step moves 16 bytes a trained number over the bus,
    and takes the memory of one parameter's moments on the device.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step on every parameter that has a gradient.

        Raises:
            ValueError: a closure is given: gradients must be there already.
        """
        if closure is not None:
            raise ValueError("OffloadedAdamW.step takes no closure; compute the gradients before it")
        devices = set()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, parameter.grad, group)
                    devices.add(parameter.device)
        for device in devices:
            if device.type == "cuda":
                # The copies into main memory are under way; a checkpoint would read before they end.
                torch.cuda.synchronize(device)

    def _step_one(self, parameter: Tensor, grad: Tensor, group: Mapping[str, Any]) -> None:
        value = local(parameter)
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state |= {name: placed(self, parameter, torch.zeros_like(value)) for name in MOMENTS}
        # Copies even where both are the same device: what a step forgets to take back is then forgotten in
        # the tests as well, which have no GPU.
        exp_avg, exp_avg_sq = (
            torch.empty_like(value).copy_(state[name], non_blocking=True) for name in MOMENTS
        )
        beta1, beta2 = group["betas"]
        adamw(
            [value],
            [local(grad)],
            [exp_avg],
            [exp_avg_sq],
            [],
            [state["step"]],
            foreach=group["foreach"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for name, moment in zip(MOMENTS, (exp_avg, exp_avg_sq), strict=True):
            state[name].copy_(moment, non_blocking=True)


def placed(optimizer: AdamW, parameter: Tensor, value: Tensor) -> Tensor:
    """A moment of `parameter` where `optimizer` keeps it; `value` is sharded as the parameter is."""
    if isinstance(optimizer, OffloadedAdamW):
        return in_main_memory(local(value), pinned=parameter.device.type == "cuda")
    return value.to(parameter.device)


def in_main_memory(value: Tensor, *, pinned: bool) -> Tensor:
    """A copy of `value` on the CPU; `pinned` in pages that a GPU copies from and to by itself."""
    return torch.empty_like(value, device="cpu", pin_memory=pinned).copy_(value)
