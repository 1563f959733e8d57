"""vLLM's AsyncLLM as a Policy: token ids in; token ids, log-probabilities and policy versions out."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.base import EngineRequestError
from envs.policy import MAX_KEPT, Completion, SamplingParams
from rollout.completions import ROOM_FOR_TIES, completion_of, num_alternatives
from rollout.engine_adapters import ServedAdapters
from rollout.engine_spec import (
    POLICY,
    EngineSpec,
    adapter_arguments,
    device_arguments,
    engine_environment,
)
from rollout.manifest import Manifest
from rollout.routed_experts import experts_of
from rollout.weight_sketch import Sketch

WATCH_S = 0.5
"""Between two looks at whether the engine still lives, while an answer of its is waited for."""


class EngineError(RuntimeError):
    """The engine failed or did not answer in time; the message names it."""


class VllmEngine:
    """One vLLM engine (0.32, v1/engine/async_llm.py); all methods are coroutines of the loop of `start`."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._ids = itertools.count()
        self._llm: Any = None
        self._adapters: Any = None

    async def start(self) -> None:
        """Load the model and serve version 0. Raises EngineError when vLLM does not come up."""
        os.environ.update(engine_environment(self.spec))
        from vllm import AsyncEngineArgs  # the import must see the environment above
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.v1.engine.async_llm import AsyncLLM

        args = AsyncEngineArgs(
            model=self.spec.model,
            dtype=self.spec.dtype,  # pyright: ignore[reportArgumentType]  (one of vLLM's literals; validated by it)
            seed=self.spec.seed,
            max_model_len=self.spec.context_length,
            max_num_seqs=self.spec.max_num_seqs,
            max_num_batched_tokens=max(self.spec.context_length, 4096),
            enable_prefix_caching=True,
            skip_tokenizer_init=True,
            logprobs_mode="processed_logprobs",
            max_logprobs=MAX_KEPT + ROOM_FOR_TIES,
            weight_transfer_config=WeightTransferConfig(backend=self.spec.weight_transfer_backend),
            worker_extension_cls="rollout.weight_transfer.WorkerExtension",
            disable_log_stats=True,
            enable_return_routed_experts=self.spec.returns_experts,
            **device_arguments(self.spec),
            **adapter_arguments(self.spec),
        )
        try:
            self._llm = await asyncio.to_thread(AsyncLLM.from_engine_args, args)
            await self._llm.update_weight_version("0")
            self._adapters = ServedAdapters(self._llm, self.spec)
        except Exception as error:
            raise EngineError(f"{self.spec.name} did not start on {self.spec.model}: {error}") from error

    async def complete(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, *, adapter: str = POLICY
    ) -> Completion:
        """Sample one continuation, with the adapter of this name; BASE: with the model alone.

        The versions of its tokens are those of the adapter that answered, or of the model's own weights.

        Raises:
            ValueError: no adapter of this name is loaded.
            EngineRequestError: the engine failed at this request and lives.
            EngineError: the engine is dead or gave back something that is not a finished completion, or lacks
                ids that could be drawn where they are asked for.
        """
        from vllm import SamplingParams as VllmSamplingParams
        from vllm.sampling_params import RequestOutputKind

        filters = sampling.filters
        params = VllmSamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=filters.top_p,
            top_k=filters.top_k,
            min_p=filters.min_p,
            seed=sampling.seed,
            routed_experts_prompt_start=sampling.num_routed,
            stop_token_ids=list(sampling.stop_token_ids),
            allowed_token_ids=list(sampling.allowed_token_ids) or None,
            ignore_eos=True,  # only stop_token_ids stop: the same set for every engine and learner
            logprobs=num_alternatives(filters),  # 0: the sampled token's only
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        result, version = await self._finish(prompt_ids, params, adapter)
        output = result.outputs[0]
        num_rows = len(prompt_ids) + len(output.token_ids) - 1 - sampling.num_routed
        experts = experts_of(output, num_rows) if self.spec.returns_experts else None
        async with self._attempt("reading a completion"):
            return completion_of(
                output, return_kept=filters.return_kept, routed_experts=experts, version=version
            )

    async def score(self, token_ids: Sequence[int], *, adapter: str = POLICY) -> np.ndarray:
        """Log-probability of each id after the first, given those before it: float32 (len - 1,).

        Used for canaries; `adapter` as in `complete`. A sequence that the prefix cache holds is computed
        afresh (prompt log-probs skip it).
        """
        from vllm import SamplingParams as VllmSamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = VllmSamplingParams(
            max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        result, _ = await self._finish(token_ids, params, adapter)
        entries = zip(token_ids[1:], result.prompt_logprobs[1:], strict=True)
        return np.array([entry[token].logprob for token, entry in entries], dtype=np.float32)

    async def _finish(self, prompt_ids: Sequence[int], params: Any, adapter: str) -> tuple[Any, int | None]:
        """The final output of one request, and the version of the adapter that answered, if one did."""
        served = self._adapters.named(adapter)
        request_id = f"{self.spec.name}-{next(self._ids)}"
        final = None
        async with self._attempt(f"request {request_id}"):
            prompt = {"prompt_token_ids": list(prompt_ids)}
            async with self._adapters.in_use(served) as lora:
                async for output in self._llm.generate(prompt, params, request_id, lora_request=lora):
                    final = output
        if final is None or not final.finished:
            raise EngineError(f"{self.spec.name} ended request {request_id} without a finished output")
        return final, served and served.version

    async def receive_weights(self, manifest: Manifest, *, drill: str = "") -> None:
        """Load one policy version out of shared memory: prepare, load, serve.

        Raises:
            EngineError: the worker refused or failed; before the load began the old weights still serve.
        """
        await self.prepare_weights(manifest)
        async with self._attempt(f"loading policy version {manifest.version}"):
            await self._llm.start_weight_update()
            await self._llm.update_weights(_update({"manifest": manifest.to_dict(), "drill": drill}))
            await self._llm.finish_weight_update()
        await self.serve_weights(manifest.version)

    async def receive_adapter(self, manifest: Manifest, *, name: str = POLICY, drill: str = "") -> None:
        """Load one version of the adapter `name` beside the model; every request for it from now on gets it.

        The other adapters and the model alone answer as before.

        Raises:
            EngineError: the engine was not made for one more name or for such an adapter, the files are not
                what the manifest says, or vLLM failed; what served still serves.
        """
        async with self._attempt(f"loading version {manifest.version} of adapter {name!r}"):
            await self._adapters.load(manifest, name, drill=drill)

    async def remove_adapter(self, name: str) -> None:
        """Make room for another name; requests in flight end with it. Raises EngineError: it is unknown."""
        async with self._attempt(f"removing adapter {name!r}"):
            await self._adapters.remove(name)

    async def prepare_weights(self, manifest: Manifest) -> None:
        """Check what is announced against the model, then hold the requests in flight.

        Raises:
            EngineError: the manifest is not what this engine serves; the old weights still serve.
        """
        async with self._attempt(f"the check of policy version {manifest.version}"):
            await self._llm.collective_rpc("check_weight_manifest", args=(manifest.to_dict(),))
            await self._llm.pause_generation(mode="keep", clear_cache=False)

    async def serve_weights(self, version: int) -> None:
        """Label new tokens with `version`, drop what the old weights cached, and go on.

        Raises:
            EngineError: the engine failed.
        """
        async with self._attempt(f"serving policy version {version}"):
            await self._llm.update_weight_version(str(version))
            # Key-values of the old weights must never answer for the new ones.
            if not await self._llm.reset_prefix_cache(reset_running_requests=True):
                raise EngineError("the prefix cache could not be reset")
            await self._llm.resume_generation()

    # The next four are the receiving end of vLLM's `VLLMWeightSyncClient`: on ipc and nccl the learner calls
    # them, between prepare_weights and serve_weights.

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Open the channel to the learner. With nccl this returns when every rank has come."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        async with self._attempt("opening the weight channel"):
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def start_weight_update(self) -> None:
        async with self._attempt("the start of a weight update"):
            await self._llm.start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive one chunk of weights: all of them with nccl, a full buffer with ipc."""
        async with self._attempt("receiving weights"):
            await self._llm.update_weights(_update(update_info))

    async def finish_weight_update(self) -> None:
        """End the update. vLLM's own backends know nothing of a tied head with a copy of its own."""
        async with self._attempt("the end of a weight update"):
            await self._llm.finish_weight_update()
            await self._llm.collective_rpc("retie_head")

    @asynccontextmanager
    async def _attempt(self, what: str) -> AsyncIterator[None]:
        """Any failure of vLLM's as an EngineError that says whose and at what; a dead engine as just that.

        When its core dies vLLM never answers the calls under way (0.32, v1/engine/core_client.py), only
        requests end. So the block is ended from here, as an overdue one would be.
        """
        try:
            async with asyncio.timeout(None) as life:
                watch = asyncio.create_task(_end_at_death(life, self._llm))
                try:
                    yield
                finally:
                    watch.cancel()
        except (EngineError, EngineRequestError):
            raise
        except Exception as error:
            if self._llm.errored:
                raise EngineError(
                    f"{self.spec.name} is dead: a process of vLLM's was killed, or crashed "
                    "(was there memory left?)"
                ) from error
            from vllm.v1.engine.exceptions import EngineGenerateError  # of this request alone: "recoverable"

            failed = EngineRequestError if isinstance(error, EngineGenerateError) else EngineError
            raise failed(f"{self.spec.name}: {what} failed: {str(error) or repr(error.__cause__)}") from error

    async def served_version(self, adapter: str = POLICY) -> int:
        """The version that new tokens of this adapter are labelled with. Raises ValueError: it is unknown."""
        if (served := self._adapters.named(adapter)) is not None:
            return served.version
        async with self._attempt("asking for its policy version"):
            return int(await self._llm.get_weight_version())

    async def sketch_served_weights(self, seed: int) -> dict[str, Sketch]:
        """Sketches of what every layer serves, by Hugging Face name."""
        async with self._attempt("sketching its weights"):
            (plain,) = await self._llm.collective_rpc("sketch_served_weights", args=(seed,))
        return {name: Sketch.from_bytes(entry) for name, entry in plain.items()}

    async def stop(self) -> None:
        """Shut the engine's processes down."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = self._adapters = None


@dataclass(frozen=True, slots=True)
class AdapterPolicy:
    """One adapter of an engine as a Policy."""

    engine: VllmEngine
    adapter: str

    async def complete(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Completion:
        """Sample one continuation: see VllmEngine.complete."""
        return await self.engine.complete(prompt_ids, sampling, adapter=self.adapter)


async def _end_at_death(life: asyncio.Timeout, llm: Any) -> None:
    while not llm.errored:  # noqa: ASYNC110  (a flag of vLLM's, set by a thread: there is no event)
        await asyncio.sleep(WATCH_S)
    life.reschedule(asyncio.get_running_loop().time())


def _update(info: dict[str, Any]) -> Any:
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    return WeightTransferUpdateRequest(update_info=info)
