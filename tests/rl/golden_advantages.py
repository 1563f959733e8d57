"""The golden files of kinds advantage, value_loss, controller and reward_shaping, from `inputs` and `config`.

The names that a file may use for a thing are listed where it is looked up; what is missing, or what the
library lacks, raises NotOfferedError with the reason. All is computed again with garbage at mask 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import torch

from rl import advantages as adv
from rl import token_advantages as tok
from rl.critic import AdaptiveKlController, value_loss
from rl.losses import KL_ESTIMATORS
from rl.numerics import add_metrics, metric_values
from tests.rl.golden_config import Case, NotOfferedError
from tests.rl.golden_given import REWARDS, Given, Outputs, Tolerance, check, compare, flat, steps_of, turns_of

SPLITS = ((slice(None),), (slice(0, 3), slice(3, 4), slice(4, None)))
GREEDY = ("greedy_rewards", "reward_baselines", "baseline_rewards", "rewards_greedy", "baselines", "baseline")
PARTS = ("reward_parts", "reward_components", "component_rewards", "rewards_per_component", "parts")
NORM = ("norm_adv_by_std", "norm_adv_by_std_in_grpo", "f_norm", "norm", "mode")
NORMS = {True: "group", False: "none", "std": "group", "mean_std_norm": "group", "mean_norm": "none"}


def shared(estimated: np.ndarray, given: Given) -> Outputs:
    """One advantage a trajectory."""
    tokens = tok.broadcast(estimated, given.mask)
    return {"advantages": (estimated, tokens), "token_advantages": (tokens,)}


def by_token(advantages: np.ndarray, **more: np.ndarray | float) -> Outputs:
    """Each token its own."""
    return {
        name: (x,) for name, x in {"advantages": advantages, "token_advantages": advantages, **more}.items()
    }


def relative(given: Given, *, norm_adv_by_std: str | None = None) -> Outputs:
    """GRPO and its relatives; the estimator's name says how they normalize, or the config does."""
    norm = norm_adv_by_std or given.get(*NORM, "scale_rewards", "std_level", default="group")
    std_of = str(given.get("std_of", "batch_std_of", "batch_std", "std_source", default="rewards"))
    knobs: Case = {"norm_adv_by_std": NORMS.get(norm, norm), **given.keyword("eps", "epsilon")}
    if knobs["norm_adv_by_std"] not in get_args(adv.NormAdvByStd):
        raise NotOfferedError(f"norm_adv_by_std {norm!r}")
    if "cent" in std_of:
        knobs["std_of"] = "centered"
    return shared(adv.group_relative(*given.compared, **knobs), given)


def compared(estimator: Callable[..., np.ndarray], given: Given, **knobs: tuple[str, ...]) -> Outputs:
    """Estimators of rewards and groups, with their keywords and other names for them."""
    keywords: Case = {}
    for name, names in knobs.items():
        keywords |= given.keyword(name, *names)
    if "norm_adv_by_std" in keywords:
        keywords["norm_adv_by_std"] = NORMS.get(keywords["norm_adv_by_std"], keywords["norm_adv_by_std"])
    return shared(estimator(*given.compared, **keywords), given)


def remax(given: Given) -> Outputs:
    rewards = given.array(*REWARDS)
    outputs = shared(adv.remax(rewards, given.by_row(*GREEDY)), given)
    return {**outputs, "returns": (tok.broadcast(rewards, given.mask),)}


def gdpo(given: Given) -> Outputs:
    parts = given.get(*PARTS, default=None)
    if parts is None:  # a matrix under the plain name, or one list a part
        parts = {name: x for name, x in given.inputs.items() if "reward" in name and "weight" not in name}
        total = parts.pop("rewards", None) if len(parts) > 1 else parts.get("rewards", 0)
        parts = total if np.ndim(total) == 2 else parts
    weights = given.get("reward_weights", "weights", "gdpo_reward_weights", "component_weights", default=None)
    if isinstance(parts, dict):
        weights = [weights[name] for name in parts] if isinstance(weights, dict) else weights
        parts = list(parts.values())
    rows = given.rounded(parts)
    rows = rows if len(rows) == len(given.groups) else rows.T
    knobs: Case = {"reward_weights": weights, "lengths": given.lengths, **given.keyword("eps", "epsilon")}
    return shared(adv.gdpo(rows, given.groups, **knobs), given)


def spo(given: Given) -> Outputs:
    alpha, beta = (given.by_row(name, f"{name}_before", f"{name}s") for name in ("alpha", "beta"))
    knobs = given.keyword("eps", "whiten_eps", "epsilon")
    return shared(adv.spo(given.array(*REWARDS), alpha, beta, **knobs), given)


def rewards_of_tokens(given: Given) -> np.ndarray:
    if given.get("token_rewards", "token_level_rewards", default=None) is not None:
        return given.array("token_rewards", "token_level_rewards")
    if given.get("ref_logprobs", default=None) is None:
        return tok.token_rewards(given.array(*REWARDS), given.mask)
    name = given.get("kl_estimator", "kl_penalty", "kl_type", default="k1")
    names = ("old_logprobs", "logprobs", "rollout_logprobs")
    policy, reference = (torch.from_numpy(given.array(*x)) for x in (names, ("ref_logprobs",)))
    kl = KL_ESTIMATORS[name](reference - policy).numpy()
    return tok.token_rewards(given.array(*REWARDS), given.mask, kl=kl, kl_coef=given.get("kl_coef"))


def reinforce_pp(given: Given) -> Outputs:
    rewards, gamma = rewards_of_tokens(given), given.get("gamma", default=1.0)
    returns = tok.discounted_sums(rewards, given.mask, gamma)
    advantages = tok.reinforce_pp(rewards, given.mask, gamma=gamma)
    return by_token(advantages, returns=returns, token_rewards=np.where(given.mask, rewards, 0.0))


def reinforce_pp_baseline(given: Given) -> Outputs:
    tokens = tok.reinforce_pp_baseline(*given.compared, given.mask)
    rows = adv.whitened(adv.group_centered(*given.compared), given.lengths)
    return {"advantages": (tokens, rows), "token_advantages": (tokens,)}


def critic(given: Given, *, length_adaptive: bool) -> Outputs:
    tokens = rewards_of_tokens(given), given.array("values", "old_values"), given.mask
    knobs = given.keyword("gamma")
    if length_adaptive:
        knobs |= given.keyword("alpha", "vapo_alpha", "length_alpha", "lam_alpha")
        knobs |= given.keyword("critic_lam", "lam_critic", "lambda_critic", "lam_value")
        advantages, returns = tok.vapo_gae(*tokens, **knobs)
    else:
        advantages, returns = tok.gae(*tokens, **knobs, **given.keyword("lam", "lambda", "gae_lambda"))
    return by_token(advantages, returns=returns, advantages_whitened=tok.whiten(advantages, given.mask))


def distillation(given: Given) -> Outputs:
    student = given.array("rollout_logprobs", "old_logprobs", "logprobs", "student_logprobs")
    tokens = student, given.array("teacher_logprobs"), given.mask
    knobs = given.keyword("coef", "opd_kl_coef", "kl_coef") | given.keyword("gamma")
    advantages = tok.on_policy_distillation(*tokens, **knobs)
    gap = -tok.on_policy_distillation(*tokens).sum() / max(given.mask.sum(), 1)
    return by_token(advantages, reverse_kl_mean=gap)


def mt_grpo(given: Given) -> Outputs:
    outcome, turn = given.array("outcome_rewards", *REWARDS), given.array("turn_rewards", "rewards_turn")
    knobs = given.keyword("turn_advantage_coef", "turn_coef", "lambda", "lam", "lambda_turn", "turn_weight")
    turns = np.where(given.mask, turns_of(given), -1)
    knobs |= given.keyword("eps", "epsilon")
    return by_token(tok.mt_grpo(outcome, turn, given.groups, turns, given.mask, **knobs))


def gigpo(given: Given) -> Outputs:
    steps = steps_of(given)
    groups, episodes = given.groups, given.array(*REWARDS, default=steps.rewards.sum(1))
    groups, episodes = (x if len(x) == len(steps.first) else x[steps.first] for x in (groups, episodes))
    knobs = given.keyword("gamma") | given.keyword("omega", "step_advantage_w", "w") | given.keyword("eps")
    if (norm := given.get(*NORM, default=None)) is not None:
        knobs["norm_adv_by_std"] = "none" if norm == 1 and norm is not True else NORMS.get(norm, norm)
    total, episode = (
        tok.gigpo(episodes, steps.rewards, steps.anchors, steps.taken, groups, **{**knobs, **part})
        for part in ({}, {"omega": 0.0})
    )
    returns = tok.discounted_sums(steps.rewards, steps.taken, knobs.get("gamma", 0.95))
    outputs: Outputs = {"advantages": (total[steps.at],), "step_returns": (returns[steps.at],)}
    turns = np.where(given.mask, turns_of(given), 0)
    if turns.max(initial=0) < total.shape[1] and given.get("mask", default=None) is not None:
        tokens = tok.per_turn(total, turns, given.mask)
        outputs |= {"advantages": (total[steps.at], tokens), "token_advantages": (tokens,)}
    return {**outputs, "episode_advantages": (episode[:, 0],)}


ESTIMATORS: dict[str, Callable[[Given], Outputs]] = {
    "rloo": partial(compared, adv.rloo),
    "gpg": partial(compared, adv.gpg),
    "maxrl": partial(compared, adv.maxrl, eps=("epsilon",)),
    "grpo_passk": partial(compared, adv.grpo_passk, eps=("epsilon",), norm_adv_by_std=NORM),
    "opmd": partial(compared, adv.opmd, tau=("opmd_tau",), baseline=("opmd_baseline",)),
    "grpo": relative,
    "dr_grpo": partial(relative, norm_adv_by_std="none"),
    "lite_ppo": partial(relative, norm_adv_by_std="batch"),
    "opo": lambda given: shared(adv.opo(*given.compared, lengths=given.lengths), given),
    "remax": remax,
    "gdpo": gdpo,
    "spo": spo,
    "reinforce_plus_plus": reinforce_pp,
    "reinforce_plus_plus_baseline": reinforce_pp_baseline,
    "gae": partial(critic, length_adaptive=False),
    "vapo": partial(critic, length_adaptive=True),
    "opd": distillation,
    "mt_grpo": mt_grpo,
    "gigpo": gigpo,
}
ALIASES = {
    "mean": "dr_grpo",
    "reinforce_baseline": "dr_grpo",
    "reinforce_pp": "reinforce_plus_plus",
    "reinforce_pp_baseline": "reinforce_plus_plus_baseline",
    "max_rl": "maxrl",
    "opmd_logavgexp": "opmd",
    "vapo_length_adaptive_gae": "vapo",
    "on_policy_distill": "opd",
}
ONLY = {"std_unbiased": True, "singleton": "zero", "whiten_unbiased": True, "whiten_eps": adv.WHITEN_EPS}
"""Settings that the library has no choice of."""

VARIANTS: dict[str, Case] = {
    "expected": {},
    "trl_eps_1e_4": {"eps": 1e-4},
    "openrlhf_eps_1e_9": {"eps": 1e-9},
    "drgrpo_oat_grpo_eps_1e_8": {"eps": 1e-8},
    "gamma_0_9": {"gamma": 0.9},
}


def estimator_of(case: Case) -> Callable[[Given], Outputs]:
    """By the file's id, which is more particular than its adv_estimator, or by that."""
    for name in (case["id"].removeprefix("adv_"), str(case["config"].get("adv_estimator", ""))):
        name = name.lower().replace("++", "_plus_plus").replace("-", "_")
        if found := ESTIMATORS.get(ALIASES.get(name, name)):
            return found
    raise NotOfferedError(f"adv_estimator {case['config'].get('adv_estimator')!r}")


def advantage(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    estimator, config = estimator_of(case), case["config"]
    for name, value in ONLY.items():
        if config.get(name, value) != value:
            raise NotOfferedError(f"{name} {config[name]!r}")
    asked = {"expected": case["expected"], **case["variants"]}
    for name in set(VARIANTS) & set(asked):
        for garbage in (False, True):
            given = Given(case["inputs"], {**config, **VARIANTS[name]}, dtype, garbage)
            outputs = estimator(given)
            for form in (form for forms in outputs.values() for form in forms):
                assert np.shape(form) != given.mask.shape or not np.any(np.asarray(form)[~given.mask])
            compare(outputs, asked[name], tolerance)


def clipped_value_loss(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    expected = case["expected"]
    for garbage in (False, True):
        given = Given(case["inputs"], case["config"], dtype, garbage)
        clip = given.get("cliprange_value", "value_clip", "cliprange", "eps_clip_value")
        names = (("values", "vpreds"), ("old_values",), ("returns",))
        rows = [torch.from_numpy(given.array(*name)).to(dtype) for name in names]
        mask = torch.from_numpy(given.mask)
        for splits in SPLITS:
            leaf = rows[0].clone().requires_grad_()
            total, sums = torch.zeros((), dtype=dtype), []
            for part in splits:
                tokens = (x[part] for x in (leaf, *rows[1:], mask))
                loss, shares = value_loss(*tokens, cliprange_value=clip, num_tokens=int(mask.sum()))
                loss.backward()
                total, sums = total + loss.detach(), [*sums, shares]
            check(total, expected["loss"], tolerance)
            if "grad_values" in expected:
                check(leaf.grad, expected["grad_values"], tolerance)
            clip_frac = metric_values(add_metrics(sums))["critic/clip_frac"]
            check(clip_frac, expected.get("metrics", {}).get("vf_clip_frac", clip_frac), tolerance)


def kl_controller(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    given = Given(case["inputs"], case["config"], dtype)
    start = given.get("init_kl_coef", "init_coef", "kl_coef_init", "kl_coef", "beta", "init_value")
    target, horizon = given.get("target_kl", "kl_target", "target"), given.get("horizon", "kl_horizon")
    controller = AdaptiveKlController(kl_coef=start, target_kl=target, horizon=horizon)
    measured = flat(
        given.get(
            "kl",
            "kls",
            "current_kl",
            "observed_kl",
            "kl_observed",
            "current_kls",
            "kl_values",
            "kl_sequence",
            "measured_kl",
        )
    )
    counts = flat(given.get("num_trajectories", "n_steps", "n", "batch_size", "num_steps", "steps"))
    coefs = [controller.kl_coef]
    for kl, count in zip(measured, np.broadcast_to(counts, measured.shape), strict=True):
        controller = controller.update(float(kl), count)
        coefs.append(controller.kl_coef)
    new = Given(case["expected"], {}, dtype)
    numbers = flat(new.get("kl_coef", "kl_coefs", "coefs", "values", "value", "beta", "betas", "new_kl_coef"))
    check(coefs[-len(numbers) :], numbers, tolerance)  # all of them, or without the first


def overlong(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    given = Given(case["inputs"], case["config"], dtype)
    factor = given.get("overlong_penalty_factor", "penalty_factor", default=1.0)
    knobs = {name: given.get(name) for name in ("max_response_length", "overlong_buffer_len")}
    penalty = adv.overlong_penalty(
        given.array("lengths", "response_lengths"), overlong_penalty_factor=factor, **knobs
    )
    check(penalty, case["expected"]["penalty"], tolerance)


CHECKS: dict[str, Callable[[Case, torch.dtype, Tolerance], None]] = {
    "advantage": advantage,
    "value_loss": clipped_value_loss,
    "controller": kl_controller,
    "reward_shaping": overlong,
}
"""What checks a file, by its kind."""
