"""vLLM's AsyncLLM as a Policy: token ids in; token ids, log-probabilities and policy versions out."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from envs.policy import Completion, SamplingParams, VersionSpan
from rollout.manifest import Manifest
from rollout.weight_sketch import Sketch

# Set before vLLM is imported. Without dynamo the engine never calls a C++ compiler (vLLM compiles
# gather_logprobs even with enforce_eager). `nobind`: engines share the cores that the run gives them.
ENGINE_ENVIRONMENT = {
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Everything one engine is started from.

    `num_threads` is the engine's OpenMP threads on the CPU: with one, its results do not depend on what else
    is in the batch. `kv_cache_gib` is per engine on the CPU; on a GPU `gpu_memory_utilization` rules instead.
    """

    name: str
    model: str
    device: str
    dtype: str
    context_length: int
    max_num_seqs: int
    weight_transfer_backend: str
    num_threads: int = 1
    kv_cache_gib: int = 1
    gpu_memory_utilization: float = 0.4
    seed: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


class EngineError(RuntimeError):
    """The engine failed or did not answer in time; the message names it."""


class VllmEngine:
    """One vLLM engine. Every method is a coroutine of the loop that called `start`.

    Source of the API: vllm 0.32 `v1/engine/async_llm.py`.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._ids = itertools.count()
        self._llm: Any = None

    async def start(self) -> None:
        """Load the model and serve version 0. Raises EngineError when vLLM does not come up."""
        os.environ.update(ENGINE_ENVIRONMENT | dict(self.spec.environment))
        if self.spec.device == "cpu":
            os.environ["OMP_NUM_THREADS"] = str(self.spec.num_threads)
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(self.spec.kv_cache_gib)
        from vllm import AsyncEngineArgs  # the import must see the environment above
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.v1.engine.async_llm import AsyncLLM

        on_cpu = self.spec.device == "cpu"
        args = AsyncEngineArgs(
            model=self.spec.model,
            dtype=self.spec.dtype,  # pyright: ignore[reportArgumentType]  (one of vLLM's literals; validated by it)
            seed=self.spec.seed,
            max_model_len=self.spec.context_length,
            max_num_seqs=self.spec.max_num_seqs,
            enforce_eager=on_cpu,
            # Seeded requests and chunked prefill kill the CPU engine ("CPU Generator does not use offset").
            enable_chunked_prefill=not on_cpu,
            max_num_batched_tokens=max(self.spec.context_length, 4096),
            block_size=32
            if on_cpu
            else None,  # the CPU's default is 128: shorter prompts would never be cached
            enable_prefix_caching=True,
            skip_tokenizer_init=True,
            logprobs_mode="processed_logprobs",
            gpu_memory_utilization=self.spec.gpu_memory_utilization,
            weight_transfer_config=WeightTransferConfig(backend=self.spec.weight_transfer_backend),
            worker_extension_cls="rollout.weight_transfer.WorkerExtension",
            disable_log_stats=True,
        )
        try:
            self._llm = await asyncio.to_thread(AsyncLLM.from_engine_args, args)
            await self._llm.init_weight_transfer_engine(_request("init", {}))
            await self._llm.update_weight_version("0")
        except Exception as error:
            raise EngineError(f"{self.spec.name} did not start on {self.spec.model}: {error}") from error

    async def complete(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Completion:
        """Sample one continuation.

        Raises:
            EngineError: the engine is dead or gave back something that is not a finished completion.
        """
        from vllm import SamplingParams as VllmSamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = VllmSamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            stop_token_ids=list(sampling.stop_token_ids),
            ignore_eos=True,  # only stop_token_ids stop: the same set for every engine and learner
            logprobs=0,  # the sampled token's only
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        result = await self._finish(prompt_ids, params)
        output = result.outputs[0]
        token_ids = tuple(output.token_ids)
        return Completion(
            token_ids=token_ids,
            logprobs=tuple(
                float(entry[token].logprob) for token, entry in zip(token_ids, output.logprobs, strict=True)
            ),
            version_spans=tuple(
                VersionSpan(version=int(span.version), start=span.start, end=span.end)
                for span in output.weight_versions
            ),
            finish_reason="stop" if output.finish_reason == "stop" else "length",
        )

    async def score(self, token_ids: Sequence[int]) -> np.ndarray:
        """Log-probability of each id after the first, given those before it: float32 (len - 1,).

        Used for canaries. A sequence that the prefix cache holds is computed afresh (prompt log-probs skip
        it).
        """
        from vllm import SamplingParams as VllmSamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = VllmSamplingParams(
            max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        result = await self._finish(token_ids, params)
        entries = zip(token_ids[1:], result.prompt_logprobs[1:], strict=True)
        return np.array([entry[token].logprob for token, entry in entries], dtype=np.float32)

    async def _finish(self, prompt_ids: Sequence[int], params: Any) -> Any:
        """The final output of one request."""
        from vllm.v1.engine.exceptions import EngineDeadError

        request_id = f"{self.spec.name}-{next(self._ids)}"
        final = None
        try:
            async for output in self._llm.generate(
                {"prompt_token_ids": list(prompt_ids)}, params, request_id
            ):
                final = output
        except EngineDeadError as error:
            raise EngineError(
                f"{self.spec.name} is dead: a process of vLLM's was killed, or crashed "
                "(was there memory left?)"
            ) from error
        except Exception as error:
            raise EngineError(f"{self.spec.name} failed on request {request_id}: {error}") from error
        if final is None or not final.finished:
            raise EngineError(f"{self.spec.name} ended request {request_id} without a finished output")
        return final

    async def receive_weights(self, manifest: Manifest, *, drill: str = "") -> None:
        """Load one policy version: check the manifest, hold the requests in flight, load, drop stale caches.

        Raises:
            EngineError: the worker refused or failed; before the load began the old weights still serve.
        """
        plain = manifest.to_dict()
        update = {"manifest": plain, "drill": drill}
        try:
            await self._llm.collective_rpc("check_weight_manifest", args=(plain,))
            await self._llm.pause_generation(mode="keep", clear_cache=False)
            await self._llm.start_weight_update()
            await self._llm.update_weights(_request("update", update))
            await self._llm.finish_weight_update(str(manifest.version))
            # Key-values of the old weights must never answer for the new ones.
            if not await self._llm.reset_prefix_cache(reset_running_requests=True):
                raise EngineError(f"{self.spec.name} could not reset its prefix cache")
            await self._llm.resume_generation()
        except Exception as error:
            raise EngineError(
                f"{self.spec.name}: sync of policy version {manifest.version} failed: {error}"
            ) from error

    async def served_version(self) -> int:
        """The policy version that new tokens are labelled with."""
        return int(await self._llm.get_weight_version())

    async def sketch_served_weights(self, seed: int) -> dict[str, Sketch]:
        """Sketches of what every layer serves, by Hugging Face name."""
        (plain,) = await self._llm.collective_rpc("sketch_served_weights", args=(seed,))
        return {name: _sketch(entry) for name, entry in plain.items()}

    async def stop(self) -> None:
        """Shut the engine's processes down."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None


def _sketch(entry: Mapping[str, Any]) -> Sketch:
    rows = entry["rows"]
    return Sketch(
        columns=np.frombuffer(entry["columns"], np.float32).reshape(rows, -1),
        product=np.frombuffer(entry["product"], np.float32),
    )


def _request(kind: str, info: dict[str, Any]) -> Any:
    """vLLM's own request types, by kind."""
    from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest

    if kind == "init":
        return WeightTransferInitRequest(init_info=info)
    return WeightTransferUpdateRequest(update_info=info)
