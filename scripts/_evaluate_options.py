"""The options of scripts/evaluate.py, and which of them go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rl.config import Device, EngineDtype
from rl.evaluation import EvaluationError

ENGINE_ONLY = (
    "adapters",
    "top_k",
    "min_p",
    "context_length",
    "device",
    "engines",
    "engine_threads",
    "engine_dtype",
    "engine_start_s",
)
"""Options of the engine, without effect on an endpoint."""
ENDPOINT_ONLY = ("endpoint_model", "endpoint_key_variable", "request_s", "num_retries")
"""Options of the endpoint, without effect on an engine."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which policy is evaluated, on what, and how. None stands for the run's value, else a run's default."""

    model: str = ""
    """Folder or hub id of a model, or the directory of a run: its newest checkpoint."""
    endpoint: str = ""
    """Address of an OpenAI-compatible chat endpoint in the model's place: http://localhost:8000/v1."""
    endpoint_model: str = ""
    """The model's name there."""
    endpoint_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; it may be unset."""
    against: str = ""
    """Another policy as --model takes it, or a former evaluation.json: the paired difference to it."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters of --model in peft's format, PATH or NAME=PATH of folders, checkpoints or runs: they and
    the model alone are evaluated on the same engines at once, each less each."""

    env: tuple[str, ...] = ()
    """Environments with their levels: calc:1 my_env.py:ENV:0. Empty: the run's."""
    num_tasks: int = 512
    """Held-out tasks of each."""
    k: tuple[int, ...] = (1,)
    """pass@k for each of these, 1 4 16 or 1,4,16; so many samples of a task are drawn as the largest says."""
    seed: int | None = None
    """Seed of tasks and samples."""
    reward: str | None = None
    """Reward whose success counts, by name or `file.py:function`; "": the environment's own."""
    reward_python: str = ""
    """Path of the Python that a reward of your own runs under. Empty: that of the run, or this one."""

    temperature: float | None = None
    """Sampling temperature; 0 is greedy."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this probability together; 1: from all."""
    top_k: int = 0
    """Draw from so many of the likeliest tokens; 0: from all."""
    min_p: float = 0.0
    """Draw from the tokens at least this share as likely as the likeliest; 0: from all."""

    max_turns: int | None = None
    """Turns of an episode. None: the run's or the default, and at least what each level takes."""
    max_turn_tokens: int | None = None
    """Tokens that the policy may sample in one turn."""
    max_total_tokens: int | None = None
    """Tokens of an episode in all: prompts, sampled and tool results."""
    max_tool_calls: int | None = None
    """Tool calls of an episode."""
    max_wall_s: float | None = None
    """Wall seconds of an episode, waiting included."""

    context_length: int | None = None
    """Longest prompt plus answer that the engine accepts, in tokens."""
    device: Device = "auto"
    """Where engines compute. auto: a GPU where there is one."""
    engines: int = 1
    """vLLM engines."""
    engine_threads: int = 0
    """CPU threads of each engine. 0: 1, with which results do not depend on what shares a batch."""
    engine_dtype: EngineDtype | None = None
    """Precision of the engine."""
    num_concurrent: int = 0
    """Episodes that an engine, or the endpoint, works on at a time. 0: 128, or 16 of an endpoint."""

    engine_start_s: float = 300.0
    """For an engine to load and answer."""
    group_deadline_s: float = 300.0
    """For all samples of one task."""
    request_s: float = 60.0
    """For one answer of an endpoint."""
    num_retries: int = 3
    """Times that a request to an endpoint is made again after a failure that may pass."""

    out: str = ""
    """Folder of evaluation.json and the episodes, and of against.json and against/ where --against was
    sampled too; with --adapters of comparison.json and a folder for each of them and for base, the model
    alone. New or empty. Empty: runs/evaluate-<time>."""

    @property
    def num_samples(self) -> int:
        """Samples of each task."""
        return max(self.k)

    @property
    def ks(self) -> list[int]:
        return sorted(set(self.k))


LISTS = ("--k", "--env", "--adapters")
"""Options that take several values."""


def spread(arguments: Sequence[str]) -> list[str]:
    """`arguments` with 1,4,16 as three values where an option takes several, and its repeats as one option.

    Of `--env calc:1 --env calc:2`, as scripts.compare has it, the parser would keep the last without a word.
    """
    words: list[str] = []
    listed: dict[str, list[str]] = {}
    option = ""
    for word in arguments:
        is_option = word.startswith("--")
        option, equals, value = word.partition("=") if is_option else (option, "", word)
        if option not in LISTS:
            words.append(word)
            continue
        values = listed.setdefault(option, [])
        values += value.split(",") if equals or not is_option else []
    return words + [word for option, values in listed.items() for word in (option, *values)]


def require_options(options: Options) -> None:
    """Raise EvaluationError with everything that is wrong with the options by themselves."""
    if problems := [*_policy_problems(options), *_number_problems(options)]:
        raise EvaluationError("\n".join(problems))


def _policy_problems(options: Options) -> Iterator[str]:
    if bool(options.model) == bool(options.endpoint):
        given = "both were given" if options.model else "neither was given"
        yield f"what is evaluated is --model (folder, hub id or run) or --endpoint (address); {given}"
    if options.endpoint and not options.endpoint_model:
        yield "--endpoint needs --endpoint-model, the model's name there"
    if options.adapters and options.against:
        yield "--against with --adapters: these and the model are compared with each other; leave one out"
    without_effect, instead = (ENGINE_ONLY, "endpoint") if options.endpoint else (ENDPOINT_ONLY, "model")
    for name in without_effect:
        if getattr(options, name) != getattr(Options, name) and not (options.against and options.endpoint):
            yield f"--{name.replace('_', '-')} has no effect with --{instead}; leave it out"


def _number_problems(options: Options) -> Iterator[str]:
    if not options.k or min(options.k) < 1:
        yield f"--k {' '.join(map(str, options.k)) or 'is empty'}: expected whole numbers from 1"
        return
    for name, is_right, expected in (
        ("num_tasks", options.num_tasks >= 1, "1 or more"),
        ("num_concurrent", options.num_concurrent >= 0, "0 (auto) or more"),
        ("temperature", options.temperature is None or options.temperature >= 0, "0 (greedy) or more"),
        ("top_p", 0 < options.top_p <= 1, "more than 0 and at most 1"),
        ("top_k", options.top_k >= 0, "0 (all) or more"),
        ("min_p", 0 <= options.min_p < 1, "0 (all) or more, less than 1"),
        ("num_retries", options.num_retries >= 0, "0 or more"),
        ("request_s", options.request_s > 0, "more than 0 seconds"),
        ("group_deadline_s", options.group_deadline_s > 0, "more than 0 seconds"),
    ):
        if not is_right:
            yield f"--{name.replace('_', '-')} {getattr(options, name)}: expected {expected}"
    if options.temperature == 0 and options.num_samples > 1:
        yield (
            f"--temperature 0 with {options.num_samples} samples a task: greedy samples are all equal; use "
            "--k 1, or a temperature above 0"
        )
