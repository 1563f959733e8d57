"""The learner: scores batches, updates the policy, publishes its weights. One process, one device."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from rl.batch import PaddedLayout, TrainBatch, TrainSample, pad, rows_of_like_length
from rl.checkpoint import save_policy
from rl.model import PolicyModel, load_causal_lm
from rl.numerics import MetricSums, Share, add_metrics, max_share, mean_share, select
from rl.policy_gradient import PolicyGradient
from rl.weights import SharedWeights, perturb, sketch_weights, wire_tensors
from rollout.manifest import Manifest
from rollout.tokenizer import load_tokenizer
from rollout.weight_sketch import Sketch

if TYPE_CHECKING:
    from rollout.weight_transfer_device import DeviceWeights, VLLMWeightSyncClient


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """Everything a learner is made from.

    `compute_dtype` is what matrix products run in; weights, optimizer, log-probs and losses are float32.
    `wire_dtype` is the engines' dtype, in which weights are published. `num_updates` is the length of the
    learning-rate schedule in optimizer updates.
    """

    model: str
    algorithm: PolicyGradient
    learning_rate: float
    num_updates: int
    lr_schedule: str = "constant"
    warmup_updates: int = 0
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    micro_batch_size: int = 32
    device: str = "cpu"
    compute_dtype: str = "float32"
    wire_dtype: str = "float32"
    num_threads: int = 1
    num_gpus: float = 0
    seed: int = 0
    run_name: str = "run"


def learning_rate_factor(update: int, *, schedule: str, num_updates: int, warmup_updates: int) -> float:
    """The factor on the peak learning rate at optimizer update `update` (from 0).

    Linear warm-up from 1 / warmup_updates, then constant, or linear or half-cosine decay to 0 at
    `num_updates`.
    """
    if update < warmup_updates:
        return (update + 1) / warmup_updates
    progress = min(1.0, (update - warmup_updates) / max(1, num_updates - warmup_updates))
    return {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[schedule]


def scalar_share(value: float) -> Share:
    """A number of one update; over several updates the mean."""
    return mean_share(torch.tensor(value), torch.tensor(1.0))


def _first_ratio_error(logprobs: torch.Tensor, layout: PaddedLayout) -> MetricSums:
    """|ratio - 1| of the policy to itself: scoring and updating must compute the same log-probs."""
    if layout.old_logprobs is None:
        return {}
    difference = select(layout.loss_mask, logprobs.detach()) - select(layout.loss_mask, layout.old_logprobs)
    return {"policy/first_ratio_error": max_share(torch.expm1(difference).abs(), layout.loss_mask)}


class Learner:
    """Holds the policy, its optimizer, and the reference policy where the algorithm's row needs one."""

    def __init__(self, spec: LearnerSpec) -> None:
        torch.set_num_threads(spec.num_threads)
        torch.manual_seed(spec.seed)
        self.spec = spec
        self.device = torch.device(spec.device)
        self.tokenizer = load_tokenizer(spec.model)
        self.policy = self._load_policy()
        self.reference = self._load_policy() if "ref_logprobs" in spec.algorithm.needs else None
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            lr=spec.learning_rate,
            betas=spec.adam_betas,
            weight_decay=spec.weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda update: learning_rate_factor(
                update,
                schedule=spec.lr_schedule,
                num_updates=spec.num_updates,
                warmup_updates=spec.warmup_updates,
            ),
        )
        self._wire_dtype: torch.dtype = getattr(torch, spec.wire_dtype)
        self._outlet: SharedWeights | DeviceWeights | None = None
        self._kept: list[torch.Tensor] | None = None
        self._is_first_update = False  # since the last score

    @property
    def model(self) -> Any:
        """The Hugging Face model inside the policy."""
        return self.policy.model

    def facts(self) -> dict[str, float]:
        """What the start screen tells of this learner."""
        parameters = list(self.policy.parameters())
        num_parameters = sum(p.numel() for p in parameters)
        return {
            "num_parameters": float(num_parameters),
            "num_tensors": float(len(parameters)),
            "sync_bytes": float(num_parameters * self._wire_dtype.itemsize),
        }

    @torch.no_grad()
    def score(self, batch: TrainBatch, needs: frozenset[str]) -> TrainBatch:
        """Add `old_logprobs` and, where `needs` says so, `ref_logprobs`: float32 arrays (T,) per sample."""
        self._is_first_update = True
        scored = replace(batch, old_logprobs=self._score(self.policy, batch.samples))
        if "ref_logprobs" in needs:
            if self.reference is None:
                raise ValueError(
                    "ref_logprobs are needed, but this learner was made for a row without a reference"
                )
            scored = replace(scored, ref_logprobs=self._score(self.reference, batch.samples))
        return scored

    def update(self, minibatch: TrainBatch) -> MetricSums:
        """One optimizer update on a scored and weighed minibatch.

        The loss is normalised by the minibatch's own global counts, so the gradient does not depend on
        micro_batch_size. A gradient that is not finite is not applied: it is counted in
        `optim/skipped_updates`.
        """
        counts = minibatch.counts
        self.optimizer.zero_grad(set_to_none=True)
        parts: list[MetricSums] = []
        for micro_batch in minibatch.micro_batches(self.spec.micro_batch_size):
            layout = micro_batch.padded().to(self.device)
            with self._autocast():
                logprobs, entropy = self.policy(layout)
            loss, sums = self.spec.algorithm.loss(logprobs, entropy, layout, counts)
            loss.backward()
            if self._is_first_update:
                sums |= _first_ratio_error(logprobs, layout)
            parts.append(sums)
        self._is_first_update = False
        return add_metrics([*parts, self._apply_gradient()])

    def _apply_gradient(self) -> MetricSums:
        """Clip, step and advance the schedule; with a gradient that is not finite nothing moves."""
        rate = float(self.schedule.get_last_lr()[0])
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.spec.max_grad_norm)
        if norm.isfinite():
            self.optimizer.step()
            self.schedule.step()
        return {
            "optim/lr": scalar_share(rate),
            "optim/grad_norm": scalar_share(float(norm)),
            "optim/skipped_updates": scalar_share(0.0 if norm.isfinite() else 1.0),
        }

    def connect(self, backend: str, engines: VLLMWeightSyncClient, num_engines: int) -> None:
        """Open one of vLLM's device channels; without one, weights go through shared memory."""
        # vLLM takes seconds to import, and a learner without a device channel never needs it.
        from rollout.weight_transfer_device import DeviceWeights

        tensors = partial(wire_tensors, self.model, self._wire_dtype)
        self._outlet = DeviceWeights(backend, tensors, engines, num_engines)

    def publish(self, version: int) -> Manifest:
        """Say what this version is made of; with shared memory every weight lies there when this returns."""
        if self._outlet is None:
            name = f"{self.spec.run_name}-{os.getpid()}"
            self._outlet = SharedWeights(name, self.model, self._wire_dtype)
        return self._outlet.write(version)

    def send_weights(self) -> None:
        """Push the weights over the device channel into every engine, between its prepare and its serve."""
        if self._outlet is None or isinstance(self._outlet, SharedWeights):
            raise ValueError(
                "send_weights without a connect before it: engines load shared memory themselves"
            )
        self._outlet.send()

    def sketch_weights(self, seed: int) -> dict[str, Sketch]:
        """What the engines must show of the published weights."""
        return sketch_weights(self.model, self._wire_dtype, seed)

    @torch.no_grad()
    def score_sequences(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probability of each id after the first of each sequence: float32 (len - 1,). Temperature 1."""
        scores = []
        for ids in sequences:
            tokens = torch.tensor([list(ids)], device=self.device)
            with self._autocast():
                logits = self.model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
            picked = torch.log_softmax(logits, dim=-1).gather(1, tokens[0, 1:, None])[:, 0]
            scores.append(picked.cpu().numpy())
        return scores

    def perturb(self, scale: float, seed: int) -> None:
        """Add noise to every weight (rl/weights.py: perturb); `restore` takes it back exactly."""
        self._kept = [p.detach().clone() for p in self.policy.parameters()]
        perturb(self.model, scale, seed)

    @torch.no_grad()
    def restore(self) -> None:
        """Undo the last `perturb`, bit for bit."""
        if self._kept is None:
            raise ValueError("restore without a perturb before it")
        for parameter, kept in zip(self.policy.parameters(), self._kept, strict=True):
            parameter.copy_(kept)
        self._kept = None

    def save(self, path: str) -> None:
        """Save policy and tokenizer in Hugging Face format: whole or not at all (rl/checkpoint.py)."""
        save_policy(self.model, self.tokenizer, Path(path))

    def close(self) -> None:
        """Give back what outlives the process."""
        if self._outlet is not None:
            self._outlet.close()

    def _load_policy(self) -> PolicyModel:
        return PolicyModel(
            load_causal_lm(self.spec.model),
            temperature=self.spec.temperature,
            entropy_gradient=self.spec.algorithm.entropy_gradient,
        ).to(self.device)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        dtype: torch.dtype = getattr(torch, self.spec.compute_dtype)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32)

    def _score(self, policy: PolicyModel, samples: Sequence[TrainSample]) -> tuple[np.ndarray, ...]:
        scores = [np.zeros(0, np.float32)] * len(samples)
        for rows in rows_of_like_length(samples, self.spec.micro_batch_size):
            layout = pad([samples[row] for row in rows]).to(self.device)
            with self._autocast():
                logprobs, _ = policy(layout)
            for row, padded in zip(rows, logprobs.cpu().numpy(), strict=True):
                scores[row] = padded[: len(samples[row].token_ids)]
        return tuple(scores)
