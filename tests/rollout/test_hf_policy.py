"""The transformers policy: samples do not depend on the batch, and log-probs are the model's."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from envs.policy import SamplingParams
from rollout.hf_policy import TransformersPolicy
from tests.tiny import VOCAB_SIZE, load, make_tiny_model, reference_logprobs

PROMPTS = [tuple(range(3, 3 + length)) for length in (1, 4, 9, 30)]


def make_absolute_positions_model():
    """GPT-2: unlike rotary ones, its positions are seen by every token and not only their differences."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB_SIZE, n_embd=64, n_layer=2, n_head=2, n_positions=64)
    ).eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(make_tiny_model(tmp_path_factory.mktemp("tiny"), tied=False))


@pytest.fixture(params=["rotary", "absolute"])
def any_model(request, model):
    return model if request.param == "rotary" else make_absolute_positions_model()


async def complete_all(model, samplings, prompts=PROMPTS):
    policy = TransformersPolicy(model, version=3)
    return await asyncio.gather(*(policy.complete(p, s) for p, s in zip(prompts, samplings, strict=True)))


def samplings(max_tokens=(12, 3, 20, 7), **kwargs):
    return [
        SamplingParams(max_tokens=count, seed=100 + index, **kwargs) for index, count in enumerate(max_tokens)
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_in_a_padded_batch_are_those_of_an_unpadded_forward(any_model, temperature):
    model = any_model
    completions = await complete_all(model, samplings(temperature=temperature))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = [*prompt, *completion.token_ids]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1] / temperature
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[
            len(prompt) - 1 :, 0
        ]
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-5)
    assert [len(c.token_ids) for c in completions] == [12, 3, 20, 7]
    assert {c.finish_reason for c in completions} == {"length"}
    assert completions[0].version_spans[0].version == 3


async def test_sample_does_not_depend_on_what_shares_the_batch(model):
    together = await complete_all(model, samplings())
    for prompt, sampling, batched in zip(PROMPTS, samplings(), together, strict=True):
        (alone,) = await complete_all(model, [sampling], [prompt])
        assert alone.token_ids == batched.token_ids


async def test_requests_of_one_tick_are_one_batch(model, monkeypatch):
    policy = TransformersPolicy(model)
    sizes = []
    generate = policy._generate
    monkeypatch.setattr(policy, "_generate", lambda batch: sizes.append(len(batch)) or generate(batch))
    await asyncio.gather(*(policy.complete(p, s) for p, s in zip(PROMPTS, samplings(), strict=True)))
    await policy.complete(PROMPTS[0], samplings()[0])
    assert sizes == [4, 1]


async def test_row_ends_at_its_own_stop_token_which_is_kept(model):
    (free,) = await complete_all(model, [SamplingParams(max_tokens=30, seed=1)], PROMPTS[1:2])
    stop = free.token_ids[4]
    end = free.token_ids.index(stop) + 1
    stopping = SamplingParams(max_tokens=30, seed=1, stop_token_ids=(stop,))
    stopped, other = await complete_all(
        model, [stopping, SamplingParams(max_tokens=30, seed=2)], PROMPTS[1:3]
    )
    assert (stopped.token_ids, stopped.finish_reason) == (free.token_ids[:end], "stop")
    assert (len(other.token_ids), other.finish_reason) == (30, "length")


async def test_temperature_zero_takes_the_likeliest_token_and_reports_the_models_logprob(model):
    (completion,) = await complete_all(model, [SamplingParams(max_tokens=6, temperature=0.0)], PROMPTS[2:3])
    ids = [*PROMPTS[2], *completion.token_ids]
    with torch.no_grad():
        likeliest = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    assert list(completion.token_ids) == likeliest[len(PROMPTS[2]) - 1 : -1]
    np.testing.assert_allclose(
        completion.logprobs, reference_logprobs(model, ids)[len(PROMPTS[2]) - 1 :], atol=1e-5
    )


async def test_samples_follow_the_models_distribution(model):
    num_samples = 4000
    requests = [SamplingParams(max_tokens=1, temperature=0.3, seed=seed) for seed in range(num_samples)]
    completions = await complete_all(model, requests, [PROMPTS[1]] * num_samples)
    counts = np.bincount([c.token_ids[0] for c in completions], minlength=VOCAB_SIZE)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[1]])).logits[0, -1] / 0.3
    expected = torch.softmax(logits, -1).double().numpy() * num_samples
    # chi-squared with 102 degrees of freedom has mean 102 and standard deviation sqrt(204) = 14.3
    assert ((counts - expected) ** 2 / expected).sum() < 102 + 5 * 14.3


async def test_request_whose_caller_gave_up_does_not_disturb_the_others(model):
    policy = TransformersPolicy(model)
    given_up = asyncio.create_task(policy.complete(PROMPTS[0], samplings()[0]))
    kept = asyncio.create_task(policy.complete(PROMPTS[1], samplings()[1]))
    await asyncio.sleep(0)
    given_up.cancel()
    assert len((await kept).token_ids) == 3


async def test_failure_of_the_model_reaches_every_caller_and_the_next_request_is_served(model):
    policy = TransformersPolicy(model)
    bad = policy.complete((VOCAB_SIZE + 5,), samplings()[0])
    good = policy.complete(PROMPTS[0], samplings()[0])
    results = await asyncio.gather(bad, good, return_exceptions=True)
    assert all(isinstance(result, IndexError) for result in results)
    assert len((await policy.complete(PROMPTS[0], samplings()[0])).token_ids) == 12


async def test_empty_prompt_is_refused(model):
    with pytest.raises(ValueError, match="empty prompt"):
        await TransformersPolicy(model).complete((), samplings()[0])
