"""Numbers of the plug-in rules (rl/rules.py) by hand, and what a golden file's configuration calls them."""

from __future__ import annotations

from math import exp, log
from typing import NamedTuple

from rl.rules import RULE_ALIASES, RULE_KNOBS, Knobs, rule_knobs
from tests.rl.golden_config import Case, NotOfferedError, rule_name, say_unread

LN2, E = log(2), exp(0.1)
HIGH, LOW, DOWN, UP = (0, 0, "high"), (0, 0, "low"), (-2, -2, ""), (2, 2, "")
COVARY = [(-1, 0, 2), (-4, 0, 2), (-0.5, 0, -2), (-2.5, 0, -2)]
"""Mean A = 0, mean log π = -2: covariances 2 · 1 = 2, 2 · (-2) = -4, -2 · 1.5 = -3 and -2 · (-0.5) = 1."""

Token = tuple[float, float, float]
CASES: list[tuple[str, dict[str, float], list[Token], list[tuple[float, float, str]]]] = [
    # r = 2, τ = 1: -2 · 4 σ(1) = -8 · 0.731059, -2 · 4 σ'(1) r = -16 · 0.196612
    ("sapo", {}, [(-1, LN2, 2)], [(-5.848468629, -3.145790932, "")]),
    # r = ½, τ = 1.05: 4 / 1.05 · σ(-0.525) = 3.809524 · 0.371684, 4 σ' r = 2 · 0.233535
    ("sapo", {}, [(-1, -LN2, -1)], [(1.415938330, 0.467069996, "")]),
    ("sapo", {}, [(-1, 21, -1)], [(4 / 1.05, 0, "net")]),  # σ = 1
    # 0.6 → 0.4, open below: -2 exp((0.4 - 0.2) / 2) for both, and only the second moves it
    ("gmpo", {}, [(-1, 0.6, 2), (-1, -0.2, 2)], [(-2 * E, 0, "high"), (-2 * E, -2 * E, "")]),
    # open above, -0.9 → -0.4: exp((0.6 - 0.4) / 2)
    ("gmpo", {}, [(-1, 0.6, -1), (-1, -0.9, -1)], [(E, E, ""), (E, 0, "low")]),
    # s = exp(0.002 / 2) = 1.0010005 is inside: -2 s · length 2; e^0.01 → 1.0025; e^-0.01 → 0.998
    ("luspo", {}, [(-1, 0.002, 2), (-1, 0, 2)], [(-4.004002001, -4.004002001, "")] * 2),
    ("luspo", {}, [(-1, 0.02, 2), (-1, 0, 2)], [(-4.01, 0, "high")] * 2),
    ("luspo", {}, [(-1, -0.02, -1), (-1, 0, -1)], [(1.996, 0, "low")] * 2),
    # 0.3 · 4 = 1.2 drops one of the two tokens above 0.5, the one that covaries more; ½ · 4 both
    ("clip_cov", {"clip_cov_ratio": 0.3, "clip_cov_lb": 0.5}, COVARY, [HIGH, DOWN, UP, UP]),
    ("clip_cov", {"clip_cov_ratio": 0.5, "clip_cov_lb": 0.5}, COVARY, [HIGH, DOWN, UP, LOW]),
    # an upper end of 2 spares token 0, and a share of next to nothing is one token all the same
    ("clip_cov", {"clip_cov_ub": 2.0, "clip_cov_lb": 0.5}, COVARY, [DOWN, DOWN, UP, LOW]),
    # by default one token goes, and a covariance of 1 is not above clip_cov_lb
    ("clip_cov", {"clip_cov_lb": 0.5}, COVARY, [HIGH, DOWN, UP, UP]),
    ("clip_cov", {"clip_cov_ratio": 0.5}, COVARY, [HIGH, DOWN, UP, UP]),
    # mean A = 2, mean log π = -2: 2 · (-1), -1 · 0 and -1 · 1
    (
        "clip_cov",
        {"clip_cov_lb": -0.5},
        [(-3, 0, 4), (-2, 0, 1), (-1, 0, 1)],
        [(-4, -4, ""), HIGH, (-1, -1, "")],
    ),
    # token 0 is PPO's already, -2 · 1.2, so the one that goes is token 3
    ("clip_cov", {"clip_cov_lb": 0.5}, [(-1, 1, 2), *COVARY[1:]], [(-2.4, 0, "high"), DOWN, UP, LOW]),
    # PPO's lower end, 2 · 0.8; clip_ratio_low 1 is no end at all: 2 e⁻²
    ("clip_cov", {}, [(-1, -2, -2)], [(1.6, 0, "low")]),
    ("clip_cov", {"clip_ratio_low": 1.0}, [(-1, -2, -2)], [(0.270670566, 0.270670566, "")]),
    # ½ · 4 is tokens 0 and 3: -2 · 2 + 0.1 ln 2, 2 · ½ + 0.1 ln 2, gradients ±0.1
    (
        "kl_cov",
        {"kl_cov_ratio": 0.5},
        [(-1, LN2, 2), *COVARY[1:3], (-2.5, -LN2, -2)],
        [(-3.930685282, -3.9, ""), DOWN, UP, (1.069314718, 0.9, "")],
    ),
    # equal covariances: the first is chosen; e²⁰ for e²¹, without a gradient
    ("kl_cov", {"ppo_kl_coef": 1e8}, [(-1, 21, -1)] * 2, [(exp(20) + 21e8, 1e8, "net"), (exp(20), 0, "net")]),
    # p - q = ½ - ¼ > 0.2 and A > 0 pushes on, ¼ - ½ < -0.2 and A < 0 pushes on; the others return
    ("dppo_tv", {}, [(-LN2, LN2, 2), (-2 * LN2, -LN2, 2)], [HIGH, (-1, -1, "")]),
    ("dppo_tv", {}, [(-2 * LN2, -LN2, -1), (-LN2, LN2, -1)], [LOW, UP]),
    ("dppo_tv", {}, [(log(0.3), LN2, 2), (-1, 21, -1)], [(-4, -4, ""), (exp(20), 0, "net")]),
    ("dppo_tv", {}, [(-1, 21, 2)], [HIGH]),  # left out, so the net holds nothing
    # q = ¼, p = ½: ¼ ln ½ + ¾ ln(¾ / ½) = -0.173287 + 0.304099 = 0.130812
    ("dppo_kl", {"clip_ratio_high": 0.1308}, [(-LN2, LN2, 2), (-2 * LN2, -LN2, 2)], [HIGH, (-1, -1, "")]),
    ("dppo_kl", {"clip_ratio_high": 0.1309}, [(-LN2, LN2, 2)], [(-4, -4, "")]),
    # q = ½, p = ¼: ½ ln 2 + ½ ln(½ / ¾) = 0.346574 - 0.202733 = 0.143841
    ("dppo_kl", {"clip_ratio_low": 0.1438}, [(-2 * LN2, -LN2, -1), (-LN2, LN2, -1)], [LOW, UP]),
    ("dppo_kl", {"clip_ratio_low": 0.1439}, [(-2 * LN2, -LN2, -1)], [(0.5, 0.5, "")]),
    # q = 0.999, p rounds to 1: 0.001 ln(0.001 / 1e-8) - 0.001 = 0.0105 and not infinite
    ("dppo_kl", {"clip_ratio_high": 0.0104}, [(0, -log(0.999), 1)], [HIGH]),
    ("dppo_kl", {"clip_ratio_high": 0.0106}, [(0, -log(0.999), 1)], [(-1 / 0.999, -1 / 0.999, "")]),
    # 2 + 0.05 · 0.4², -2 + 0.1 · 0.4; -2 + 0.05 · 0.2², 1 - 0.1 · 0.2
    ("kimi", {}, [(-1, 0.4, 2), (-2, -0.2, -1)], [(2.008, -1.96, ""), (-1.998, 0.98, "")]),
    # A > 0: weight 1 whatever the ratio; A < 0: the product ½ · ½, or 4 → 1
    ("topr", {}, [(-1, 5, 2), (-2, 0.4, 2)], [(2, -2, ""), (4, -2, "")]),
    ("topr", {}, [(-1, -LN2, -1), (-2, -LN2, -1)], [(-0.25, 0.25, ""), (-0.5, 0.25, "")]),
    ("topr", {}, [(-1, 3 * LN2, -1), (-2, -LN2, -1)], [(-1, 1, "dual"), (-2, 1, "dual")]),
    ("opmd", {}, [(-1, 3, 2), (-2, -4, -1)], [(1, -1, ""), (-1, 0.5, "")]),  # τ = 1 halves
    # w = 2 · 1: φ = 2² e^(3 (1 - 2)) = 4 · 0.049787 where A > 0, 2³ e^(2 (1 - 2)) = 8 · 0.135335 where A < 0
    ("vespo", {}, [(-1, LN2, 2), (0, 0, 2)], [(0.398296547, -0.398296547, ""), (0, -0.398296547, "")]),
    ("vespo", {}, [(-1, LN2, -1), (0, 0, -1)], [(-1.082682266, 1.082682266, ""), (0, 1.082682266, "")]),
    ("vespo", {}, [(-1, 11, -1), (-1, 10, 0)], [(0, 0, "net"), (0, 0, "")]),  # w = e²¹; A = 0 has no loss
    ("vespo", {"k_neg": 0.5, "lambda_neg": 0.0}, [(-1, 1000, -1)], [(-exp(10), exp(10), "net")]),  # (e²⁰)^½
]
"""A rule, its knobs, a row of tokens as (log π, log r, A), and their (loss, gradient, counter)."""

BOTH = ("clip_ratio_low", "clip_ratio_high")
EPSILON = {"epsilon": BOTH, "epsilon_low": BOTH[:1], "epsilon_high": BOTH[1:]}
CLIP = {**EPSILON, **dict.fromkeys(("clip_ratio", "eps_clip", "clip", "eps"), BOTH)}
CLIP |= {"eps_low": BOTH[:1], "eps_high": BOTH[1:], "clip_low": BOTH[:1], "clip_high": BOTH[1:]}
DIVERGENCE = {"delta": BOTH, "delta_low": BOTH[:1], "delta_high": BOTH[1:], "threshold": BOTH}
DIVERGENCE |= {"delta_l": BOTH[:1], "delta_h": BOTH[1:]}
SPELLINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "sapo": {"sapo_temperature_pos": ("tau_pos",), "sapo_temperature_neg": ("tau_neg",)},
    "gmpo": CLIP,
    "luspo": CLIP,
    # clip_ratio has no place here: it is the share of tokens in SkyRL, and PPO's clip in verl.
    "clip_cov": {**EPSILON, "clip_cov_frac": ("clip_cov_ratio",), "frac": ("clip_cov_ratio",)}
    | {"lb": ("clip_cov_lb",), "ub": ("clip_cov_ub",)},
    "kl_cov": {"kl_cov_frac": ("kl_cov_ratio",), "frac": ("kl_cov_ratio",), "coef": ("ppo_kl_coef",)},
    "dppo_tv": {**CLIP, **DIVERGENCE},
    "dppo_kl": {**CLIP, **DIVERGENCE},
    "kimi": {"kimi15_tau": ("tau",), "dro_beta": ("tau",), "beta": ("tau",)},
    "topr": {},
    "opmd": {"opmd_tau": ("tau",)},
    "vespo": {f"vespo_{knob}": (knob,) for knob in ("k_pos", "lambda_pos", "k_neg", "lambda_neg")},
}
"""By rule: which knobs another library's name sets."""

LEVELS = {"gmpo": ("token", "sequence"), "luspo": ("sequence",), "topr": ("product",), "vespo": ("product",)}
"""What importance_sampling_level may say of a rule that forms a row's ratio; of the others, token."""

AGG_MODES = {"gmpo": ("seq-mean-token-mean",), "luspo": ("seq-mean-token-mean", "seq-mean-token-sum")}
"""Rules whose value is a row's, averaged over rows: the mode that does so, and what else may stand for it.

LUSPO as GSPO under seq-mean-token-sum is our luspo, which has the length in it, under seq-mean-token-mean.
"""

AROUND = ("loss_agg_mode", "loss_scale_factor", "kl_loss_coef", "kl_loss_type", "entropy_coeff")
AROUND += ("rollout_is", "C", "C_low", "geo", "bypass_mode")


class GoldenRule(NamedTuple):
    """A rule's name in RULES, all of its knobs, and what the configuration says besides (AROUND)."""

    name: str
    knobs: Knobs
    around: Case


def rule_of(config: Case) -> GoldenRule:
    """The rule that a golden file's policy-loss configuration names; NotOfferedError, with why, if none."""
    name = rule_name(config["policy_loss"])
    name = RULE_ALIASES.get(name, name)
    if name not in SPELLINGS:
        raise NotOfferedError(f"policy_loss {config['policy_loss']!r} is no plug-in rule")
    given = {key: value for key, value in config.items() if key != "policy_loss" and value is not None}
    around = {key: given.pop(key) for key in AROUND if key in given}
    if (level := given.pop("importance_sampling_level", None)) not in (None, *LEVELS.get(name, ("token",))):
        raise NotOfferedError(f"{name} with importance_sampling_level {level!r}")
    if modes := AGG_MODES.get(name):
        given_mode = around.get("loss_agg_mode", modes[0])
        around["loss_agg_mode"] = modes[0] if given_mode in modes else given_mode
    settings = [(SPELLINGS[name].get(key, (key,)), value) for key, value in given.items()]
    known = RULE_KNOBS[name].keys()
    say_unread({knobs[0]: value for knobs, value in settings if not known & {*knobs}})
    overrides: Case = {}
    for knobs, value in sorted(settings, key=lambda setting: -len(setting[0])):  # one side overrules both
        overrides |= dict.fromkeys(known & {*knobs}, value)
    try:
        return GoldenRule(name, rule_knobs(name, overrides), around)
    except (TypeError, ValueError) as error:
        raise NotOfferedError(f"{name}: {error}") from error
