"""Learning from a teacher: on the student's own samples, by token or by whole distributions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rl.algorithms import get_algorithm
from rl.batch import TrainBatch, make_batch
from rl.distributions import generalized_jsd, generalized_jsd_of_states
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.metrics import mean_metrics
from rl.numerics import metric_values
from rl.policy_gradient import PolicyGradient
from tests.tiny import load, make_group, make_tiny_model, reference_logprobs

PROMPTS = ([5, 6], [7, 8, 9])


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("student"), tied=True, num_layers=1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("teacher"), tied=False, seed=1)


def learner(student: Path, teacher: Path, row: PolicyGradient, **fields: float) -> Learner:
    given = {"learning_rate": 1e-3, "num_updates": 100, **fields}
    return Learner(LearnerSpec(model=str(student), teacher=str(teacher), algorithm=row, **given))


def sampled_batch(own: Learner, size: int, seed: int) -> TrainBatch:
    """First tokens after each prompt, drawn from the student itself."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for index, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            logprobs = own.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        drawn = torch.multinomial(logprobs.exp(), size, replacement=True, generator=generator).tolist()
        group = make_group(index, [([prompt, [token]], 0.0) for token in drawn], model=own.model)
        groups.append(group)
    return make_batch(groups)


def distance(own: Learner, teacher: Path) -> float:
    """KL(student || teacher) of the first token, mean over the prompts, from its definition."""
    guide = load(teacher)
    kls = []
    with torch.no_grad():
        for prompt in PROMPTS:
            s, t = (m(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for m in (own.model, guide))
            kls.append(float((s.exp() * (s - t)).sum()))
    return float(np.mean(kls))


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("opd", {}),
        ("jsd", {}),
        pytest.param("jsd", {"jsd_beta": 0.0}, marks=pytest.mark.slow),
        pytest.param("jsd", {"jsd_beta": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_the_student_comes_to_its_teacher_on_its_own_samples(student, teacher, name, knobs):
    row = get_algorithm(name, **knobs)
    own = learner(student, teacher, row)
    before = distance(own, teacher)
    for step in range(40):
        batch = row.assign_advantages(own.score(sampled_batch(own, 64, step), row.needs))
        own.update(batch)
    assert distance(own, teacher) < 0.5 * before


def test_an_advantage_is_the_teachers_log_prob_less_the_students(student, teacher):
    row = get_algorithm("opd", opd_kl_coef=2.0)
    own = learner(student, teacher, row)
    batch = row.assign_advantages(own.score(sampled_batch(own, 4, 0), row.needs))
    guide, pupil = load(teacher), load(student)
    for sample, advantages in zip(batch.samples, batch.advantages, strict=True):
        ids = sample.token_ids.tolist()
        gap = reference_logprobs(guide, ids)[-1] - reference_logprobs(pupil, ids)[-1]
        assert advantages[-1] == pytest.approx(2.0 * gap, abs=1e-5)
        assert not advantages[:-1].any()  # the prompt


def test_a_teacher_that_is_the_student_teaches_nothing(student):
    for name in ("opd", "jsd"):
        row = get_algorithm(name)
        own = learner(student, student, row)
        batch = row.assign_advantages(own.score(sampled_batch(own, 8, 0), row.needs))
        values = metric_values(own.update(batch))
        assert values["distill/teacher_kl_k1"] == pytest.approx(0.0, abs=1e-6)
        assert values["optim/grad_norm"] == pytest.approx(0.0, abs=1e-5)


def test_another_teacher_gives_another_gradient(student, teacher):
    # As a loss, mean(log pi - log pi_teacher), the teacher would drop out of it.
    row = get_algorithm("opd")
    norms = []
    for guide in (teacher, student):
        own = learner(student, guide, row)
        batch = row.assign_advantages(own.score(sampled_batch(own, 8, 0), row.needs))
        norms.append(mean_metrics([own.update(batch)])["optim/grad_norm"])
    assert norms[0] > 0.1
    assert norms[1] < 1e-5


@pytest.mark.parametrize("name", ["opd", "jsd"])
def test_micro_batches_do_not_change_the_update(student, teacher, name):
    row = get_algorithm(name)
    updated = []
    for size in (32, 3):
        own = learner(student, teacher, row, micro_batch_size=size)
        batch = row.assign_advantages(own.score(sampled_batch(own, 8, 0), row.needs))
        sums = own.update(batch)
        updated.append((metric_values(sums), own.model.lm_head.weight.detach().clone()))
    (values, weights), (split_values, split_weights) = updated
    assert split_values == pytest.approx(values, rel=1e-4, abs=1e-6)
    # Adam's first step is the gradient's sign: entries that are 0 to rounding may go either way.
    assert ((weights - split_weights).abs() < 1e-4).float().mean() > 0.99


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_of_states_is_that_of_their_logits_in_value_and_gradient(beta):
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    states, head = made(7, 5).requires_grad_(), made(11, 5).requires_grad_()
    wide, wide_head = made(7, 8), made(11, 8)
    found = generalized_jsd_of_states(
        (states, head), (wide, wide_head), beta=beta, temperature=0.7, chunk_size=3
    )
    expected = generalized_jsd(states @ head.T, wide @ wide_head.T, beta=beta, temperature=0.7)
    torch.testing.assert_close(found, expected)
    for tensor in (states, head):
        (one,) = torch.autograd.grad(found.sum(), tensor, retain_graph=True)
        (other,) = torch.autograd.grad(expected.sum(), tensor, retain_graph=True)
        torch.testing.assert_close(one, other)


def test_a_row_without_its_teacher_says_what_is_missing(student, teacher):
    row = get_algorithm("opd")
    own = learner(student, teacher, row)
    batch = own.score(sampled_batch(own, 2, 0), frozenset({"old_logprobs"}))
    with pytest.raises(ValueError, match="needs teacher_logprobs, which the batch lacks"):
        row.assign_advantages(batch)
    with pytest.raises(ValueError, match="a teacher takes the reward's place"):
        get_algorithm("opd", kl_coef=0.1)
    with pytest.raises(ValueError, match="expected 0"):
        replace(get_algorithm("jsd"), jsd_beta=1.5)
