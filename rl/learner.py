"""The learner: scores batches, updates the policy, publishes its weights. One process, one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from envs.names import load_object
from rl.backends.base import Forward, make_backend
from rl.backends.tensors import local, num_elements, num_held
from rl.backends.trained import TrainedModel, nothing_of
from rl.batch import LossCounts, TrainBatch
from rl.checkpoint import save_checkpoint
from rl.determinism import use_exact_kernels
from rl.first_ratio import first_ratio_error
from rl.foreseen import foreseen_gradient, was_told
from rl.hints import hint_message, hinted
from rl.incidents import save_incident
from rl.layout import PaddedLayout, TokenArrays, pad, unpadded
from rl.learner_models import load_policy
from rl.learner_spec import LearnerSpec
from rl.learner_state import learner_state, restore_learner
from rl.lora import Scorer, as_it_began, start_adapter
from rl.lora_layers import is_of_adapter
from rl.model import PolicyModel, TokenOutputs, ValueModel, load_causal_lm
from rl.model_checkpointing import checkpoint_layers
from rl.numerics import MetricSums, add_metrics
from rl.optimizer import Optimizer
from rl.packing import passes
from rl.publishing import Publishing
from rl.samples import TrainSample
from rl.splitting import nothing_to_train, split_batch
from rl.trie_attention import drivable_layout
from rollout.renderer import ChatMLRenderer
from rollout.tokenizer import load_tokenizer


class Learner(Publishing):
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
        self.policy = load_policy(spec)
        self.adapter = start_adapter(self.model, spec)
        has_reference = "ref_logprobs" in spec.algorithm.needs
        self.reference = load_policy(spec) if has_reference and self.adapter is None else None
        self.teacher = load_policy(spec, spec.teacher) if spec.algorithm.loads_teacher else None
        has_own_body = spec.algorithm.critic == "separate"
        self.critic = ValueModel(load_causal_lm(spec.model)).to(self.device) if has_own_body else None
        modules = [self.policy, self.reference, self.teacher, self.critic]
        if spec.activation_checkpointing:
            checkpoint_layers(self.model)
        self.layout = drivable_layout(
            spec.layout, [one.model for one in modules if isinstance(one, PolicyModel | ValueModel)]
        )
        self.backend = make_backend(spec)
        self.trained = TrainedModel(self.policy, self.critic, spec.precision.model_dtype)
        self.backend.shard(self.trained)
        policy = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = Optimizer.of(
            spec, [(policy, spec.learning_rate), (self._critic_parameters(), spec.critic_lr)]
        )
        self._forward, self.optimizer = self.backend.start(self.trained, optimizer)
        self._reference: Forward | Scorer | None = None
        if self.reference is not None:
            self._reference = self.backend.freeze(self.reference)
        elif has_reference and self.adapter is not None:
            self._reference = as_it_began(self._forward, self.adapter)
        self.is_first_update = False  # since a score, or since one was called for
        self._own_logprobs: dict[int, np.ndarray] = {}

    def _critic_parameters(self) -> list[nn.Parameter]:
        """What belongs to the critic and never to the engines: its head, and its body where it has one."""
        modules = [module for module in (self.policy.value_head, self.critic) if module is not None]
        return [parameter for module in modules for parameter in module.parameters()]

    def facts(self) -> dict[str, float]:
        """What the start screen tells of this learner."""
        base = [p for name, p in self.model.named_parameters() if not is_of_adapter(name)]
        num_parameters = sum(num_elements(p) for p in base)
        adapter = self.served_adapter
        # An adapter of a tied embedding is the head's too: two parameters, one memory.
        trained = {
            local(p).data_ptr() or id(p): num_elements(p) for p in self.model.parameters() if p.requires_grad
        }
        return {
            "num_parameters": float(num_parameters),
            "num_tensors": float(len(base)),
            "num_trained": float(sum(trained.values())),
            "held_parameters": float(sum(map(num_held, base))),
            "sync_bytes": float(adapter.num_bytes if adapter else num_parameters * self.wire_dtype.itemsize),
        }

    @torch.no_grad()
    def score(self, batch: TrainBatch, needs: frozenset[str]) -> TrainBatch:
        """Add what is named in `needs`: the policy's own `old_logprobs`, with a critic's `old_values`, and
        what reference and teacher are asked.

        Each is one float32 array (T,) a sample. Before a run's first update the policy scores in any case,
        so that this update's ratio can be checked (rl/gates.py).
        """
        self.expect_update()
        arrays: dict[str, TokenArrays] = {}
        if needs & {"old_logprobs", "old_values"} or not self.optimizer.num_updates:
            has_critic = self.spec.algorithm.critic != "none"
            own = ("old_logprobs", "old_values") if has_critic else ("old_logprobs",)
            arrays |= self._per_sample(own, self._own_scores, batch.samples)
        if "ref_logprobs" in needs:
            if self._reference is None:
                raise ValueError(
                    "ref_logprobs are needed, but this learner was made for a row without a reference"
                )
            arrays |= self._per_sample(
                ("ref_logprobs",), partial(self._scores_of, self._reference), batch.samples
            )
        if "teacher_logprobs" in needs and self.spec.algorithm.hint:
            arrays |= {"teacher_logprobs": self._hinted_logprobs(batch.samples)}
        elif "teacher_logprobs" in needs and self.teacher is not None:
            scores = partial(self._scores_of, self.teacher)
            arrays |= self._per_sample(("teacher_logprobs",), scores, batch.samples)
        return replace(batch, **arrays)

    def expect_update(self) -> None:
        """As a score of which nothing is needed: the next update's weights are those before it."""
        self.is_first_update = True

    def own_logprobs(self) -> TokenArrays:
        """What the last update made of old_logprobs: float32 (T,) a sample; none where it was given them."""
        return tuple(self._own_logprobs[row] for row in range(len(self._own_logprobs)))

    def update(self, minibatch: TrainBatch) -> MetricSums:
        """One optimizer update on a weighed minibatch.

        Without old_logprobs the policy's own before this update take their place: the ratio is 1. The loss is
        normalised by the minibatch's own global counts, so the gradient does not depend on micro_batch_size.
        A gradient that is not finite is not applied: it is counted in `optim/skipped_updates`.

        Raises:
            ValueError: the loss has a ratio to old_logprobs, and the weights have moved since the batch could
                be scored.
        """
        counts, is_scored = minibatch.counts, minibatch.old_logprobs is not None
        if not is_scored and not self.is_first_update and "old_logprobs" in self.spec.algorithm.needs:
            raise ValueError(
                "the batch has no old_logprobs, and this update is not the first since learner.score: score "
                "it with what algorithm.needs_for(number of updates) names"
            )
        self._own_logprobs = {}
        self.optimizer.zero_grad()
        parts: list[MetricSums] = []
        passes = self.passes(minibatch.samples)
        num_passes = self.backend.largest(len(passes))
        is_known = True  # which log-probs the loss will be given
        for rows, micro_batch in zip(passes, minibatch.micro_batches(passes), strict=True):
            layout = micro_batch.padded(layout=self.layout).to(self.device)
            foreseen = self._foreseen(layout, counts) if is_known else None
            outputs = self.evaluate(layout, self._compared, foreseen=foreseen)
            own = outputs.logprobs.detach()
            is_known = is_scored or (is_known and was_told(own, layout))
            known = layout if is_scored else replace(layout, old_logprobs=own)
            loss, sums = self.spec.algorithm.loss(outputs, known, counts)
            self.optimizer.backward(loss)
            if self.is_first_update:
                sums |= first_ratio_error(outputs.logprobs, layout)
            if not is_scored:
                self._own_logprobs |= unpadded(own, rows, minibatch.samples)
            parts.append(sums)
        used = minibatch if is_scored else replace(minibatch, old_logprobs=self.own_logprobs())
        return self.finish(parts, used, num_passes)

    def finish(self, parts: Sequence[MetricSums], minibatch: Any, num_passes: int) -> MetricSums:
        """Keep the other ranks company until each has made `num_passes` passes, then apply the gradients."""
        for _ in range(num_passes - len(parts)):
            outputs = self.evaluate(nothing_to_train().to(self.device))
            self.optimizer.backward(nothing_of(outputs))
        self.is_first_update &= not num_passes
        return self.apply(parts, minibatch)

    def apply(self, parts: Sequence[MetricSums], minibatch: Any) -> MetricSums:
        """Move the weights by what was accumulated; if that is not finite they stay and the batch is kept."""
        sums = add_metrics([*parts, self.optimizer.apply()])
        if self.optimizer.was_skipped and self.spec.incidents:
            save_incident(
                Path(self.spec.incidents), minibatch, number=self.optimizer.num_updates, metrics=sums
            )
        return sums

    @torch.no_grad()
    def score_sequences(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probability of each id after the first of each sequence: float32 (len - 1,). Temperature 1."""
        scores = []
        for ids in sequences:
            tokens = torch.tensor([list(ids)], device=self.device)
            scores.append(self._forward(token_ids=tokens).cpu().numpy())
        return scores

    def score_base_sequences(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """As score_sequences, of the model without its adapter."""
        if self.adapter is None:
            raise ValueError("score_base_sequences of a learner without an adapter")
        with self.adapter.as_base():
            return self.score_sequences(sequences)

    def checkpoint(self, path: str, run_state: dict[str, Any]) -> None:
        """Save all that a resume needs, the driver's `run_state` with it: whole or not at all."""
        state = learner_state(self)
        policy = self.backend.whole_model(self.model) if self.adapter is None else self.adapter.gathered()
        if self.backend.is_main:
            save_checkpoint(policy, self.tokenizer, state, run_state, Path(path))

    def resume(self, path: str) -> None:
        """Go on from a checkpoint of this run; the reference stays the policy that the run started from."""
        restore_learner(self, Path(path))

    @staticmethod
    def split(minibatch: Any, num_ranks: int, algorithm: Any) -> list[Any]:
        """A minibatch as one part a rank, each with the denominators of the whole."""
        del algorithm
        return split_batch(minibatch, num_ranks)

    @property
    def _compared(self) -> PolicyModel | None:
        """The teacher, where the loss compares whole distributions with it."""
        return self.teacher if self.spec.algorithm.compares_distributions else None

    def passes(self, samples: Sequence[TrainSample]) -> list[list[int]]:
        """Which of `samples` go through the model together (rl/packing.py)."""
        spec = self.spec
        return passes(
            samples, num_rows=spec.micro_batch_size, num_tokens=spec.micro_batch_tokens, layout=self.layout
        )

    def _foreseen(self, layout: PaddedLayout, counts: LossCounts) -> torch.Tensor | None:
        """What the loss will ask for, where the weights are still those that old_logprobs are of.

        An engine in float32 has said them already, but for rounding: where that is not so, was_told notices.
        """
        precision = self.spec.precision
        if not self.is_first_update or precision.model_dtype is not torch.float32:
            return None
        if layout.old_logprobs is None and precision.engine_dtype is torch.float32:
            layout = replace(layout, old_logprobs=layout.rollout_logprobs)
        return foreseen_gradient(self.spec.algorithm, layout, counts)

    def evaluate(
        self, layout: PaddedLayout, teacher: PolicyModel | None = None, **options: Any
    ) -> TokenOutputs:
        """The policy's outputs, with the critic's values where there is one; options as PolicyModel's."""
        return self._forward(layout, teacher, **options)

    def _own_scores(self, layout: PaddedLayout) -> tuple[torch.Tensor, ...]:
        outputs = self.evaluate(layout, wants_entropy=False)
        return (outputs.logprobs,) if outputs.values is None else (outputs.logprobs, outputs.values)

    def _scores_of(self, model: Forward | Scorer, layout: PaddedLayout) -> tuple[torch.Tensor, ...]:
        dtype = self.spec.precision.model_dtype
        with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
            return (model(layout, wants_entropy=False).logprobs,)

    def _hinted_logprobs(self, samples: Sequence[TrainSample]) -> TokenArrays:
        """The policy's own log-probs of each sample's tokens behind the row's hint: float32 (T,) each."""
        renderer, hint = ChatMLRenderer(self.tokenizer), self.spec.algorithm.hint
        told = [hinted(sample, [hint_message(hint, sample.answer)], renderer) for sample in samples]
        arrays = self._per_sample(("hinted",), self._own_scores, told)["hinted"]
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
        chosen = self.passes(samples)
        for _ in range(self.backend.largest(len(chosen)) - len(chosen)):
            compute(nothing_to_train().to(self.device))  # the other ranks wait for this one's part
        for rows in chosen:
            tensors = compute(pad([samples[row] for row in rows], layout=self.layout).to(self.device))
            for name, tensor in zip(names, tensors, strict=True):
                for row, array in unpadded(tensor, rows, samples).items():
                    arrays[name][row] = array
        return {name: tuple(values) for name, values in arrays.items()}
