"""Whether a run from the same seed comes to the same bits: what that stands on, and what may vary without.

vLLM's results depend on what shares a batch, except with one thread an engine on the CPU, or with
batch-invariant kernels on a GPU (vLLM 0.32 `model_executor/determinism/batch_invariant.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rl.config import Config

MIN_CAPABILITY = (8, 0)
"""CUDA compute capability that vLLM's batch-invariant kernels need (its documentation of 0.32)."""


def determinism_problems(config: Config, *, on_gpu: bool) -> Iterator[str]:
    """Why `determinism = "exact"` cannot be kept; nothing for "fast"."""
    if config.determinism != "exact":
        return
    if not on_gpu and config.engine_threads > 1:
        yield (
            f"engine_threads = {config.engine_threads} with determinism = 'exact': an engine of several "
            "threads does not repeat itself to the bit; leave engine_threads 0 and raise engines instead, or "
            "use determinism fast"
        )
    lowest = min(_capabilities(), default=MIN_CAPABILITY) if on_gpu else MIN_CAPABILITY
    if lowest < MIN_CAPABILITY:
        yield (
            f"determinism = 'exact' on a GPU of compute capability {_dotted(lowest)}: vLLM's batch-invariant "
            f"kernels need {_dotted(MIN_CAPABILITY)}; use determinism fast, or device cpu"
        )


def _capabilities() -> list[tuple[int, int]]:
    return [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def determinism_lines(config: Config) -> Iterator[str]:
    """What a resolved configuration promises of a second run from the same seed, for the start screen."""
    on_gpu = config.device == "cuda"
    if config.determinism == "exact":
        engines = "batch-invariant kernels" if on_gpu else "one thread an engine"
        learner = "kernels that repeat themselves" if on_gpu else f"{config.learner_threads} threads, always"
        yield f"exact: again the same bits from this seed; engines: {engines}; learner: {learner};"
        yield "a trajectory that the clock ends stops the run"
        return
    yield "fast: again the same tasks, prompts, sampling seeds and order; what may vary:"
    if on_gpu or config.engine_threads > 1:
        yield "log-probs in their last bits, with what shares a batch, and so tokens and all that follows;"
    if on_gpu:
        yield "the learner's sums, in their last bits;"
    yield "what the clock ends (max_wall_s, the time limits of tools and rewards)"


def use_exact_kernels(exact: bool) -> None:
    """Make this process's torch repeat itself to the bit, or let it choose the fastest kernels.

    Raises (later, in the operation itself):
        RuntimeError: torch has no kernel for it that repeats itself.
    """
    torch.use_deterministic_algorithms(exact)
    if torch.cuda.is_available():
        # Its backward pass has no kernel that repeats itself; flash attention and plain matrix products do.
        torch.backends.cuda.enable_mem_efficient_sdp(not exact)


EXACT_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""What cuBLAS needs, before it starts, to repeat itself (torch's notes on reproducibility)."""
