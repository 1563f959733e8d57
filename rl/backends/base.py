"""What a backend does for a learner: spread its weights over ranks, and make its updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from rl.backends.trained import TrainedModel
from rl.learner_spec import LearnerSpec
from rl.model import PolicyModel
from rl.numerics import MetricSums
from rl.optimizer import Optimizer

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler
    from torch.optim import AdamW
    from torch.optim.lr_scheduler import LambdaLR

Forward = Callable[..., Any]
"""What a module is called by: the module itself, or what a backend wraps it in."""

Moments = Mapping[str, Tensor]
"""AdamW's state of one parameter: step (), exp_avg and exp_avg_sq of the parameter's shape."""


class Steps(Protocol):
    """The optimizer, as a learner uses it; see rl/optimizer.py."""

    num_updates: int
    was_skipped: bool
    adamw: AdamW
    schedule: LambdaLR
    scaler: GradScaler

    def zero_grad(self) -> None: ...
    def backward(self, loss: Tensor) -> None: ...
    def apply(self) -> MetricSums: ...


class Backend(Protocol):
    """How a learner's weights, gradients and optimizer state lie on its ranks.

    Gradients are summed over ranks, never averaged: losses have the denominators of the whole minibatch.
    Every method but `is_main` is a collective: all ranks call it, in one order.
    """

    @property
    def is_main(self) -> bool:
        """Whether this rank is the one that writes."""
        ...

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        ...

    def shard(self, trained: TrainedModel) -> None:
        """Spread the weights, before the optimizer is made of them."""
        ...

    def start(self, trained: TrainedModel, optimizer: Optimizer) -> tuple[Forward, Steps]:
        """What the trained model is called by from now on, and what updates it."""
        ...

    def freeze(self, policy: PolicyModel) -> Forward:
        """Spread the weights of a model that only scores; returns what it is called by."""
        ...

    def moments(self, steps: Steps, parameter: nn.Parameter) -> Moments:
        """The whole of AdamW's state of a parameter; empty before its first update."""
        ...

    def set_moments(self, steps: Steps, moments: Mapping[nn.Parameter, Moments]) -> None:
        """Make AdamW's state what `moments`, whole and the same on every rank, says of each parameter."""
        ...

    def whole_model(self, model: Any) -> Any:
        """A Hugging Face model with all of its weights, to be saved; None on ranks but the main one."""
        ...


def make_backend(spec: LearnerSpec) -> Backend:
    """The backend that `spec` names. Of the others nothing is imported.

    Raises:
        ValueError: an unknown name.
    """
    if spec.backend == "plain":
        from rl.backends.plain import PlainBackend

        return PlainBackend()
    if spec.backend == "fsdp":
        from rl.backends.fsdp import FsdpBackend

        return FsdpBackend(spec)
    if spec.backend == "deepspeed":
        from rl.backends.zero import ZeroBackend

        return ZeroBackend(spec)
    raise ValueError(f"backend = {spec.backend!r}: expected plain, deepspeed or fsdp")
