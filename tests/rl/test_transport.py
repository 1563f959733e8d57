"""Batches cross to the learner exactly, in few bytes a token."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle

from rl.accounting import Accounting
from rl.batch import TOKEN_ARRAYS, TrainBatch
from rl.pairs import PairBatch
from rl.samples import TrainSample
from rl.transport import Runs, crossing, pack, unpack
from rl.turns import TurnFacts
from scripts.benching.crossing import bytes_of, trajectories


def same(a, b) -> bool:
    """Whether two fields are equal, arrays bit for bit and of one dtype and shape."""
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and (a.dtype, a.shape) == (b.dtype, b.shape)
            and a.tobytes() == b.tobytes()
        )
    if isinstance(a, TrainBatch | TrainSample | TurnFacts | Accounting):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in fields(type(a))
        )
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[name]) for name, value in a.items())
    return type(a) is type(b) and a == b


def made_sample(
    rng: np.random.Generator, prompt: np.ndarray, name: str, group: int, **options
) -> TrainSample:
    length = len(prompt) + int(rng.integers(0, 9))
    ids = np.concatenate([prompt, rng.integers(0, options["vocab"], length - len(prompt))]).astype(np.int64)
    mask = np.arange(length) >= max(1, len(prompt))
    mask &= rng.random(length) < options["trained"]
    width = int(rng.integers(1, 4))
    kept = rng.integers(0, options["vocab"], (length, width)).astype(np.int32)
    kept[:, 0] = ids  # the sampled one is always among them
    return TrainSample(
        token_ids=ids,
        loss_mask=mask,
        rollout_logprobs=np.where(mask, -rng.random(length), np.nan).astype(np.float32),
        versions=np.where(mask, rng.integers(0, 3), -1),
        turn_ids=np.where(mask, np.sort(rng.integers(0, 3, length)), -1),
        trajectory_id=name,
        group_id=group,
        env=str(rng.choice(["calc", "grid"])),
        weight=float(rng.random()),
        answer=options["answer"],
        kept_ids=np.where(mask[:, None], kept, np.int32(-1)) if rng.random() < options["kept"] else None,
        routed_experts=rng.integers(-1, 5, (length, 2, 2)).astype(np.int16)
        if rng.random() < options["routed"]
        else None,
    )


def made_batch(
    seed: int, *, num_groups: int, group_size: int, filled: tuple[str, ...], **options
) -> TrainBatch:
    """Any batch: forks (two samples of a trajectory), groups with a common prompt, arrays of any values."""
    rng = np.random.default_rng(seed)
    samples, names, groups = [], [], []
    for group in range(num_groups):
        prompt = rng.integers(0, options["vocab"], int(rng.integers(0, 6)))
        for member in range(group_size):
            names.append(f"{group}-{member}")
            groups.append(group)
            for _ in range(int(rng.integers(0, 3))):  # none, one, or a fork
                samples.append(made_sample(rng, prompt, names[-1], group, **options))
    arrays = {
        name: tuple(
            rng.choice([0.0, -0.0, np.nan, 1.5], len(s.token_ids)).astype(np.float32) for s in samples
        )
        for name in filled
    }
    count = len(names)
    turns = tuple(
        TurnFacts(rewards=rng.random(k), states=rng.integers(-9, 9, k)) for k in rng.integers(0, 4, count)
    )
    return TrainBatch(
        samples=tuple(samples),
        trajectory_ids=tuple(names),
        group_ids=np.array(groups, np.int64),
        rewards=rng.random(count),
        lengths=rng.integers(0, 9, count),
        truncated=rng.random(count) < 0.5,
        accounting=Accounting(
            num_trajectories=count,
            num_sampled=0,
            num_trained=0,
            num_masked=0,
            dropped={},
            dropped_trajectories={},
        ),
        turns=turns if rng.random() < 0.5 else None,
        reward_parts={"answer": rng.random(count)},
        facts={"filters/kept": 1.0},
        **arrays,
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_groups=st.integers(0, 3),
    group_size=st.integers(1, 4),
    filled=st.lists(st.sampled_from(TOKEN_ARRAYS), unique=True).map(tuple),
    vocab=st.sampled_from([2, 1000, 2**40]),
    trained=st.sampled_from([0.0, 0.5, 1.0]),
    kept=st.sampled_from([0.0, 0.5, 1.0]),
    routed=st.sampled_from([0.0, 0.5, 1.0]),
    answer=st.sampled_from([None, "4"]),
)
def test_every_field_of_any_batch_comes_back_bit_for_bit(seed, vocab, kept, **options):
    kept = kept if vocab < 2**31 else 0.0  # kept_ids are int32
    batch = made_batch(seed, vocab=vocab, kept=kept, **options)
    assert same(unpack(pack(batch)), batch)
    assert same(cloudpickle.loads(cloudpickle.dumps(crossing(batch))), batch)


def test_a_field_that_differs_is_seen():
    options = {"vocab": 9, "trained": 1.0, "kept": 1.0, "routed": 1.0, "answer": "4"}
    batch = made_batch(1, num_groups=2, group_size=3, filled=("advantages",), **options)
    (first, *rest) = batch.samples
    changed = first.token_ids.copy()
    changed[-1] += 1
    assert not same(replace(batch, samples=(replace(first, weight=2.0), *rest)), batch)
    assert not same(replace(batch, samples=(replace(first, token_ids=changed, kept_ids=None), *rest)), batch)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_runs_are_taken_where_they_are_smaller(dtype):
    flat = np.array([7] * 50 + [8] * 50, dtype)
    assert Runs.of(flat).values.tolist() == [7, 8]
    assert Runs.of(np.arange(100, dtype=dtype)).lengths is None
    assert Runs.of(flat).whole().tobytes() == flat.tobytes()


def test_nine_bytes_a_token_reach_the_learner():
    # 1,024 tokens: 256 of a prompt that eight share, 768 sampled: 4 (32 + 768) + 4 * 768 + 1024 / 8 = 6,400,
    # 6.25 a token. What is not tokens may add a tenth.
    batch = trajectories(64)
    assert 6.25 <= bytes_of(crossing(batch)) / (64 * 1024) <= 6.25 * 1.1
    assert bytes_of(batch) / (64 * 1024) > 25  # as it lies in memory: 8 + 1 + 4 + 8 + 8


def test_other_kinds_of_batches_cross_as_they_are():
    pairs = PairBatch.__new__(PairBatch)
    assert crossing(pairs) is pairs
