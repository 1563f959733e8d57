"""A loss head alone, forward and backward, one thing a command: run by either side's interpreter.

    python -m scripts.benching.head_runner ours|later|trl NUM_TOKENS VOCAB HIDDEN

`ours` is the head of the first update on what was sampled, `later` that of the updates behind it. All three
tell log-probs and entropy as in training: TRL's of every token, ours of ENTROPY_TOKENS of them.
The first `pass` also tells the peak of the memory above what hidden states and weights take, in MiB.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from scripts.benching.commands import Commands, forget_peak, memory_kib

Head = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Hidden states (N, H), weights (V, H), targets (N,) -> log-probs (N,)."""


def ours() -> Head:
    """Told what the loss will ask for: here, of a mean, the same of each token."""
    from rl.fused_head import fused_logprobs
    from rl.logprobs import ENTROPY_TOKENS, entropy_stride

    def head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        count = len(targets)
        foreseen, stride = torch.full((count,), -1 / count), entropy_stride(count, ENTROPY_TOKENS)
        return fused_logprobs(hidden, weight, targets, foreseen, entropy_every=stride)[0]

    return head


def later() -> Head:
    """Told nothing: the loss asks when it has the log-probs."""
    from rl.fused_head import fused_logprobs
    from rl.logprobs import ENTROPY_TOKENS, entropy_stride

    def head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        stride = entropy_stride(len(targets), ENTROPY_TOKENS)
        return fused_logprobs(hidden, weight, targets, entropy_every=stride)[0]

    return head


def trl() -> Head:
    """As its trainer calls it: with the entropy, which it always logs."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    return lambda hidden, weight, targets: ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, 32_768, None, 1.0, ("entropy",)
    )[0]


def main() -> None:
    commands = Commands()
    side, (num_tokens, vocab, hidden_size) = sys.argv[1], map(int, sys.argv[2:])
    torch.set_num_threads(1)
    head = {"ours": ours, "later": later, "trl": trl}[side]()
    generator = torch.Generator().manual_seed(0)

    def inputs(num_tokens: int, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.randn(num_tokens, hidden_size, generator=generator)
        # In place: what is made and freed on the way would be memory that the head gets for nothing.
        weight = torch.randn(vocab, hidden_size, generator=generator).mul_(0.02)
        targets = torch.randint(vocab, (num_tokens,), generator=generator)
        return hidden.requires_grad_(), weight.requires_grad_(), targets

    head(*inputs(8, 64)).sum().backward()  # what is loaded once is there before the baseline
    given = inputs(num_tokens, vocab)
    hidden, weight, _ = given
    for _ in commands:
        hidden.grad = weight.grad = None
        gc.collect()
        forget_peak()
        before, began = memory_kib("VmRSS"), time.process_time()
        logprobs = head(*given)
        (-logprobs.mean()).backward()
        cpu_s = time.process_time() - began
        assert hidden.grad is not None and weight.grad is not None  # noqa: PT018
        commands.answer(
            mib=(memory_kib("VmHWM") - before) / 1024,
            cpu_s=cpu_s,
            logprob=float(logprobs.detach().mean()),
            grads=[float(hidden.grad.double().norm()), float(weight.grad.double().norm())],
        )


if __name__ == "__main__":
    main()
