"""The golden files of kind advantage, from `inputs` and `config`, and again with garbage at mask 0.

The names that a file may use for a thing are listed where it is looked up; what the library lacks raises
NotOfferedError with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import torch

from rl import advantages as adv
from rl import token_advantages as tok
from rl.critic import BetaTracker
from rl.losses import KL_ESTIMATORS
from rl.numerics import group_statistics
from tests.rl.golden_config import Case, NotOfferedError
from tests.rl.golden_given import REWARDS, Given, Outputs, Tolerance, compare, steps_of, turns_of

GREEDY = ("greedy_rewards", "reward_baselines", "baseline_rewards", "rewards_greedy", "baselines", "baseline")
PARTS = ("reward_parts", "reward_components", "component_rewards", "rewards_per_component", "parts")
NORM = ("norm_adv_by_std", "norm_adv_by_std_in_grpo", "f_norm", "norm", "mode")
NORMS = {True: "group", False: "none", "std": "group", "mean_std_norm": "group", "mean_norm": "none"}


def shared(estimated: np.ndarray, given: Given, rewards: np.ndarray | None = None) -> Outputs:
    """One advantage a trajectory; with what it was compared, where it is a difference."""
    tokens = tok.broadcast(estimated, given.mask)
    outputs: Outputs = {"advantages": (estimated, tokens), "token_advantages": (tokens,)}
    if rewards is not None:
        _, first = np.unique(given.groups, return_index=True)
        found = group_statistics(rewards, given.groups)
        for name, x in (("baseline", rewards - estimated), ("mean", found.mean), ("std", found.std)):
            forms = (x, x[first], tok.broadcast(x, given.mask))
            outputs |= dict.fromkeys(
                (name, f"group_{name}", f"{name}s", f"{name}_g", f"group_{name}s"), forms
            )
    return outputs


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
    return shared(adv.group_relative(*given.compared, **knobs), given, given.compared[0])


def compared(estimator: Callable[..., np.ndarray], given: Given, **knobs: tuple[str, ...]) -> Outputs:
    """Estimators of rewards and groups, with their keywords and other names for them."""
    keywords: Case = {}
    for name, names in knobs.items():
        keywords |= given.keyword(name, *names)
    if "norm_adv_by_std" in keywords:
        keywords["norm_adv_by_std"] = NORMS.get(keywords["norm_adv_by_std"], keywords["norm_adv_by_std"])
    return shared(estimator(*given.compared, **keywords), given, given.compared[0])


def gpg(given: Given) -> Outputs:
    """With the factor on the differences from the group's mean."""
    centered, scaled = adv.group_centered(*given.compared), adv.gpg(*given.compared)
    factor = np.abs(scaled).max() / max(np.abs(centered).max(), 1e-300)
    return {**shared(scaled, given), **dict.fromkeys(("alpha", "scale", "factor"), (factor,))}


def remax(given: Given) -> Outputs:
    rewards = given.array(*REWARDS)
    outputs = shared(adv.remax(rewards, given.by_row(*GREEDY)), given, rewards)
    return {**outputs, "returns": (tok.broadcast(rewards, given.mask),)}


def gdpo(given: Given) -> Outputs:
    parts = given.get(*PARTS, default=None)
    if parts is None:  # a matrix under the plain name, or one list a part
        parts = {name: x for name, x in given.inputs.items() if "reward" in name and "weight" not in name}
        total = parts.pop("rewards", None) if len(parts) > 1 else parts.get("rewards", 0)
        parts = total if isinstance(total, dict) or np.ndim(total) == 2 else parts
    weights = given.get("reward_weights", "weights", "gdpo_reward_weights", "component_weights", default=None)
    if isinstance(parts, dict):
        weights = [weights[name] for name in parts] if isinstance(weights, dict) else weights
        parts = list(parts.values())
    rows = given.rounded(parts)
    rows = rows if len(rows) == len(given.groups) else rows.T
    knobs: Case = {"reward_weights": weights, "lengths": given.lengths, **given.keyword("eps", "epsilon")}
    columns = [adv.group_normalized(x, given.groups, **given.keyword("eps", "epsilon")) for x in rows.T]
    total = np.stack(columns, 1) @ (np.ones(len(columns)) if weights is None else np.array(weights))
    forms = (total, tok.broadcast(total, given.mask))
    names = ("combined", "summed", "sum", "combined_advantages", "pre_whitening", "before_whitening")
    outputs = shared(adv.gdpo(rows, given.groups, **knobs), given) | dict.fromkeys(names, forms)
    stacked = np.stack(columns, 1), np.stack(columns)
    return outputs | dict.fromkeys(("per_reward", "per_reward_advantages", "component_advantages"), stacked)


def spo(given: Given) -> Outputs:
    alpha, beta = (given.by_row(name, f"{name}_before", f"{name}s") for name in ("alpha", "beta"))
    knobs = given.keyword("eps", "whiten_eps", "epsilon")
    rewards, trackers = given.array(*REWARDS), [BetaTracker(*pair) for pair in zip(alpha, beta, strict=True)]
    values = np.array([tracker.value for tracker in trackers])
    outputs = shared(adv.spo(rewards, alpha, beta, **knobs), given)
    names = ("baseline", "value", "values", "v", "p_hat", "baselines", "tracker_value")
    outputs |= dict.fromkeys(names, (values, np.unique(values)))
    outputs |= dict.fromkeys(("raw", "raw_advantages", "advantages_raw", "difference"), (rewards - values,))
    drift = given.get("D", "divergence", "kl", "divergences", default=None)
    if drift is not None:
        pairs = zip(trackers, rewards, np.broadcast_to(drift, rewards.shape), strict=True)
        after = [tracker.update(float(r), float(d)) for tracker, r, d in pairs]
        for name in ("alpha", "beta"):
            forms = (np.array([getattr(tracker, name) for tracker in after]),)
            outputs |= dict.fromkeys((f"{name}_after", f"{name}_new", f"new_{name}", f"{name}_next"), forms)
    return outputs


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
        knobs |= given.keyword("alpha", *given.matching("alpha"))
        knobs |= given.keyword(
            "critic_lam", *given.matching("(lam|lambda).*(critic|value)|(critic|value).*lam")
        )
        advantages, returns = tok.vapo_gae(*tokens, **knobs)
        lam = tok.length_adaptive_lam(given.mask, alpha=knobs.get("alpha", 0.05))
        lams = dict.fromkeys(
            ("lam", "lambda", "lambdas", "lam_policy", "lambda_policy", "policy_lam"), (lam,)
        )
        return by_token(advantages, returns=returns) | lams | whitened_forms(advantages, given)
    advantages, returns = tok.gae(*tokens, **knobs, **given.keyword("lam", "lambda", "gae_lambda"))
    return by_token(advantages, returns=returns) | whitened_forms(advantages, given)


def whitened_forms(advantages: np.ndarray, given: Given) -> Outputs:
    return {"advantages_whitened": (tok.whiten(advantages, given.mask),)}


def distillation(given: Given) -> Outputs:
    student = given.array("rollout_logprobs", "old_logprobs", "logprobs", "student_logprobs")
    tokens = student, given.array("teacher_logprobs"), given.mask
    knobs = given.keyword("coef", "opd_kl_coef", "kl_coef") | given.keyword("gamma")
    advantages = tok.on_policy_distillation(*tokens, **knobs)
    gap = -tok.on_policy_distillation(*tokens).sum() / max(given.mask.sum(), 1)
    return by_token(advantages, reverse_kl_mean=gap)


def mt_grpo(given: Given) -> Outputs:
    outcome, turn = given.array("outcome_rewards", *REWARDS), given.array("turn_rewards", "rewards_turn")
    knobs = given.keyword("turn_advantage_coef", *given.matching("coef|lam|weight|alpha"))
    turns = np.where(given.mask, turns_of(given), -1)
    knobs |= given.keyword("eps", "epsilon")
    outputs = by_token(tok.mt_grpo(outcome, turn, given.groups, turns, given.mask, **knobs))
    eps = {"eps": 1e-4, **given.keyword("eps", "epsilon")}
    for name, rewards in (("outcome", outcome), ("turn", turn)):
        forms = shared(adv.group_normalized(rewards, given.groups, **eps), given)["advantages"]
        outputs |= dict.fromkeys((f"{name}_advantages", f"advantages_{name}", f"{name}_advantage"), forms)
    return outputs


def gigpo(given: Given) -> Outputs:
    steps = steps_of(given)
    groups, episodes = given.groups, given.array(*REWARDS, default=steps.rewards.sum(1))
    groups, episodes = (x if len(x) == len(steps.first) else x[steps.first] for x in (groups, episodes))
    knobs = given.keyword("gamma", "step_gamma", "gamma_step", "discount")
    knobs |= given.keyword("omega", "step_advantage_w", "w", "step_weight", "step_coef")
    knobs |= given.keyword("eps", "epsilon")
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
    step, names = total - episode, ("{}_advantages", "advantages_{}", "{}_adv", "A_{}", "{}_level_advantages")
    outputs |= {name.format("step"): (step[steps.at],) for name in names}
    return outputs | {name.format("episode"): (episode[:, 0], episode[steps.at]) for name in names}


ESTIMATORS: dict[str, Callable[[Given], Outputs]] = {
    "rloo": partial(compared, adv.rloo),
    "gpg": gpg,
    "maxrl": partial(compared, adv.maxrl, eps=("epsilon",)),
    "grpo_passk": partial(compared, adv.grpo_passk, eps=("epsilon",), norm_adv_by_std=NORM),
    "opmd": partial(compared, adv.opmd, tau=("opmd_tau",), baseline=("opmd_baseline",)),
    "grpo": relative,
    "dr_grpo": partial(relative, norm_adv_by_std="none"),
    "lite_ppo": partial(relative, norm_adv_by_std="batch"),
    "opo": lambda given: shared(adv.opo(*given.compared, lengths=given.lengths), given, given.compared[0]),
    "reinforce": lambda given: shared(adv.reinforce(*given.compared), given),
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
    "passk": "grpo_passk",
    "grpo_pass_k": "grpo_passk",
    "liteppo": "lite_ppo",
    "drgrpo": "dr_grpo",
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
            given.check_config(
                ("adv_estimator", "kl_coef", *ONLY, *NORM)
            )  # the KL may be in the rewards already
            for form in (form for forms in outputs.values() for form in forms):
                assert np.shape(form) != given.mask.shape or not np.any(np.asarray(form)[~given.mask])
            compare(outputs, asked[name], tolerance)


CHECKS: dict[str, Callable[[Case, torch.dtype, Tolerance], None]] = {"advantage": advantage}
"""What checks a file, by its kind."""
