"""What a run writes and says of its steps."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from rl.algorithms import get_algorithm
from rl.batch import TrainBatch, make_batch
from rl.config import Config
from rl.console import RunConsole
from rl.journal import Journal, by_turn
from rl.run_dir import RunDir
from rollout.record import read_records
from rollout.trajectory import Turn
from tests.tiny import make_group


def test_large_rewards_are_warned_of_once(tmp_path: Path) -> None:
    said = io.StringIO()
    with RunDir(tmp_path / "run") as directory, RunConsole(4, file=said) as console:
        journal = Journal(directory, Config(), console, decode=lambda ids: "")
        for step, largest in enumerate((20.0, 30.0, 40.0), start=1):
            journal.step(step, {"rollout/reward_abs_max": largest})
    warnings = [line for line in said.getvalue().splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert warnings[0].startswith("WARNING: step 2: a reward of size 30, above 20; none is clipped")


def test_every_turns_log_probs_are_recorded_whichever_sample_trained_it() -> None:
    plain = make_group(0, [([[5, 6], [7, 8], [9], [7]], 1.0), ([[5], [7]], 0.0)])
    first = plain.trajectories[0]
    fork = Turn(parent=0, context_ids=(3,), completion=first.turns[1].completion)
    forked = replace(first, turns=(*first.turns, fork))
    groups = [replace(plain, trajectories=(forked, plain.trajectories[1]))]
    whole = make_batch(groups)
    old = tuple(np.arange(len(s.token_ids), dtype=np.float32) for s in whole.samples)
    # P P A A E A | P P A A E A (the fork, whose first answer is the other's) | P A
    expected = {"0-0": ((2.0, 3.0), (5.0,), (5.0,)), "0-1": ((1.0,),)}

    def numbers(batch: TrainBatch) -> dict[str, tuple[tuple[float, ...], ...]]:
        return dict(by_turn(groups, batch.samples, batch.old_logprobs))

    whole = replace(whole, old_logprobs=old)
    assert numbers(whole) == numbers(whole.by_turn()) == expected
    assert "0-0" not in numbers(whole.drop(np.array([True, False]), reason="x"))


def test_the_advantages_that_a_step_trained_with_are_recorded(tmp_path: Path) -> None:
    # Rewards 1 and 0: mean 1/2, so Dr. GRPO gives ±1/2. The second group is uniform: dropped, not trained on.
    groups = [make_group(i, [([[5, 6], [7, 8], [9], [7]], 1.0), ([[5], [7]], float(i))]) for i in range(2)]
    batch = get_algorithm("dr_grpo", drop_uniform_groups=True).assign_advantages(make_batch(groups))
    # What stands at a token that is not trained is nobody's advantage, whatever it is.
    assert batch.advantages is not None
    hidden = tuple(
        np.where(s.loss_mask, a, np.nan) for s, a in zip(batch.samples, batch.advantages, strict=True)
    )
    for name, weights in (("run", batch.advantages), ("hidden", hidden), ("pairs", None)):
        with RunDir(tmp_path / name) as directory, RunConsole(4, file=io.StringIO()) as console:
            Journal(directory, Config(), console, decode=lambda ids: "").observe(
                groups, replace(batch, advantages=weights)
            )
        recorded = [record.advantages for record in read_records(tmp_path / name / "trajectories.jsonl")]
        known = [((0.5, 0.5), (0.5,)), ((-0.5,),)] if weights is not None else [None, None]
        assert recorded == [*known, None, None]
