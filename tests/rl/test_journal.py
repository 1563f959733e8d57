"""What a run writes and says of its steps."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from rl.batch import make_batch
from rl.config import Config
from rl.console import RunConsole
from rl.journal import Journal, old_logprobs_by_turn
from rl.run_dir import RunDir
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
    whole = replace(whole, old_logprobs=old)
    # P P A A E A | P P A A E A (the fork, whose first answer is the other's) | P A
    expected = {"0-0": ((2.0, 3.0), (5.0,), (5.0,)), "0-1": ((1.0,),)}
    assert dict(old_logprobs_by_turn(groups, whole)) == expected
    assert dict(old_logprobs_by_turn(groups, whole.by_turn())) == expected
    assert "0-0" not in dict(old_logprobs_by_turn(groups, whole.drop(np.array([True, False]), reason="x")))
