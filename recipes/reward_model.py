"""Train a Bradley-Terry reward model on the preferences that a run's scored trajectories express.

    python -m recipes.reward_model --data runs/NAME/trajectories.jsonl --model FOLDER --out reward_model
    python -m recipes.calc_grpo --reward reward_model:reward_model      # and learn from it

Of each recorded group the better members are paired with the worse ones (rl/pairs.py). A fifth of the
groups is held out; the share of their pairs that the model orders rightly is printed with its 95 %
interval. The body starts from --model, the head from 0.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import tyro
from transformers import AutoModelForSequenceClassification

from recipes import calc_grpo
from rewards.reward_model import transcript_ids
from rl.config import Config
from rl.durable import atomic_folder, atomic_write_json
from rl.intervals import SuccessRate
from rl.pairs import pairs_of
from rl.preferences import bradley_terry_loss
from rollout.record import read_records
from rollout.tokenizer import load_tokenizer

Pair = tuple[list[int], list[int]]
"""The ids of the chosen transcript and of the rejected one."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the reward model is made from."""

    data: str = ""
    """trajectories.jsonl of a run."""
    model: str = ""
    """Folder or hub id of the model whose body it starts from; empty: the policy of recipes/calc_grpo.py."""
    out: str = "runs/reward_model"
    """Folder of the reward model; new."""
    seed: int = 0
    """Seed of the order in which pairs are learned."""
    num_steps: int = 200
    """Optimizer steps."""
    batch_size: int = 32
    """Pairs an optimizer step."""
    learning_rate: float = 3e-4
    """AdamW's learning rate, falling linearly to 0."""
    max_pairs_per_group: int = 4
    """Most pairs of one recorded group."""


class DataError(ValueError):
    """Data that no preference can be learned from; the message says what to do."""


def recorded_pairs(path: Path, tokenizer: Any, *, most: int) -> Iterator[list[Pair]]:
    """The pairs of each recorded group of training trajectories, as ids."""
    records = (record for record in read_records(path) if record.split == "train")
    for _, members in groupby(records, key=lambda record: (record.step, record.group)):
        scored = [r.trajectory for r in members if r.trajectory.score.value is not None]
        ids = [transcript_ids(t.episode.transcript, tokenizer) for t in scored]
        rewards = [float(t.score.value or 0.0) for t in scored]
        yield [(ids[better], ids[worse]) for better, worse in pairs_of(rewards, most)]


def split_groups(groups: Sequence[list[Pair]]) -> tuple[list[Pair], list[Pair]]:
    """Every fifth group is held out: no task is on both sides."""
    held_out = [pair for group in groups[::5] for pair in group]
    rest = [pair for index, group in enumerate(groups) if index % 5 for pair in group]
    return rest, held_out


def scores(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rewards (B,) of transcripts, padded on the right."""
    width = max(map(len, rows))
    pad = model.config.pad_token_id
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, 0]


def train_reward_model(model: Any, pairs: Sequence[Pair], options: Options) -> None:
    """`num_steps` updates on -log σ(r_chosen - r_rejected); the order is a function of the seed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, options.num_steps)
    rng = random.Random(options.seed)
    for step in range(options.num_steps):
        batch = rng.sample(pairs, min(options.batch_size, len(pairs)))
        chosen, rejected = scores(model, [row for pair in zip(*batch, strict=True) for row in pair]).chunk(2)
        loss = bradley_terry_loss(chosen, rejected)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}", file=sys.stderr)


@torch.no_grad()
def accuracy(model: Any, pairs: Sequence[Pair]) -> SuccessRate:
    """How many pairs are ordered rightly."""
    right = 0
    for start in range(0, len(pairs), 64):
        part = pairs[start : start + 64]
        chosen, rejected = scores(model, [row for pair in zip(*part, strict=True) for row in pair]).chunk(2)
        right += int((chosen > rejected).sum())
    return SuccessRate(right, len(pairs))


def make_reward_model(options: Options) -> SuccessRate:
    """Train, measure on held-out groups and save; returns the accuracy there.

    Raises:
        DataError: no readable record, no pair to learn from or to measure on.
        FileExistsError: `out` is there already.
    """
    path = Path(options.data).expanduser()
    if not options.data or not path.is_file():
        raise DataError(f"--data {options.data!r}: no such file; expected the trajectories.jsonl of a run")
    if Path(options.out).exists():
        raise FileExistsError(f"{options.out} exists; give another --out")
    source = options.model or str(calc_grpo.starting_policy(Config(env="calc", seed=options.seed)))
    tokenizer = load_tokenizer(source)
    groups = list(recorded_pairs(path, tokenizer, most=options.max_pairs_per_group))
    train, held_out = split_groups([group for group in groups if group])
    if not train or not held_out:
        raise DataError(
            f"--data {options.data}: {len(groups)} groups give {len(train)} pairs to learn from and "
            f"{len(held_out)} held out; expected groups whose members have different scores"
        )
    torch.manual_seed(options.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=1, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    )
    torch.nn.init.zeros_(model.score.weight)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.config.pad_token_id = tokenizer.pad_token_id
    train_reward_model(model.train(), train, options)
    measured = accuracy(model.eval(), held_out)
    with atomic_folder(options.out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        atomic_write_json(
            temporary / "reward_model.json",
            {
                "data": str(path),
                "pairs": len(train),
                "held_out_pairs": len(held_out),
                "accuracy": measured.rate,
            },
        )
    return measured


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    # deepspeed looks for a GPU when transformers loads a model, and complains of none.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    try:
        measured = make_reward_model(options)
    except (DataError, FileExistsError, ValueError) as error:
        print(f"No reward model was made: {error}", file=sys.stderr)
        return 2
    print(f"accuracy on held-out pairs  {measured}")
    print(f"written to {options.out}; use it with --reward reward_model:{options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
