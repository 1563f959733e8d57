"""Supervised fine-tuning on recorded trajectories, or on a data set of conversations.

    python -m recipes.sft --data runs/NAME/trajectories.jsonl        # the best episodes of a run
    python -m recipes.sft --data conversations.jsonl --model FOLDER  # {"messages": [{"role", "content"}]}
    python -m recipes.sft --data OWNER/NAME --split train            # the same from the Hugging Face hub

Masks and rendering are those of rollouts: what the assistant says is learned, with the token that ends
it, and tool results are context. A run's trajectories are learned as the ids that were sampled. Success on
held-out tasks of `--env` is measured before and after, as everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from envs.messages import Message, message
from recipes import calc_grpo
from recipes.cli import parse, refuse
from recipes.launch import Method, launch
from recipes.stopping import REFUSALS
from rl.config import Config
from rl.overrides import Count
from rl.samples import TrainSample
from rl.supervised import Supervised, SupervisedStep, conversation_sample, recorded_samples
from rl.validation import ConfigError
from rollout.record import read_records
from rollout.renderer import ChatMLRenderer
from rollout.tokenizer import load_tokenizer

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True)
class SftConfig(Config):
    """A Config whose data are given. A step takes num_groups x group_size of them."""

    algorithm: str = "sft"
    """sft; there is no other."""
    data: str = ""
    """A run's trajectories.jsonl, a file of conversations (.jsonl, .json, .parquet), or a hub id."""
    split: str = "train"
    """Split of a data set of the hub."""
    min_score: float = 1.0
    """Of a run's trajectories, those with a score of at least this are learned."""
    max_samples: Count = 100_000
    """The first so many samples are used."""

    def make_algorithm(self) -> Supervised:
        """The objective. Raises ValueError for another algorithm, or a knob of a policy-gradient row."""
        if self.algorithm != "sft":
            raise ValueError(f"algorithm {self.algorithm!r}: this recipe only fine-tunes; leave it 'sft'")
        if self.overrides:
            raise ValueError(
                f"{', '.join(self.overrides)}: knobs of policy-gradient rows, which have no effect on "
                "supervised fine-tuning; leave them out"
            )
        return Supervised()

    def describe_algorithm(self) -> str:
        return f"sft: the mean of -log π over tokens that were said, on {self.data}"


SHARED = {field.name: getattr(calc_grpo.CONFIG, field.name) for field in fields(Config)}
CONFIG = SftConfig(
    **{
        **SHARED,
        "algorithm": "sft",
        "kl_loss_coef": None,
        "loss_agg_mode": None,
        "num_minibatches": 1,
        "num_groups": 64,
        "group_size": 1,
        "micro_batch_size": 32,
        "learning_rate": 2e-4,
        "min_gain": 0.0,  # how much there is to gain is the data's affair
    }
)


def load_samples(config: SftConfig) -> list[TrainSample]:
    """The samples of `config.data`, as ids of `config.model`'s tokenizer.

    Raises:
        ConfigError: no data, data that cannot be read as what they are, nothing left after filtering, or a
            sample longer than context_length.
    """
    if not config.data:
        raise ConfigError(
            "data is empty: give --data a run's trajectories.jsonl, a file of conversations, or a hub id"
        )
    path = Path(config.data).expanduser()
    try:
        if path.name == "trajectories.jsonl" and path.is_file():
            records = (record for record in read_records(path) if record.split == "train")
            samples = recorded_samples((record.trajectory for record in records), min_score=config.min_score)
            filtered = f"with split train and a score of at least {config.min_score:g}"
        else:
            renderer = ChatMLRenderer(load_tokenizer(config.model))
            samples = [
                conversation_sample(read_messages(row, number), renderer, name=f"row {number}")
                for number, row in enumerate(load_rows(config.data, path, config.split))
            ]
            filtered = "at all"
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"data = {config.data!r}: {error}") from error
    samples = samples[: config.max_samples]
    if not samples:
        raise ConfigError(f"data = {config.data!r}: no sample {filtered}; lower --min-score or give others")
    longest = max(samples, key=lambda sample: len(sample.token_ids))
    if len(longest.token_ids) > config.context_length:
        raise ConfigError(
            f"data = {config.data!r}: {longest.trajectory_id} has {len(longest.token_ids)} tokens, more than "
            f"context_length = {config.context_length}; raise it, or leave such rows out"
        )
    return samples


def load_rows(data: str, path: Path, split: str) -> Any:
    """Rows of a local file or of a data set of the hub, which must have the column `messages`."""
    from datasets import load_dataset  # seconds to import, and recorded trajectories never need it

    kinds = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
    if path.is_file():
        if path.suffix not in kinds:
            raise ValueError(f"a {path.suffix or 'nameless'} file; expected one of {', '.join(kinds)}")
        rows = load_dataset(kinds[path.suffix], data_files=str(path), split="train")
    elif path.exists() or path.suffix in kinds:
        raise ValueError("no such file; expected a file of conversations or a data set's hub id")
    else:
        rows = load_dataset(data, split=split)
    if "messages" not in rows.column_names:
        raise ValueError(
            f"its columns are {', '.join(rows.column_names)}; expected `messages`: a list of "
            '{"role": ..., "content": ...} a row'
        )
    return rows


def read_messages(row: Mapping[str, Any], number: int) -> list[Message]:
    """One row's conversation. Raises ValueError for an unknown role or a content that is no text."""
    messages = []
    for place, entry in enumerate(row["messages"]):
        role, content = entry.get("role"), entry.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(
                f"row {number}, message {place}: role {role!r}, content of type {type(content).__name__}; "
                f"expected one of {', '.join(ROLES)} with a text"
            )
        messages.append(message(role, content))
    return messages


def main() -> int:
    config = parse(CONFIG, description=__doc__ or "")
    try:
        if not config.data:
            load_samples(config)  # says what is missing before a starting policy is made
        config = replace(config, model=config.model or str(calc_grpo.starting_policy(config)))
        samples = load_samples(config)
    except REFUSALS as error:
        return refuse(error)
    step = SupervisedStep(samples, batch_size=config.num_trajectories, seed=config.seed)
    method = Method(take_step=step, skip=step.skip)
    return launch(config, recipe="sft", make_base=calc_grpo.starting_policy, method=method)


if __name__ == "__main__":
    sys.exit(main())
