"""Which runs a comparison is made of, what is refused before one starts, and what may differ between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.calc_grpo import CONFIG
from rl.machine import Machine
from scripts.compare import Options, check_cells, make_plan, split_shared
from scripts.comparing.names import CompareError, parse_arms, parse_settings
from scripts.comparing.plan import Cell, Plan, config_diff, undeclared


def plan(algorithms: str = "grpo,rloo", *shared: str, **options: object) -> Plan:
    chosen = {"env": ("calc:2",), "seeds": 2, "budget_tokens": 1000} | options
    return make_plan(Options(algorithms=algorithms, **chosen), shared)  # type: ignore[arg-type]


def test_every_cell_has_the_same_budget_and_seeds():
    made = plan(env=("calc:1", "calc:2"), seeds=3)
    cells = made.reported_cells({})
    assert len(cells) == len({cell.name for cell in cells}) == 2 * 2 * 3
    assert {made.parsed(cell).budget_tokens for cell in cells} == {1000}
    assert sorted({cell.seed for cell in cells}) == [0, 1, 2]
    assert cells[0].name == "cells/calc-1/grpo/seed_0"


def test_a_cell_is_a_command_line_of_the_recipe():
    made = plan("frozen=grpo+learning_rate=0", "--num-steps", "9")
    command = made.command(made.reported_cells({})[0], Path("there/run"))
    assert command[1:3] == ["-m", "recipes.calc_grpo"]
    assert " ".join(command[3:]) == (
        "--loss-agg-mode None --kl-loss-coef None --num-steps 9 --algorithm grpo --env calc --level 2 "
        "--seed 0 --budget-tokens 1000 --learning-rate 0 --run-dir there/run"
    )


def test_a_row_is_compared_as_its_paper_has_it_and_not_as_the_recipe_suits_grpo():
    made = plan("dr_grpo")
    algorithm = made.parsed(made.reported_cells({})[0]).make_algorithm()
    assert (algorithm.loss_agg_mode, algorithm.kl_loss_coef) == ("seq-mean-token-sum-norm", 0.0)


def test_what_is_given_for_all_stays():
    made = plan("dr_grpo", "--kl-loss-coef", "0.1")
    algorithm = made.parsed(made.reported_cells({})[0]).make_algorithm()
    assert (algorithm.loss_agg_mode, algorithm.kl_loss_coef) == ("seq-mean-token-sum-norm", 0.1)


def test_tuning_gives_every_arm_the_same_trials_on_seeds_that_are_not_reported():
    made = plan(tune=("learning_rate=1e-4,1e-3", "num_minibatches=1,2"), tuning_seeds=2)
    tuning = made.tuning_cells
    assert len(tuning) == 2 * 4 * 2  # arms x combinations x seeds
    assert {cell.seed for cell in tuning} == {1000, 1001}
    assert not {cell.seed for cell in tuning} & {cell.seed for cell in made.reported_cells({})}
    counts = {arm: sum(cell.arm.label == arm for cell in tuning) for arm in ("grpo", "rloo")}
    assert counts == {"grpo": 8, "rloo": 8}
    trial = (("learning_rate", "1e-3"), ("num_minibatches", "2"))
    cells = made.reported_cells({("calc:2", "grpo"): trial})
    assert made.parsed(cells[0]).learning_rate == 1e-3
    assert made.parsed(cells[1]).learning_rate == CONFIG.learning_rate


def test_declared_differences_pass_and_are_shown():
    made = plan("grpo,frozen=grpo+learning_rate=0")
    diff = check_cells(made, made.reported_cells({}))
    assert set(diff) == {"learning_rate", "seed"}
    assert diff["learning_rate"] == {
        "0.0004": "grpo on calc:2, seed 0, 1",
        "0.0": "frozen on calc:2, seed 0, 1",
    }


def test_an_undeclared_difference_names_field_and_cells():
    made = plan()
    cells = made.reported_cells({})
    configs = [(cell, vars(made.parsed(cell)) | {"run_dir": cell.name}) for cell in cells]
    assert undeclared(configs) == []
    configs[-1][1]["temperature"] = 0.5
    problems = undeclared(configs)
    assert "temperature: 1.0 in cells/calc-2/grpo/seed_1, 0.5 in cells/calc-2/rloo/seed_1" in problems
    assert all(problem.startswith("temperature") for problem in problems)


def test_a_field_that_one_arm_declares_may_not_differ_between_the_others():
    made = plan("frozen=grpo+learning_rate=0,grpo,rloo", seeds=1)
    configs = [(cell, dict(vars(made.parsed(cell)))) for cell in made.reported_cells({})]
    assert undeclared(configs) == []
    configs[2][1]["learning_rate"] = 1.0
    assert undeclared(configs) == [
        "learning_rate: 0.0004 in cells/calc-2/grpo/seed_0, 1.0 in cells/calc-2/rloo/seed_0"
    ]


def test_another_starting_policy_on_the_same_seed_is_a_difference():
    made = plan()
    configs = [(cell, dict(vars(made.parsed(cell)))) for cell in made.reported_cells({})]
    configs[0][1]["model"] = "another"
    assert any(problem.startswith("model") for problem in undeclared(configs))


def test_what_follows_from_a_change_must_be_declared_too():
    made = plan("grpo,big=grpo+group_size=16")
    with pytest.raises(CompareError, match=r"num_concurrent: 256 in .*grpo.* 512 in .*big"):
        check_cells(made, made.reported_cells({}))
    made = plan("grpo,big=grpo+group_size=16+num_concurrent=512")
    assert set(check_cells(made, made.reported_cells({}))) == {"group_size", "num_concurrent", "seed"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithms": "grpo,rlo"}, "unknown algorithm 'rlo'; did you mean 'rloo'"),
        ({"env": ("calk:2",)}, "unknown environment 'calk'; did you mean 'calc'"),
        ({"env": ("calc:99",)}, "unknown level of environment 'calc' '99'"),
        ({"env": ("calc",)}, "expected NAME:LEVEL, as calc:2"),
        ({"env": ()}, "no --env"),
        ({"algorithms": "grpo,grpo"}, "names grpo twice; compare under labels, as again=grpo"),
        ({"algorithms": "grpo,,rloo"}, "an entry is empty"),
        (
            {"algorithms": "x=grpo+learnin_rate=0"},
            "unknown setting 'learnin_rate'; did you mean 'learning_rate'",
        ),
        ({"algorithms": "x=grpo+seed=3"}, "seed is set by the comparison itself"),
        ({"algorithms": "x=grpo+learning_rate"}, "expected learning_rate=VALUE"),
        ({"tune": ("learning_rat=1,2",)}, "unknown setting 'learning_rat'; did you mean 'learning_rate'"),
        ({"tune": ("learning_rate=1e-4",)}, "expected two values or more"),
        ({"algorithms": "x=grpo+learning_rate=0", "tune": ("learning_rate=1,2",)}, "x fixes learning_rate"),
        (
            {"env": ("calc:2+learning_rate=0",), "tune": ("learning_rate=1,2",)},
            "calc:2 gives learning_rate a value too",
        ),
        ({"parallel": 10_000}, "parallel = 10000: a run needs a core, and there are"),
        ({"tuning_seeds": 2}, "has no effect without --tune"),
        ({"recipe": "calc_grp"}, "unknown recipe 'calc_grp'; did you mean 'calc_grpo'"),
        ({"seeds": 0}, "seeds = 0: expected at least 1"),
        ({"threshold": 1.5}, "expected a success between 0 and 1"),
    ],
)
def test_bad_names_are_refused_with_the_nearest(options: dict[str, object], message: str):
    with pytest.raises(CompareError) as refused:
        plan(**options)  # type: ignore[arg-type]
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("learning_rate", ("--learning-rate", "1e-3")),
        ("learning_rate", ("--learning_rate=1e-3",)),
        ("kl_loss_coef", ("--beta", "0.1")),  # TRL's name of it
    ],
)
def test_a_shared_option_of_a_tuned_field_is_refused(field: str, option: tuple[str, ...]):
    with pytest.raises(CompareError, match=f"what follows -- gives {field} a value too"):
        plan("grpo", *option, tune=(f"{field}=1e-3,1e-2",))
    assert len(plan("grpo", *option, tune=("temperature=0.5,1.0",)).trials) == 2


def test_a_cell_that_cannot_run_is_refused_before_any_does(capsys: pytest.CaptureFixture[str]):
    made = plan("grpo,x=rloo+vf_coef=0.5")
    with pytest.raises(CompareError, match="cells/calc-2/x/seed_0 cannot run"):
        check_cells(made, made.reported_cells({}))
    assert "vf_coef = 0.5 has no effect" in capsys.readouterr().err


def test_files_of_ones_own_are_arms_and_settings(tmp_path: Path):
    algorithm = tmp_path / "my_algorithm.py"
    algorithm.write_text(
        "from dataclasses import replace\nfrom rl.algorithms import ALGORITHMS\n"
        "ROW = replace(ALGORITHMS['grpo'], name='mine', clip_ratio_high=0.5)\n"
    )
    env = tmp_path / "my_env.py"
    env.write_text("from envs.tasks.calc import ENV\n")
    reward = tmp_path / "my_rewards.py"
    reward.write_text("from envs.tasks.calc import ENV\nshort = ENV.score\n")
    made = plan(f"grpo,{algorithm}:ROW,short=grpo+reward={reward}:short", env=(f"{env}:ENV:2",), seeds=1)
    diff = check_cells(made, made.reported_cells({}))
    assert set(diff) == {"algorithm", "reward"}
    assert [arm.label for arm in made.arms] == ["grpo", "my_algorithm.py:ROW", "short"]
    assert made.reported_cells({})[1].name == "cells/my_env.py-ENV-2/my_algorithm.py-ROW/seed_0"


def test_settings_may_need_more_than_a_level():
    (calc, deep) = parse_settings(["calc:1", "calc:3+max_turns=8+smoke=True"], CONFIG)
    assert (calc.level, deep.level, deep.changes) == (1, 3, (("max_turns", "8"), ("smoke", "True")))
    cell = Cell(arm=parse_arms("grpo", CONFIG)[0], setting=deep, seed=0)
    assert plan().options(cell)[-3:] == ["--max-turns", "8", "--smoke"]


def test_shared_options_follow_two_dashes():
    assert split_shared(["--seeds", "2", "--", "--num-steps", "3"]) == (
        ["--seeds", "2"],
        ["--num-steps", "3"],
    )
    assert split_shared(["--seeds", "2"]) == (["--seeds", "2"], [])


def test_cells_that_are_one_have_no_differences():
    made = plan("grpo", seeds=1)
    assert config_diff([(cell, vars(made.parsed(cell))) for cell in made.reported_cells({})]) == {}


def test_a_share_of_the_cores_is_in_every_command_and_no_part_of_what_is_compared():
    made = plan("grpo", "--num-steps", "9", parallel=2)
    command = " ".join(made.command(made.reported_cells({})[0], Path("there/run"))[3:])
    threads = max(1, Machine.here().cores // 2)
    assert f" --num-steps 9 --learner-threads {threads} --algorithm grpo " in command
    assert made.shared == ("--num-steps", "9")
