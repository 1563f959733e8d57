"""Log-probs that the engine does not give are an error, at the first place that can see it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rl.batch import make_batch
from rl.config import GAP_LIMITS
from rl.gates import RATIO_LIMITS, GateError, StepGates, _require, gap_of
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


def test_the_first_ratio_may_be_off_by_the_rounding_of_the_learners_dtype():
    for dtype, limit in RATIO_LIMITS.items():
        gates = StepGates(gap_limit=1.0, ratio_limit=limit)
        gates.check(1, {"policy/first_ratio_error": limit})
        gates.check(2, {"policy/first_ratio_error": 1.0})  # from then on an update has come before it
        with pytest.raises(GateError, match=r"step 1: .* the ratio of the policy to itself is off 1 by 1.01"):
            gates.check(1, {"policy/first_ratio_error": 1.01 * 10 ** np.ceil(np.log10(limit) + 1e-9)})
        assert dtype in GAP_LIMITS


def test_a_step_stops_when_more_than_a_few_log_probs_are_missing():
    gates = StepGates(gap_limit=1e-4)
    gates.check(2, {"gap/missing_logprob_frac": 0.01})
    with pytest.raises(GateError, match=r"step 3: 100.0% of the trained tokens have no finite log-prob"):
        gates.check(3, {"gap/missing_logprob_frac": 1.0})  # no gap at all can be measured then
