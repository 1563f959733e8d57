"""The learner: scores batches, updates the policy, publishes its weights. One process, one device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from envs.names import load_object
from rl.batch import TrainBatch
from rl.checkpoint import save_checkpoint
from rl.determinism import use_exact_kernels
from rl.hints import hint_message, hinted
from rl.incidents import save_incident
from rl.layout import PaddedLayout, TokenArrays, pad, rows_of_like_length
from rl.learner_spec import LearnerSpec
from rl.learner_state import learner_state, restore_learner
from rl.lora import Scorer, reference_of, start_adapter
from rl.lora_layers import whole_tensors
from rl.model import PolicyModel, TokenOutputs, ValueModel, load_causal_lm
from rl.numerics import MetricSums, add_metrics, max_share, select
from rl.optimizer import Optimizer
from rl.samples import TrainSample
from rl.weights import Outlet, open_outlet, perturb, sketch_weights, wire_tensors
from rollout.manifest import Manifest
from rollout.renderer import ChatMLRenderer
from rollout.tokenizer import load_tokenizer
from rollout.weight_sketch import Sketch

if TYPE_CHECKING:
    from rollout.weight_transfer_device import DeviceWeights, VLLMWeightSyncClient


def first_ratio_error(logprobs: torch.Tensor, layout: PaddedLayout) -> MetricSums:
    """|ratio - 1| of the policy to itself: scoring and updating must compute the same log-probs."""
    if layout.old_logprobs is None:
        return {}
    difference = select(layout.loss_mask, logprobs.detach()) - select(layout.loss_mask, layout.old_logprobs)
    return {"policy/first_ratio_error": max_share(torch.expm1(difference).abs(), layout.loss_mask)}


class Learner:
    """Holds the policy, its optimizer, and what the algorithm's row needs besides: a reference, a critic."""

    def __init__(self, spec: LearnerSpec) -> None:
        if spec.plugin:
            load_object(spec.plugin)
        torch.set_num_threads(spec.num_threads)
        use_exact_kernels(spec.exact)
        torch.manual_seed(spec.seed)
        self.spec = spec
        self.device = torch.device(spec.device)
        self.tokenizer = load_tokenizer(spec.model)
        self.policy = self._load_policy()
        self.adapter = start_adapter(self.model, spec)
        self._served_adapter = self.adapter if spec.lora and spec.lora.serves_adapter else None
        has_reference = "ref_logprobs" in spec.algorithm.needs
        self.reference = reference_of(self.policy, self.adapter, self._load_policy) if has_reference else None
        self.teacher = self._load_policy(spec.teacher) if spec.algorithm.loads_teacher else None
        has_own_body = spec.algorithm.critic == "separate"
        self.critic = ValueModel(load_causal_lm(spec.model)).to(self.device) if has_own_body else None
        self.optimizer = Optimizer(
            [
                ([p for p in self.model.parameters() if p.requires_grad], spec.learning_rate),
                (self._critic_parameters(), spec.critic_lr),
            ],
            betas=spec.adam_betas,
            weight_decay=spec.weight_decay,
            max_grad_norm=spec.max_grad_norm,
            schedule=spec.lr_schedule,
            num_updates=spec.num_updates,
            warmup_updates=spec.warmup_updates,
            scales_loss=spec.precision.scales_loss,
        )
        self._wire_dtype = spec.precision.engine_dtype
        self._outlet: Outlet | DeviceWeights | None = None
        self._kept: list[torch.Tensor] | None = None
        self.is_first_update = False  # since the last score

    @property
    def model(self) -> Any:
        """The Hugging Face model inside the policy."""
        return self.policy.model

    def _critic_parameters(self) -> list[nn.Parameter]:
        """What belongs to the critic and never to the engines: its head, and its body where it has one."""
        modules = [module for module in (self.policy.value_head, self.critic) if module is not None]
        return [parameter for module in modules for parameter in module.parameters()]

    def facts(self) -> dict[str, float]:
        """What the start screen tells of this learner."""
        sizes = [tensor.numel() for _, tensor in whole_tensors(self.model, merged=False)]
        adapter = self._served_adapter
        # An adapter of a tied embedding is the head's too: two parameters, one memory.
        trained = {p.data_ptr(): p.numel() for p in self.model.parameters() if p.requires_grad}
        return {
            "num_parameters": float(sum(sizes)),
            "num_tensors": float(len(sizes)),
            "num_trained": float(sum(trained.values())),
            "sync_bytes": float(adapter.num_bytes if adapter else sum(sizes) * self._wire_dtype.itemsize),
        }

    @torch.no_grad()
    def score(self, batch: TrainBatch, needs: frozenset[str]) -> TrainBatch:
        """Add `old_logprobs`, a critic's `old_values`, and what reference and teacher are asked by `needs`.

        Each is one float32 array (T,) a sample.
        """
        self.is_first_update = True
        has_critic = self.spec.algorithm.critic != "none"
        own = ("old_logprobs", "old_values") if has_critic else ("old_logprobs",)
        arrays = self._per_sample(own, self._own_scores, batch.samples)
        if "ref_logprobs" in needs:
            if self.reference is None:
                raise ValueError(
                    "ref_logprobs are needed, but this learner was made for a row without a reference"
                )
            arrays |= self._per_sample(
                ("ref_logprobs",), partial(self._scores_of, self.reference), batch.samples
            )
        if "teacher_logprobs" in needs and self.spec.algorithm.hint:
            arrays |= {"teacher_logprobs": self._hinted_logprobs(batch.samples)}
        elif "teacher_logprobs" in needs and self.teacher is not None:
            scores = partial(self._scores_of, self.teacher)
            arrays |= self._per_sample(("teacher_logprobs",), scores, batch.samples)
        return replace(batch, **arrays)

    def update(self, minibatch: TrainBatch) -> MetricSums:
        """One optimizer update on a scored and weighed minibatch.

        The loss is normalised by the minibatch's own global counts, so the gradient does not depend on
        micro_batch_size. A gradient that is not finite is not applied: it is counted in
        `optim/skipped_updates`.
        """
        counts = minibatch.counts
        self.optimizer.zero_grad()
        parts: list[MetricSums] = []
        for micro_batch in minibatch.micro_batches(self.spec.micro_batch_size):
            layout = micro_batch.padded().to(self.device)
            outputs = self.evaluate(layout, self._compared)
            loss, sums = self.spec.algorithm.loss(outputs, layout, counts)
            self.optimizer.backward(loss)
            if self.is_first_update:
                sums |= first_ratio_error(outputs.logprobs, layout)
            parts.append(sums)
        self.is_first_update &= not parts
        return self.apply(parts, minibatch)

    def apply(self, parts: Sequence[MetricSums], minibatch: Any) -> MetricSums:
        """Move the weights by what was accumulated; if that is not finite they stay and the batch is kept."""
        sums = add_metrics([*parts, self.optimizer.apply()])
        if self.optimizer.was_skipped and self.spec.incidents:
            save_incident(
                Path(self.spec.incidents), minibatch, number=self.optimizer.num_updates, metrics=sums
            )
        return sums

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
            self._outlet = open_outlet(name, self.model, self._wire_dtype, self._served_adapter)
        return self._outlet.write(version)

    def send_weights(self) -> None:
        """Push the weights over the device channel into every engine, between its prepare and its serve."""
        if self._outlet is None or isinstance(self._outlet, Outlet):
            raise ValueError(
                "send_weights without a connect before it: engines load shared memory themselves"
            )
        self._outlet.send()

    def sketch_weights(self, seed: int) -> dict[str, Sketch]:
        """What the engines must show of the published weights."""
        return sketch_weights(self.model, self._wire_dtype, seed, merged=not self._served_adapter)

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

    def score_base_sequences(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """As score_sequences, of the model without its adapter."""
        if self.adapter is None:
            raise ValueError("score_base_sequences of a learner without an adapter")
        with self.adapter.as_base():
            return self.score_sequences(sequences)

    def perturb(self, scale: float, seed: int) -> None:
        """Add noise to all that a sync carries (rl/weights.py: perturb); `restore` takes it back exactly."""
        self._kept = [p.detach().clone() for p in self.policy.parameters()]
        perturb(self.model, scale, seed, adapter_only=self._served_adapter is not None)

    @torch.no_grad()
    def restore(self) -> None:
        """Undo the last `perturb`, bit for bit."""
        if self._kept is None:
            raise ValueError("restore without a perturb before it")
        for parameter, kept in zip(self.policy.parameters(), self._kept, strict=True):
            parameter.copy_(kept)
        self._kept = None

    def checkpoint(self, path: str, run_state: dict[str, Any]) -> None:
        """Save all that a resume needs, the driver's `run_state` with it: whole or not at all."""
        policy = self.model if self.adapter is None else self.adapter
        save_checkpoint(policy, self.tokenizer, learner_state(self), run_state, Path(path))

    def resume(self, path: str) -> None:
        """Go on from a checkpoint of this run; the reference stays the policy that the run started from."""
        restore_learner(self, Path(path))

    def close(self) -> None:
        """Give back what outlives the process."""
        if self._outlet is not None:
            self._outlet.close()

    @property
    def _compared(self) -> PolicyModel | None:
        """The teacher, where the loss compares whole distributions with it."""
        return self.teacher if self.spec.algorithm.compares_distributions else None

    def _load_policy(self, path: str = "") -> PolicyModel:
        return PolicyModel(
            load_causal_lm(path or self.spec.model),
            temperature=self.spec.temperature,
            entropy_gradient=self.spec.algorithm.entropy_gradient,
            value_head=self.spec.algorithm.critic == "head",
            jsd_beta=self.spec.algorithm.jsd_beta,
            router_loss=self.spec.algorithm.uses_router_loss,
            # A reference replays too: at the start it is the policy, and its KL 0. A teacher may be anything.
            replay_routing=self.spec.replay_routing and not path,
            head_dtype=self.spec.precision.head_dtype,
        ).to(self.device)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        dtype = self.spec.precision.model_dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32)

    def evaluate(self, layout: PaddedLayout, teacher: PolicyModel | None = None) -> TokenOutputs:
        """The policy's outputs, with the critic's values where there is one."""
        with self._autocast():
            outputs: TokenOutputs = self.policy(layout, teacher)
            return outputs if self.critic is None else outputs._replace(values=self.critic(layout))

    def _own_scores(self, layout: PaddedLayout) -> tuple[torch.Tensor, ...]:
        outputs = self.evaluate(layout)
        return (outputs.logprobs,) if outputs.values is None else (outputs.logprobs, outputs.values)

    def _scores_of(self, model: Scorer, layout: PaddedLayout) -> tuple[torch.Tensor, ...]:
        with self._autocast():
            return (model(layout).logprobs,)

    def _hinted_logprobs(self, samples: Sequence[TrainSample]) -> TokenArrays:
        """The policy's own log-probs of each sample's tokens behind the row's hint: float32 (T,) each."""
        renderer, hint = ChatMLRenderer(self.tokenizer), self.spec.algorithm.hint
        told = [hinted(sample, [hint_message(hint, sample.answer)], renderer) for sample in samples]
        arrays = self._per_sample(("hinted",), partial(self._scores_of, self.policy), told)["hinted"]
        pairs = zip(arrays, samples, strict=True)
        return tuple(array[len(array) - len(sample.token_ids) :] for array, sample in pairs)

    def _per_sample(
        self,
        names: Sequence[str],
        compute: Callable[[PaddedLayout], tuple[torch.Tensor, ...]],
        samples: Sequence[TrainSample],
    ) -> dict[str, TokenArrays]:
        """The tensors (B, T) that `compute` gives, by name, as one array (T,) a sample."""
        arrays = {name: [np.zeros(0, np.float32)] * len(samples) for name in names}
        for rows in rows_of_like_length(samples, self.spec.micro_batch_size):
            tensors = compute(pad([samples[row] for row in rows]).to(self.device))
            for name, tensor in zip(names, tensors, strict=True):
                for row, padded in zip(rows, tensor.cpu().numpy(), strict=True):
                    arrays[name][row] = padded[: len(samples[row].token_ids)]
        return {name: tuple(values) for name, values in arrays.items()}
