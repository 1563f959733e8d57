"""Log-probs that the engine does not give are an error, at the first place that can see it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rl.batch import make_batch
from rl.gates import GateError, StepGates, _require, gap_of
from tests.made_trajectories import completion, group, trajectory


def test_a_completion_without_a_log_prob_for_every_token_is_refused():
    for logprobs in ([], [-0.5]):
        with pytest.raises(ValueError, match=f"has {len(logprobs)} entries for 2 token_ids; expected the"):
            completion([10, 11], logprobs=logprobs)


def test_the_probe_refuses_log_probs_that_are_not_numbers():
    batch = make_batch([group(trajectory("a"), trajectory("b"))])
    scored = replace(batch, old_logprobs=tuple(np.full(len(s.token_ids), -0.5) for s in batch.samples))
    _require(gap_of(scored), 1e-4, "before any sync", "cause")
    missing = replace(batch.samples[0], rollout_logprobs=np.full(4, np.nan, np.float32))
    with pytest.raises(GateError, match="before any sync is nan"):
        _require(gap_of(replace(scored, samples=(missing, *batch.samples[1:]))), 1e-4, "before any sync", "c")


def test_a_step_stops_when_more_than_a_few_log_probs_are_missing():
    gates = StepGates(gap_limit=1e-4)
    gates.check(2, {"gap/missing_logprob_frac": 0.01})
    with pytest.raises(GateError, match=r"step 3: 100.0% of the trained tokens have no finite log-prob"):
        gates.check(3, {"gap/missing_logprob_frac": 1.0})  # no gap at all can be measured then
