import pytest

from envs.splits import Split, is_held_out, split_of, task_seed


def test_every_seed_tells_its_split_and_fits_63_bits():
    for split in Split:
        for index in range(500):
            seed = task_seed(split, 7, index)
            assert 0 <= seed < 2**63
            assert split_of(seed) is split


def test_seeds_of_runs_splits_and_indices_never_meet():
    seeds = {task_seed(split, run, index) for split in Split for run in range(20) for index in range(200)}
    assert len(seeds) == 3 * 20 * 200


def test_the_seed_of_a_task_never_changes():
    # `printf 0/0 | b2sum -l 64` is 2bc42e553a894a51; its low 61 bits, and the split's number above them.
    low_bits = 0xBC42E553A894A51
    assert task_seed(Split.TRAIN, 0, 0) == low_bits
    assert task_seed(Split.HELD_OUT, 0, 0) == low_bits + (2 << 61)


@pytest.mark.parametrize("seed", [-1, 3 << 61, 1 << 63])
def test_a_seed_outside_the_three_spaces_is_refused(seed):
    with pytest.raises(ValueError, match=f"task seed {seed} is in no split"):
        split_of(seed)


def test_a_fifth_of_all_contents_is_held_out_and_it_never_changes():
    # 5000 contents, a fifth is 1000, sd 28. `printf 1 | b2sum -l 64` is f6fc42039fba3776: as 16 is 1 mod 5,
    # it is 0 mod 5 when its digits' sum is, which is 125.
    assert 900 < sum(is_held_out(str(number)) for number in range(5000)) < 1100
    assert [number for number in range(20) if is_held_out(str(number))] == [1, 2, 7]
