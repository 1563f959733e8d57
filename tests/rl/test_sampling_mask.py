"""Sampling-mask replay: the learner's log-probs are of what could be drawn, from completion to update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.policy import Completion, SamplingFilters, SamplingParams
from recipes.preference_config import PreferenceConfig
from rl.algorithms import get_algorithm
from rl.batch import TrainBatch, make_batch
from rl.config import Config
from rl.defaults import resolve
from rl.incidents import batch_arrays
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.logprobs import token_logprobs
from rl.machine import Machine
from rl.numerics import metric_values
from rl.samples import by_turn
from rl.supervised import recorded_samples
from rl.validation import ConfigError, validate
from rollout.trajectory import Turn
from tests.made_trajectories import completion, group, trajectory
from tests.tiny import load, make_tiny_model

LAPTOP = Machine(host="laptop", cores=2, memory_bytes=8 << 30, gpus=())
N, H, V, K = 11, 8, 13, 4


def spoken(*kept: tuple[int, ...]) -> Completion:
    """Tokens that are the first of what could be drawn at each place."""
    return replace(completion([ids[0] for ids in kept]), kept_ids=kept)


def filtered_head() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, head, targets and kept ids: 1 to K of them, in any order, the target among them."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64).requires_grad_()
    kept = torch.stack([torch.randperm(V, generator=generator)[:K] for _ in range(N)]).int()
    targets = kept[:, 0].long()
    kept[torch.arange(K) > torch.arange(N)[:, None] % K] = -1
    return hidden, weight, targets, kept


@pytest.mark.parametrize("chunk_size", [1, 8, 4096])
def test_log_probs_over_kept_ids_are_those_of_logits_masked_to_minus_infinity(chunk_size: int) -> None:
    hidden, weight, targets, kept = filtered_head()
    ours = token_logprobs(
        hidden,
        weight,
        targets,
        temperature=0.7,
        chunk_size=chunk_size,
        entropy_gradient=True,
        kept_ids=kept,
    )
    can_be_drawn = torch.zeros(N, V, dtype=torch.bool)
    for row, ids in enumerate(kept.tolist()):
        can_be_drawn[row, [token for token in ids if token >= 0]] = True
    logits = torch.where(can_be_drawn, hidden @ weight.T / 0.7, -torch.inf)
    logprobs = logits.log_softmax(-1)
    entropy = -torch.where(can_be_drawn, logprobs.exp() * logprobs, 0.0).nan_to_num().sum(-1)
    expected = (logprobs[torch.arange(N), targets], None, logits.logsumexp(-1))
    weights = torch.arange(1.0, N + 1, dtype=torch.float64)
    torch.testing.assert_close(ours[1], entropy)
    for values, definition in ((ours[0], expected[0]), (ours[2], expected[2])):
        torch.testing.assert_close(values, definition)
        gradients = (
            torch.autograd.grad((weights * x).sum(), (hidden, weight), retain_graph=True)
            for x in (values, definition)
        )
        torch.testing.assert_close(*gradients)


def test_gradients_over_kept_ids_pass_the_finite_difference_check_entropy_included() -> None:
    hidden, weight, targets, kept = filtered_head()

    def outputs(states: torch.Tensor, head: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return token_logprobs(states, head, targets, entropy_gradient=True, kept_ids=kept)

    assert torch.autograd.gradcheck(outputs, (hidden, weight))


def test_keeping_every_id_changes_nothing_and_a_target_outside_has_probability_zero() -> None:
    hidden, weight, targets, _ = filtered_head()
    everything = torch.arange(V, dtype=torch.int32).expand(N, V)
    whole = token_logprobs(hidden, weight, targets)
    torch.testing.assert_close(token_logprobs(hidden, weight, targets, kept_ids=everything), whole)
    others = ((targets + 1) % V)[:, None].int()
    assert token_logprobs(hidden, weight, targets, kept_ids=others)[0].isneginf().all()


def forked() -> TrainBatch:
    """Prompt 1 2, answer 10 11, tool reply 3, answer 12: three, one and two ids could be drawn."""
    turns = (
        Turn(parent=None, context_ids=(1, 2), completion=spoken((10, 7, 8), (11,))),
        Turn(parent=0, context_ids=(3,), completion=spoken((12, 9))),
    )
    return make_batch([group(trajectory(turns=turns))])


def test_kept_ids_stand_at_their_own_tokens_in_samples_turns_and_layouts() -> None:
    batch = forked()
    (sample,) = batch.samples
    nothing = [-1, -1, -1]
    assert sample.kept_ids is not None
    assert sample.kept_ids.dtype == np.int32
    #                     1 2               10          11           3        12
    assert sample.kept_ids.tolist() == [nothing, nothing, [10, 7, 8], [11, -1, -1], nothing, [12, 9, -1]]
    first, second = by_turn(sample)
    assert first.kept_ids is not None
    assert second.kept_ids is not None
    assert first.kept_ids.tolist() == [nothing, nothing, [10, 7, 8], [11, -1, -1]]
    assert second.kept_ids.tolist() == [nothing] * 5 + [[12, 9, -1]]
    rows = [[row] for row in range(len(batch.samples))]
    for whole in (batch, batch.keep(np.array([True])), *batch.micro_batches(rows), batch.by_turn()):
        kept = whole.padded().kept_ids
        assert kept is not None
        assert kept[-1, -1].tolist() == [12, 9, -1]
    assert batch_arrays(batch)["0/kept_ids"] is sample.kept_ids


def test_rows_of_different_width_are_padded_and_a_mixture_is_refused() -> None:
    narrow = trajectory("n", turns=(Turn(parent=None, context_ids=(1,), completion=spoken((5,))),))
    whole = trajectory("w", turns=(Turn(parent=None, context_ids=(1,), completion=completion([5])),))
    wide = forked().samples[0]
    layout = replace(forked(), samples=(wide, *make_batch([group(narrow)]).samples)).padded()
    assert layout.kept_ids is not None
    assert layout.kept_ids.shape == (2, 6, 3)
    assert layout.kept_ids[1].tolist() == [[-1] * 3, [5, -1, -1], *[[-1] * 3] * 4]
    assert make_batch([group(whole)]).padded().kept_ids is None
    with pytest.raises(ValueError, match="1 of 2 samples have kept_ids"):
        make_batch([group(narrow, whole)]).padded()
    turns = (*narrow.turns, replace(whole.turns[0], parent=0))
    with pytest.raises(ValueError, match="1 of 2 turns have kept_ids"):
        make_batch([group(trajectory(turns=turns))])


def test_a_token_that_could_not_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at 1 is \(7, 8\) for the sampled token 11"):
        replace(completion([10, 11]), kept_ids=((10,), (7, 8)))
    with pytest.raises(ValueError, match="1 entries for 2 token_ids"):
        replace(completion([10, 11]), kept_ids=((10,),))
    sample = forked().samples[0]
    assert sample.kept_ids is not None
    with pytest.raises(ValueError, match="token 2 is 10, which is not among its kept_ids"):
        replace(sample, kept_ids=np.where(sample.kept_ids == 10, 4, sample.kept_ids))
    with pytest.raises(ValueError, match=r"shape \(5, 3\); expected \(6, K\)"):
        replace(sample, kept_ids=sample.kept_ids[1:])
    with pytest.raises(ValueError, match="top_k = 0: expected 1 to 20"):
        SamplingFilters(top_p=0.9, return_kept=True)
    with pytest.raises(ValueError, match="temperature 0"):
        SamplingParams(max_tokens=1, temperature=0.0, filters=SamplingFilters(top_k=2, return_kept=True))


def test_imitation_of_recorded_tokens_is_of_the_whole_distribution() -> None:
    turns = (Turn(parent=None, context_ids=(1,), completion=spoken((5, 6))),)
    (sample,) = recorded_samples([trajectory(turns=turns)], min_score=0.5)
    assert sample.kept_ids is None


def drawn_from(folder: Path, top_k: int, *, replayed: bool) -> TrainBatch:
    """Four trajectories drawn from a model's `top_k` likeliest tokens, as an engine would draw them."""
    model, generator = load(folder), torch.Generator().manual_seed(0)
    members = []
    for member in range(4):
        prompt = [4 + member, 9, 17 + member]
        ids, logprobs, kept = list(prompt), [], []
        for _ in range(6 + member):
            with torch.no_grad():
                best = model(torch.tensor([ids])).logits[0, -1].float().topk(top_k)
            choice = int(torch.multinomial(best.values.softmax(-1), 1, generator=generator))
            logprobs.append(float(best.values.log_softmax(-1)[choice]))
            ids.append(int(best.indices[choice]))
            kept.append(tuple(best.indices.tolist()))
        said = replace(completion(ids[len(prompt) :], logprobs), kept_ids=tuple(kept) if replayed else None)
        turn = Turn(parent=None, context_ids=tuple(prompt), completion=said)
        members.append(trajectory(f"t{member}", reward=float(member % 2), turns=(turn,)))
    return make_batch([group(*members)])


@pytest.mark.parametrize("algorithm", ["grpo", "reinforce"])
def test_an_update_with_replay_starts_where_the_engine_sampled(tmp_path: Path, algorithm: str) -> None:
    folder = make_tiny_model(tmp_path / "model", tied=True)
    gaps = {}
    for replayed in (True, False):
        row = get_algorithm(algorithm)
        own = Learner(
            LearnerSpec(
                model=str(folder), algorithm=row, learning_rate=1e-3, num_updates=2, micro_batch_size=2
            )
        )
        batch = row.assign_advantages(own.score(drawn_from(folder, 5, replayed=replayed), row.needs))
        metrics = metric_values(own.update(batch))
        assert metrics["policy/first_ratio_error"] < 1e-5
        gaps[replayed] = metrics["gap/abs_max"]
        if replayed:
            assert metrics["policy/entropy"] <= np.log(5) + 1e-6
            assert metrics.get("policy/kl_ref_k3", 0.0) == pytest.approx(0.0, abs=1e-9)
    assert gaps[True] < 1e-5
    assert gaps[False] > 1  # 5 of 107 nearly equally likely tokens: log(107 / 5) = 3.1


def problem(**fields: object) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Config(replay_sampling_mask=True, **fields), LAPTOP)  # type: ignore[arg-type]
    return str(caught.value)


def test_replay_is_refused_where_it_cannot_be_or_means_nothing() -> None:
    assert "has no effect: every token can be drawn" in problem()
    assert "top_k = 0: the engine returns at most 20" in problem(top_p=0.9)
    assert "top_k = 21: the engine returns at most 20" in problem(top_k=21)
    for algorithm in ("jsd", "opd"):
        assert "what the teacher says" in problem(top_k=5, algorithm=algorithm)
    preferences = PreferenceConfig(algorithm="dpo", top_k=5, replay_sampling_mask=True)
    with pytest.raises(ConfigError, match="only a policy gradient"):
        validate(preferences, LAPTOP)
    assert "z_loss_coef = 0.1: log Z" in problem(top_k=5, z_loss_coef=0.1)


def test_with_replay_nothing_is_corrected_for_and_the_gap_limit_stays() -> None:
    config = Config(algorithm="reinforce", top_k=20, top_p=0.9, min_p=0.05, replay_sampling_mask=True)
    validate(config, LAPTOP)
    validate(Config(top_k=5, replay_sampling_mask=True), LAPTOP)  # with a reference: KL of filtered policies
    assert resolve(config, LAPTOP).gap_limit == resolve(Config(), LAPTOP).gap_limit == 1e-4
    assert config.filters.return_kept
    assert not Config(top_k=5).filters.return_kept
