"""Our learner, one thing a command: `python -m scripts.benching.learner_runner '{"model": FOLDER, ...}'`.

Options beside the model: `layout` (where LearnerSpec has it), `micro_batch_size`, `leak` (a drill: every
attention also sees one token that it must not). Commands: `gate` (log-probs and gradient of the batch at
`path` against what lies at `reference`, no weight moves), `update` (CPU seconds of a step's only update, the
old log-probs made on its way), `first` (a run's first update), `peak` (most memory that an
update takes above what the process held), `gemm` (the machine's matrix rate).
"""

from __future__ import annotations

import gc
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from rl.batch import TrainBatch
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.rows import GRPO
from scripts.benching.commands import Commands, forget_peak, memory_kib
from scripts.benching.leaking import leaking
from scripts.benching.train_batches import by_turns, to_train_batch
from scripts.benching.workload import EOS_ID, FIRST_WORD, Batch

ALGORITHM = replace(GRPO, kl_loss_coef=0.0)
"""Without a reference model, as TRL's default."""


class LearnerRunner:
    """One learner, asked by name."""

    def __init__(self, options: dict[str, Any]) -> None:
        known = {field.name for field in fields(LearnerSpec)}
        chosen = {name: value for name, value in options.items() if name in known}
        self.learner = Learner(
            LearnerSpec(algorithm=ALGORITHM, learning_rate=1e-5, num_updates=1_000_000, **chosen)
        )
        self.leaks = bool(options.get("leak"))
        self.forwarded = 0
        self.learner.model.get_input_embeddings().register_forward_pre_hook(self._count)

    def gate(self, path: str, reference: str) -> dict[str, Any]:
        """How far log-probs and gradient are from the reference's."""
        with np.load(reference) as file:
            expected, gradient = (
                [file[f"arr_{n}"] for n in range(len(file.files) - 1)],
                file["gradient"].astype(np.float64),
            )
        with ExitStack() as stack:
            if self.leaks:
                stack.enter_context(leaking())
            batch = self._sampled(Batch.load(path))
            ours = self._gradient(batch)
        differences = [
            np.abs(own[sample.loss_mask] - wanted).max()
            for own, sample, wanted in zip(self.learner.own_logprobs(), batch.samples, expected, strict=True)
        ]
        cosine = float(ours @ gradient / (np.linalg.norm(ours) * np.linalg.norm(gradient)))
        return {"max_dlogp": float(max(differences)), "cosine": cosine}

    def update(self, path: str) -> dict[str, Any]:
        """One step's work of the learner, on fresh objects as they come from a run."""
        batch = self._sampled(Batch.load(path))
        self.forwarded = 0
        began = time.process_time()
        self.learner.update(batch)
        return {
            "cpu_s": time.process_time() - began,
            "forwarded": self.forwarded,
            "num_trained": batch.counts.num_tokens,
        }

    def first(self, path: str) -> dict[str, Any]:
        batch = self.learner.score(to_train_batch(Batch.load(path)), ALGORITHM.needs_for(1))
        return {"num_metrics": len(self.learner.update(batch))}

    def peak(self, path: str) -> dict[str, Any]:
        """Memory of a forward pass and an update, in MiB; the optimizer's state is there before it."""
        few = Batch(prompts=[[FIRST_WORD]], completions=[[FIRST_WORD, EOS_ID]] * 2, rewards=[0.0, 1.0])
        self.learner.update(self._sampled(few))
        batch = Batch.load(path)
        gc.collect()
        forget_peak()
        before = memory_kib("VmRSS")
        self.learner.update(self._sampled(batch))
        return {"mib": (memory_kib("VmHWM") - before) / 1024}

    def turns(self, path: str, num_turns: int) -> dict[str, Any]:
        """The same batch, its completions cut into turns that are samples of their own."""
        batch = by_turns(self._sampled(Batch.load(path)), num_turns)
        self.forwarded = 0
        self.learner.update(batch)
        return {"forwarded": self.forwarded}

    def gemm(self) -> dict[str, Any]:
        """The best of many products of 1024 x 1024 matrices, float32, in operations a CPU second."""
        left, right = torch.randn(2, 1024, 1024)
        seconds = []
        for _ in range(30):
            began = time.process_time()
            torch.mm(left, right)
            seconds.append(time.process_time() - began)
        return {"flops": 2 * 1024**3 / min(seconds)}

    def _sampled(self, batch: Batch) -> TrainBatch:
        """With the learner's own log-probs as the engine's: on policy, no importance weight plays in."""
        scored = self.learner.score(to_train_batch(batch), frozenset({"old_logprobs"}))
        assert scored.old_logprobs is not None
        samples = [
            replace(sample, rollout_logprobs=np.where(sample.loss_mask, own, np.float32(np.nan)))
            for sample, own in zip(scored.samples, scored.old_logprobs, strict=True)
        ]
        return replace(scored, samples=tuple(samples), old_logprobs=None)

    def _gradient(self, batch: TrainBatch) -> np.ndarray:
        """What the optimizer would be handed, as one vector; it does not step."""
        optimizer: Any = self.learner.optimizer
        taken: list[np.ndarray] = []

        def take() -> dict[str, Any]:
            grads = [p.grad for p in self.learner.model.parameters() if p.grad is not None]
            taken.append(torch.cat([grad.flatten() for grad in grads]).double().numpy())
            optimizer.zero_grad()
            return {}

        optimizer.apply = take
        try:
            self.learner.update(batch)
        finally:
            del optimizer.apply  # the class's own again
        return taken[0]

    def _count(self, module: Any, args: tuple[torch.Tensor]) -> None:
        self.forwarded += args[0].numel()


def main() -> None:
    commands = Commands()
    torch.set_num_threads(1)
    runner = LearnerRunner(json.loads(sys.argv[1]))
    for command in commands:
        do = command.pop("do")
        commands.answer(**getattr(runner, do)(**command))


if __name__ == "__main__":
    main()
