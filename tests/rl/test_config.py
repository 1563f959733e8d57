import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rl.algorithms import ALGORITHMS
from rl.config import Config
from rl.defaults import SMOKE, resolve, with_smoke_defaults
from rl.machine import Machine
from rl.validation import ConfigError, validate

LAPTOP = Machine(host="laptop", cores=2, memory_bytes=8 << 30, gpus=())
ONE_GPU = Machine(host="box", cores=16, memory_bytes=128 << 30, gpus=("H200",))
TWO_GPUS = replace(ONE_GPU, gpus=("H200", "H200"))


def refusal(machine: Machine = LAPTOP, **fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Config(**fields), machine)
    return str(caught.value)


def test_the_default_is_valid_as_written_as_a_smoke_run_and_resolved():
    validate(Config(), LAPTOP)
    validate(with_smoke_defaults(Config()), LAPTOP)
    validate(resolve(Config(), LAPTOP), LAPTOP)
    validate(resolve(Config(), TWO_GPUS), TWO_GPUS)


def test_batch_arithmetic():
    config = Config(num_groups=6, group_size=4, num_minibatches=3, micro_batch_size=2, num_steps=10)
    assert config.num_trajectories == 24  # 6 x 4
    assert config.num_minibatch_trajectories == 8  # 24 / 3
    assert config.num_micro_batches == 4  # 8 / 2
    assert config.num_optimizer_steps == 30  # 10 x 3


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_groups": 0}, "num_groups = 0: expected at least 1"),
        ({"group_size": 4.0}, "group_size = 4.0: expected int, not float"),
        ({"seed": True}, "seed = True: expected int, not bool"),
        ({"learning_rate": -1e-4}, "learning_rate = -0.0001: expected at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"max_wall_s": float("inf")}, "max_wall_s = inf: expected more than 0 and finite"),
        ({"temperature": 0.0}, "temperature = 0.0: expected more than 0"),
        ({"adam_beta2": 1.0}, "adam_beta2 = 1.0"),
        ({"clip_ratio_low": 1.5}, "clip_ratio_low = 1.5: expected at least 0 and at most 1"),
        ({"device": "gpu"}, "device = 'gpu': unknown choice 'gpu'"),
        ({"lr_schedule": "cosin"}, "did you mean 'cosine'?"),
        ({"sabotage": "swap_row"}, "did you mean 'swap_rows'?"),
        ({"env": "clac"}, "unknown environment 'clac'; did you mean 'calc'?"),
        ({"level": 99}, "unknown level"),
        ({"algorithm": "grop"}, "unknown algorithm 'grop'; did you mean 'grpo'?"),
        ({"loss_agg_mode": "token-meen"}, "token-mean"),
        ({"algorithm": "reinforce", "clip_ratio_c": 3.0}, "clip_ratio_c = 3.0 has no effect"),
        ({"algorithm": "dapo", "kl_loss_type": "k1"}, "kl_loss_type = 'k1' has no effect"),
        ({"clip_ratio_low": 0.1}, "clip_ratio_low with num_minibatches = 1 has no effect"),
        ({"group_size": 1, "num_groups": 32}, "group_size = 1: grpo compares the members of a group"),
        (
            {"group_size": 1, "num_groups": 32, "algorithm": "gigpo"},
            "group_size = 1: gigpo compares the members",
        ),
        ({"algorithm": "gdpo", "reward": "shuffled:calc"}, "which stay with the trajectory that earned them"),
        (
            {"algorithm": "gigpo", "reward": "shuffled:calc"},
            "which stay with the trajectory that earned them",
        ),
        ({"algorithm": "gdpo", "truncated": "zero_reward"}, "does not use the reward as a whole"),
        ({"algorithm": "gdpo", "reward_weights": {"answer": float("nan")}}, "expected finite numbers"),
        ({"algorithm": "gdpo", "reward_weights": {"answer": 0.0}}, "not all of them 0"),
        (
            {"group_size": 1, "num_groups": 32, "algorithm": "reinforce_pp_baseline"},
            "group_size = 1: reinforce_pp_baseline compares the members",
        ),
        (
            {"group_size": 1, "num_groups": 32, "algorithm": "reinforce", "drop_uniform_groups": True},
            "group_size = 1: reinforce compares the members",
        ),
        (
            {"algorithm": "spo", "num_tasks": 8},
            "num_minibatches = 1: spo forgets by how far the policy moves",
        ),
        (
            {"algorithm": "rloo", "target_kl": 0.1, "kl_horizon": 20.0},
            "kl_horizon = 20 for 128 trajectories a step",
        ),
        ({"algorithm": "sapo", "step_wise": True}, "step_wise = True has no effect"),
        ({"algorithm": "reinforce_pp_baseline", "gamma": 0.9}, "discounts nothing"),
        ({"top_k": 1, "replay_sampling_mask": True}, "set top_k to 2 to 20"),
        ({"algorithm": "gdpo", "kl_coef": 0.1}, "compares the parts of the reward, not the whole"),
        ({"turn_advantage_coef": 0.5}, "gives turns nothing of their own"),
        ({"target_kl": 0.1}, "kl_coef is 0"),
        ({"algorithm": "spo"}, "num_tasks = 0: spo compares a task with its own past"),
        ({"kl_loss_type": "k1", "kl_gradient": "naive"}, "its gradient is 0 on average"),
        ({"top_p": 0.0}, "top_p = 0.0: expected more than 0 and at most 1"),
        ({"top_p": 0.9, "rollout_is": "none"}, "top_p = 0.9: the engine draws from fewer tokens"),
        ({"top_k": 20}, "top_k = 20: the engine's log-probs rise by what is cut away"),
        ({"max_draws_per_group": 4}, "max_draws_per_group has no effect: algorithm 'grpo' takes groups"),
        ({"dynamic_sampling": True}, "dynamic_sampling without drop_uniform_groups"),
        ({"at_max_draws": "fill"}, "at_max_draws has no effect"),
        ({"max_error_rate": 1.0, "error_window": 64}, "error_window = 64 has no effect"),
        ({"max_attempts": 0}, "max_attempts = 0: expected at least 1"),
        ({"min_group": 9, "group_size": 8}, "min_group = 9 with group_size = 8: no group could have so many"),
        ({"algorithm": "reinforce", "min_group": 2}, "min_group = 2 has no effect in algorithm 'reinforce'"),
        ({"trackers": "wnadb"}, "unknown tracker 'wnadb'; did you mean 'wandb'?"),
        ({"trackers": "wandb,"}, "unknown tracker '' (known: wandb, tensorboard)"),
        ({"trackers": "wandb, wandb"}, "has wandb more than once"),
        ({"reward_workers": 2}, "reward_workers = 2 has no effect: only a reward of your own"),
        ({"reward_python": "/usr/bin/python3"}, "reward_python = '/usr/bin/python3' has no effect: only a"),
        ({"reward_timeout_s": 0.0}, "reward_timeout_s = 0.0: expected more than 0"),
        (
            {"reward": "tests/rewards/user_rewards/hostile.py:needs_column"},
            "lacks: unknown column 'hardness'",
        ),
        ({"reward": "tests/rewards/user_rewards/no.py:f"}, "unknown file 'no.py'"),
        ({"reward": "cal"}, "unknown reward 'cal'; did you mean 'calc'?"),
        ({"max_turns": 1}, "max_turns = 1: level 1 of calc takes"),
        ({"max_staleness": 1}, "max_staleness = 1: only 0"),
        ({"warmup_steps": 60}, "warmup_steps = 60 of num_steps = 60"),
        ({"save_every": 61}, "save_every = 61 of num_steps = 60 has no effect"),
        ({"eval_every": 60}, "eval_every = 60 of num_steps = 60 has no effect"),
        ({"max_turn_tokens": 500, "max_total_tokens": 400}, "max_turn_tokens = 500 can never be reached"),
        ({"max_total_tokens": 513}, "max_total_tokens = 513 can never be reached, context_length = 512"),
        ({"engines": 200}, "engines = 200 for num_groups x group_size = 16 x 8 = 128"),
        ({"engines": 2, "engine_threads": 2}, "engines x engine_threads = 4 needs 4 cores and there are 2"),
        ({"learner_threads": 3}, "learner_threads = 3 needs 3 cores and there are 2"),
        ({"device": "cuda"}, "torch sees no GPU"),
        ({"sync_backend": "ipc"}, "sync_backend = 'ipc' needs a GPU"),
    ],
)
def test_a_value_that_cannot_run_is_refused_with_field_and_remedy(fields: dict[str, Any], expected: str):
    assert expected in refusal(**fields)


def test_nccl_needs_two_gpus():
    assert "there is 1" in refusal(ONE_GPU, sync_backend="nccl")
    assert "this run uses none" in refusal(TWO_GPUS, device="cpu", sync_backend="nccl")
    validate(Config(sync_backend="nccl"), TWO_GPUS)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # 16 x 8 = 128 has the divisors 1, 2, 4, 8, ...; 2 and 4 are equally near to 3, 64 is nearest to 60
        (
            {"num_minibatches": 3},
            "num_minibatches = 3 does not divide num_groups x group_size = 16 x 8 = 128",
        ),
        ({"num_minibatches": 3}, "use 2"),
        ({"micro_batch_size": 60}, "micro_batch_size = 60 does not divide the 128 trajectories"),
        ({"micro_batch_size": 60}, "use 64"),
        (
            {"num_minibatches": 8, "micro_batch_size": 32},
            "does not divide the 16 trajectories of a minibatch",
        ),
    ],
)
def test_batch_sizes_that_do_not_divide_are_refused_with_the_nearest_that_does(fields, expected):
    assert expected in refusal(**fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"micro_batch_tokens": 256},
            "less than one trajectory may have (context_length = 512); use at least 512",
        ),
        ({"micro_batch_tokens": 4096, "layout": "padded"}, "has no effect with layout = 'padded'"),
        ({"layout": "packd"}, "did you mean 'packed'"),
        ({"activation_checkpointing": True, "replay_routing": True}, "would choose its experts anew"),
    ],
)
def test_layouts_that_cannot_be_are_refused(fields, expected):
    assert expected in refusal(**fields)


def test_every_problem_is_told_at_once():
    told = refusal(num_groups=0, temperature=-1.0, device="gpu").splitlines()
    assert [line.split(" = ")[0] for line in told] == ["num_groups", "temperature", "device"]


def test_a_learning_rate_of_zero_is_a_control_and_allowed():
    validate(Config(learning_rate=0.0), LAPTOP)


def test_resolve_fills_in_what_the_machine_gives_and_keeps_what_is_set():
    on_cpu = resolve(Config(), LAPTOP)
    assert (on_cpu.device, on_cpu.engine_dtype, on_cpu.sync_backend) == ("cpu", "float32", "shm")
    assert (on_cpu.engine_threads, on_cpu.learner_threads, on_cpu.num_concurrent) == (1, 2, 128)
    on_gpu = resolve(Config(engines=3, learner_threads=1), ONE_GPU)
    assert (on_gpu.device, on_gpu.engine_dtype, on_gpu.sync_backend) == ("cuda", "bfloat16", "ipc")
    assert (on_gpu.learner_threads, on_gpu.num_concurrent) == (1, 43)  # 128 / 3 = 42.7, rounded up
    assert resolve(Config(), TWO_GPUS).sync_backend == "nccl"
    kept = resolve(Config(device="cpu", engine_dtype="bfloat16"), TWO_GPUS)
    assert (kept.device, kept.engine_dtype, kept.sync_backend) == ("cpu", "bfloat16", "shm")


def test_the_gap_limit_is_that_of_the_coarser_side_unless_given():
    assert resolve(Config(), LAPTOP).gap_limit == 1e-4
    assert resolve(Config(engine_dtype="bfloat16"), LAPTOP).gap_limit == 1.0
    assert resolve(Config(learner_dtype="bfloat16"), LAPTOP).gap_limit == 1.0
    assert resolve(Config(engine_dtype="bfloat16", max_gap=0.5), LAPTOP).gap_limit == 0.5


def test_a_smoke_run_differs_in_the_stated_fields_only():
    assert replace(Config(), smoke=True, **SMOKE) == with_smoke_defaults(Config())


def model_folder(
    path: Path, *, tokens: tuple[str, ...] = ("<|im_start|>", "<|im_end|>"), **settings: Any
) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "qwen3", **settings}))
    (path / "model.safetensors").write_bytes(b"")
    added = [{"content": token} for token in tokens]
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": added}))
    return path


def test_a_model_folder_with_everything_and_a_hub_id_are_accepted(tmp_path: Path):
    validate(Config(model=str(model_folder(tmp_path / "m"))), LAPTOP)
    validate(Config(model="Qwen/Qwen3-0.6B"), LAPTOP)


def test_a_model_folder_is_refused_for_what_it_lacks(tmp_path: Path):
    folder = model_folder(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in refusal(model=str(folder))
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text("{")
    told = refusal(model=str(folder))
    assert "no readable config.json" in told
    assert "no *.safetensors weights" in told
    assert "no such folder" in refusal(model=str(tmp_path / "n"))


def test_a_tokenizer_without_a_needed_special_token_is_refused_with_its_name(tmp_path: Path):
    folder = model_folder(tmp_path / "m", tokens=("<|im_start|>",))
    assert "its tokenizer lacks <|im_end|>, which ChatML needs" in refusal(model=str(folder))


def test_a_model_that_brings_code_is_refused(tmp_path: Path):
    folder = model_folder(tmp_path / "m", auto_map={"AutoModel": "modeling.Evil"})
    assert "auto_map" in refusal(model=str(folder))


def test_a_group_of_one_is_accepted_where_members_are_not_compared():
    validate(Config(algorithm="reinforce", group_size=1, num_groups=32), LAPTOP)


def test_overrides_reach_the_row_and_the_rest_of_it_stays():
    row = Config(algorithm="dapo", clip_ratio_high=0.25).make_algorithm()
    assert row == replace(ALGORITHMS["dapo"], clip_ratio_high=0.25)


def test_filters_of_sampling_are_allowed_where_they_are_corrected_for():
    for allowed in (
        Config(top_p=0.9),  # grpo weighs by what the learner says: token_tis
        Config(top_p=0.9, algorithm="opd", teacher=""),
        Config(top_k=20, min_p=0.1, max_gap=3.0),
        Config(algorithm="dapo", max_draws_per_group=4, at_max_draws="fill"),
    ):
        validate(allowed, LAPTOP)
    # the engine's log-prob of a token may be larger by -log .9
    gap = resolve(Config(top_p=0.9), LAPTOP).gap_limit - resolve(Config(), LAPTOP).gap_limit
    assert gap == pytest.approx(0.105361, abs=1e-6)
