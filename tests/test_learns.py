"""Every row of the table learns a toy: the arithmetic of a run, without engine or Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rl.algorithms import ALGORITHMS, get_algorithm
from rl.batch import make_batch
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from tests.tiny import make_group, make_tiny_model

PROMPTS = ([5, 6], [7, 8, 9])
WANTED = (40, 50)  # the rewarded first token after each prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True, num_layers=1)


@torch.no_grad()
def probabilities(learner: Learner) -> list[float]:
    """The probability of each prompt's rewarded token."""
    return [
        float(learner.model(torch.tensor([prompt])).logits[0, -1].softmax(-1)[wanted])
        for prompt, wanted in zip(PROMPTS, WANTED, strict=True)
    ]


@pytest.mark.parametrize("name", sorted(name for name, row in ALGORITHMS.items() if not row.uses_teacher))
def test_every_algorithm_learns_which_token_is_rewarded(folder: Path, name: str) -> None:
    row = get_algorithm(name)
    learner = Learner(LearnerSpec(model=str(folder), algorithm=row, learning_rate=6e-3, num_updates=30))
    running = row.start()
    generator = torch.Generator().manual_seed(0)
    assert max(probabilities(learner)) < 0.05
    for _ in range(30):
        groups = []
        for index, (prompt, wanted) in enumerate(zip(PROMPTS, WANTED, strict=True)):
            with torch.no_grad():
                logits = learner.model(torch.tensor([prompt])).logits[0, -1]
            drawn = torch.multinomial(logits.softmax(-1), 64, replacement=True, generator=generator).tolist()
            groups.append(make_group(index, [([prompt, [t]], float(t == wanted)) for t in drawn]))
        batch = running.assign_advantages(learner.score(make_batch(groups), row.needs))
        learner.update(batch)
    assert min(probabilities(learner)) > 0.5
