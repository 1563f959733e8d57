"""Both sides of the bench get the same work: a pure function of the case and the step."""

from dataclasses import replace

import numpy as np
import pytest

from rl.transport import pack
from scripts.benching.fitting import exponent, product_term, slope
from scripts.benching.learner import problem
from scripts.benching.train_batches import by_turns, to_train_batch
from scripts.benching.workload import (
    EOS_ID,
    FIRST_WORD,
    FIXED,
    RAGGED,
    VOCAB_SIZE,
    Batch,
    Case,
    least_flops,
    lengths,
    make_batch,
)


def test_lengths_depend_on_the_case_and_the_step_alone():
    assert lengths(FIXED, 3) == ([128] * 4, [64] * 32)
    assert lengths(RAGGED, 3) == lengths(RAGGED, 3)
    assert lengths(RAGGED, 3) != lengths(RAGGED, 4)
    assert lengths(RAGGED, 3) != lengths(replace(RAGGED, seed=1), 3)


@pytest.mark.parametrize("step", range(5))
def test_ragged_lengths_stay_within_their_bounds_and_one_is_the_longest(step):
    prompts, completions = lengths(RAGGED, step)
    assert all(128 <= length <= 384 for length in prompts)
    assert all(4 <= length <= 256 for length in completions)
    assert max(completions) == 256
    assert np.mean(completions) < 128  # a long tail: the median is a fifth of the longest


def test_a_batch_is_words_and_each_completion_ends_once(tmp_path):
    batch = make_batch(RAGGED, 1)
    assert ([*map(len, batch.prompts)], [*map(len, batch.completions)]) == lengths(RAGGED, 1)
    words = [token for ids in batch.prompts for token in ids]
    words += [token for ids in batch.completions for token in ids[:-1]]
    assert all(FIRST_WORD <= token < VOCAB_SIZE for token in words)
    assert {ids[-1] for ids in batch.completions} == {EOS_ID}
    assert Batch.load(batch.save(tmp_path / "batch.json")) == batch


def test_unique_tokens_are_the_nodes_of_the_trie():
    # 5 6 of the prompt, 7 shared by both completions, then 8 and 9 8: six nodes of nine tokens
    batch = Batch(prompts=[[5, 6]], completions=[[7, 8], [7, 9, 8]], rewards=[0.0, 1.0])
    assert batch.num_unique == 6
    # A prompt of another group is another, equal as it may be to a node of the first: 10 5 are two more.
    two = Batch(prompts=[[5, 6], [10]], completions=[[7], [5]], rewards=[0.0, 1.0])
    assert two.num_unique == 5


def test_the_least_work_is_three_products_with_layers_and_head():
    # Layers: 4 (2 * 256 (256 + 128) + 3 * 256 * 688) = 2,899,968 weights for 2,560 tokens, 128 * 4 + 64 * 32;
    # head: 8,192 * 256 for the 2,048 that are trained.
    assert least_flops(make_batch(FIXED)) == 6 * (2_899_968 * 2_560 + 8_192 * 256 * 2_048)


def test_the_learner_gets_the_same_tokens():
    case = Case(name="small", prompt_len=3, completion_len=4, num_prompts=2, group_size=2)
    batch = make_batch(case)
    trained = to_train_batch(batch)
    for sample, (prompt, completion) in zip(trained.samples, batch.pairs, strict=True):
        assert sample.token_ids.tolist() == [*prompt, *completion]
        assert sample.loss_mask.tolist() == [0] * 3 + [1] * 4
    assert trained.group_ids.tolist() == [0, 0, 1, 1]
    assert trained.counts.num_tokens == batch.num_trained
    assert pack(trained).shared.tolist() == [0, 3, 0, 3]


def test_turns_train_every_token_once():
    case = Case(name="small", prompt_len=3, completion_len=4, num_prompts=1, group_size=2)
    whole = to_train_batch(make_batch(case))
    parts = by_turns(whole, 2)
    assert [len(sample.token_ids) for sample in parts.samples] == [5, 7, 5, 7]
    assert parts.counts.num_tokens == whole.counts.num_tokens


def test_exponents_and_products_are_found_in_points_that_have_them():
    x = [1.0, 2.0, 4.0, 8.0]
    assert exponent(x, [3 * value**1.5 for value in x]) == pytest.approx(1.5)
    assert exponent(x, [7.0] * 4) == pytest.approx(0.0)
    assert slope(x, [5 + 2 * value for value in x]) == pytest.approx(2.0)
    tokens, sizes = [512, 1024, 512, 1024, 2048], [8192, 8192, 151_936, 151_936, 8192]
    memory = [9 + 3e-3 * n + 2e-3 * v + 4e-6 * n * v for n, v in zip(tokens, sizes, strict=True)]
    assert product_term(tokens, sizes, memory) == pytest.approx(4e-6)
    with pytest.raises(ValueError, match="expected values above 0"):
        exponent([1, 2], [0, 1])


def test_a_failed_gate_says_what_is_off():
    right = {"max_dlogp": 2e-6, "cosine": 1 - 1e-9}
    assert problem({"trie": right, "TRL": {"max_dlogp": 2e-6}}) == ""
    assert "log-probs of trie" in problem({"trie": right | {"max_dlogp": 2e-5}})
    assert "gradient of trie" in problem({"trie": right | {"cosine": 1 - 2e-6}})
    assert "log-probs of trie" in problem({"trie": right | {"max_dlogp": float("nan")}})
