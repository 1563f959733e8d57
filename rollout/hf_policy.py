"""A Policy on plain transformers: measures the base model, and checks the engine independently of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from envs.policy import NO_FILTERS, Completion, FinishReason, SamplingParams, VersionSpan


@dataclass(frozen=True, slots=True)
class _Request:
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    completion: asyncio.Future[Completion]


class TransformersPolicy:
    """Samples from a causal language model of transformers; log-probs in fp32.

    Requests that wait at the same time are generated as one left-padded batch with a KV cache, in a thread.
    Each draws from a generator of its own, so its tokens do not depend on what shares the batch, up to the
    rounding of the model's batched arithmetic (about 1e-6 in a log-prob).
    """

    def __init__(self, model: PreTrainedModel, *, version: int = 0) -> None:
        """`version` is the policy version that the completions carry."""
        self.model = model
        self.version = version
        self._waiting: list[_Request] = []
        self._worker: asyncio.Task[None] | None = None

    async def complete(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Completion:
        """Sample a continuation; see Policy."""
        if not prompt_ids:
            raise ValueError(
                "TransformersPolicy.complete was given an empty prompt; expected at least one token"
            )
        request = _Request(tuple(prompt_ids), sampling, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._worker is None or self._worker.done():
            # It starts on the loop's next turn: the others of this turn join its first batch.
            self._worker = asyncio.create_task(self._serve())
        return await request.completion

    async def _serve(self) -> None:
        """Generate batches until nobody waits."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                completions = await asyncio.to_thread(self._generate, batch)
            except Exception as error:
                for request in batch:
                    if not request.completion.done():
                        request.completion.set_exception(error)
                continue
            for request, completion in zip(batch, completions, strict=True):
                if not request.completion.done():  # its caller may have been cancelled
                    request.completion.set_result(completion)

    @torch.inference_mode()
    def _generate(self, batch: Sequence[_Request]) -> list[Completion]:
        device = self.model.device
        width = max(len(request.prompt_ids) for request in batch)
        num_pads = torch.tensor([width - len(request.prompt_ids) for request in batch], device=device)
        padded = [(0,) * (width - len(request.prompt_ids)) + request.prompt_ids for request in batch]
        input_ids = torch.tensor(padded, device=device)  # (B, T), padded on the left
        attention_mask = (torch.arange(width, device=device) >= num_pads[:, None]).long()  # (B, T)
        position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)  # (B, T)
        sampler = _Sampler([request.sampling for request in batch], self.version)
        cache = None
        while True:
            output = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            sampled = sampler.sample(output.logits[:, -1].float().cpu())
            if sampler.is_finished:
                return sampler.completions()
            # Rows that are finished go on unread: the batch is as long as its longest completion.
            cache = output.past_key_values
            input_ids = sampled[:, None].to(device)
            attention_mask = torch.cat([attention_mask, torch.ones_like(input_ids)], dim=1)
            position_ids = position_ids[:, -1:] + 1


class _Sampler:
    """The completions of one batch as they grow; each row draws from its own generator."""

    def __init__(self, rows: Sequence[SamplingParams], version: int) -> None:
        for row in rows:
            if row.filters != NO_FILTERS:
                raise ValueError(
                    f"{row.filters}: this policy draws from the whole distribution; leave them out"
                )
        self._rows = rows
        self._version = version
        self._generators = [torch.Generator() for _ in rows]
        for generator, row in zip(self._generators, rows, strict=True):
            generator.seed() if row.seed is None else generator.manual_seed(row.seed)
        self._is_greedy = torch.tensor([row.temperature == 0 for row in rows])  # (B,)
        self._temperatures = torch.tensor([row.temperature or 1.0 for row in rows])[:, None]  # (B, 1)
        self._token_ids: list[list[int]] = [[] for _ in rows]
        self._logprobs: list[list[float]] = [[] for _ in rows]
        self._finish_reasons: list[FinishReason | None] = [None for _ in rows]

    @property
    def is_finished(self) -> bool:
        return all(self._finish_reasons)

    def sample(self, logits: torch.Tensor) -> torch.Tensor:
        """One token a row from fp32 logits (B, V), appended to the rows not finished yet. Returns ids (B,).

        By inversion of the cumulative distribution: one uniform number a token, in fp64 so that rare tokens
        keep their probability. A greedy row has the log-probs of temperature 1, as vLLM's have.
        """
        logprobs = torch.log_softmax(self._allowed(logits) / self._temperatures, dim=-1)
        cumulative = logprobs.double().exp().cumsum(dim=-1)
        uniform = [torch.rand(1, generator=generator, dtype=torch.float64) for generator in self._generators]
        threshold = torch.stack(uniform) * cumulative[:, -1:]  # (B, 1)
        drawn = (
            torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
        )
        sampled = torch.where(self._is_greedy, logprobs.argmax(dim=-1), drawn)
        chosen = logprobs.gather(1, sampled[:, None]).squeeze(1)
        for index, (token_id, logprob) in enumerate(zip(sampled.tolist(), chosen.tolist(), strict=True)):
            if self._finish_reasons[index] is None:
                self._append(index, token_id, logprob)
        return sampled

    def _allowed(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, V), -inf for what a row may not draw."""
        allowed = logits.clone()
        for index, row in enumerate(self._rows):
            if row.allowed_token_ids:
                ids = list(row.allowed_token_ids)
                allowed[index] = torch.full_like(logits[index], -torch.inf)
                allowed[index, ids] = logits[index, ids]
        return allowed

    def completions(self) -> list[Completion]:
        return [
            Completion(
                token_ids=tuple(token_ids),
                logprobs=tuple(logprobs),
                version_spans=(VersionSpan(version=self._version, start=0, end=len(token_ids)),),
                finish_reason=finish_reason or "abort",
            )
            for token_ids, logprobs, finish_reason in zip(
                self._token_ids, self._logprobs, self._finish_reasons, strict=True
            )
        ]

    def _append(self, index: int, token_id: int, logprob: float) -> None:
        self._token_ids[index].append(token_id)
        self._logprobs[index].append(logprob)
        row = self._rows[index]
        if token_id in row.stop_token_ids:
            self._finish_reasons[index] = "stop"
        elif len(self._token_ids[index]) == row.max_tokens:
            self._finish_reasons[index] = "length"
