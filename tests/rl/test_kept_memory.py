"""A CPU learner's memory stays its own: an update touches no page for the first time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from rl.workers import LEARNER_ENVIRONMENT
from scripts.benching.made_model import write_model

NUM_UPDATES = 6
NUM_WARM = 4
"""Of them, the last, which are counted."""

SCRIPT = """
import json, resource, sys
import torch
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.rows import GRPO
from dataclasses import replace
from scripts.benching.train_batches import to_train_batch
from scripts.benching.workload import Case, make_batch

torch.set_num_threads(1)
row = replace(GRPO, kl_loss_coef=0.0)
learner = Learner(LearnerSpec(model=sys.argv[1], algorithm=row, learning_rate=1e-5, num_updates=100))
case = Case(name="few", prompt_len=16, completion_len=16, num_prompts=2, group_size=4)
counts = []
for step in range(int(sys.argv[2])):
    batch = learner.score(to_train_batch(make_batch(case, step)), row.needs)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    learner.update(batch)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps(counts))
"""


def faults(model: Path, settings: Mapping[str, str]) -> list[int]:
    """Page faults of each warm update of five million parameters, in a process with `settings`."""
    environment = {name: value for name, value in os.environ.items() if name not in LEARNER_ENVIRONMENT}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **settings}
    command = [sys.executable, "-c", SCRIPT, str(model), str(NUM_UPDATES)]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=240)
    return json.loads(told.stdout.splitlines()[-1])[-NUM_WARM:]


@pytest.mark.slow
def test_warm_updates_of_a_cpu_learner_touch_no_new_memory(tmp_path: Path):
    """Gradients are freed and made again, but of pages that the process still has."""
    model = write_model(tmp_path / "model", max_length=64)
    kept = sorted(faults(model, LEARNER_ENVIRONMENT))
    given_back = sorted(faults(model, {}))
    assert kept[NUM_WARM // 2] <= 100
    assert given_back[NUM_WARM // 2] >= 2000
