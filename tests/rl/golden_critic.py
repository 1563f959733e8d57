"""The golden files of kinds value_loss, controller and reward_shaping."""

from __future__ import annotations

import numpy as np
import torch

from rl.advantages import overlong_penalty
from rl.critic import AdaptiveKlController, value_loss
from rl.numerics import add_metrics, metric_values
from tests.rl.golden_config import Case
from tests.rl.golden_given import Given, Outputs, Tolerance, compare, flat

SPLITS = ((slice(None),), (slice(0, 3), slice(3, 4), slice(4, None)))


def clipped_value_loss(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """As it is, with garbage at mask 0, and split into micro-batches."""
    expected = {**case["expected"], **case["expected"].get("metrics", {})}
    expected.pop("metrics", None)
    for garbage in (False, True):
        given = Given(case["inputs"], case["config"], dtype, garbage)
        clip = given.get("cliprange_value", "value_clip", "cliprange", "eps_clip_value", "c", default=None)
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
            values = metric_values(add_metrics(sums))
            outputs: Outputs = {name.removeprefix("critic/"): (x,) for name, x in values.items()}
            outputs |= {"loss": (total,), "grad_values": (leaf.grad,), "grad": (leaf.grad,)}
            outputs |= dict.fromkeys(("vf_clip_frac", "value_clip_frac"), outputs["clip_frac"])
            compare(outputs, expected, tolerance)


def kl_controller(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """Measured KLs one after the other, or each from the start."""
    given = Given(case["inputs"], case["config"], dtype)
    start = given.get("init_kl_coef", "init_coef", "kl_coef_init", "kl_coef", "beta", "beta0", "init_value")
    target, horizon = given.get("target_kl", "kl_target", "target"), given.get("horizon", "kl_horizon")
    first = AdaptiveKlController(kl_coef=start, target_kl=target, horizon=horizon)
    names = ("kls", "current_kl", "observed_kl", "kl_observed", "current_kls", "kl_values", "kl_sequence")
    measured = flat(given.get("kl", *names, "measured_kl", "measured_kls", "observed_kls"))
    counts = flat(given.get("num_trajectories", "n_steps", "n", "batch_size", "num_steps", "steps"))
    pairs = list(zip(measured.tolist(), np.broadcast_to(counts, measured.shape), strict=True))
    controllers = [first]
    for kl, count in pairs:
        controllers.append(controllers[-1].update(kl, count))
    coefs = [controller.kl_coef for controller in controllers]
    alone = [first.update(kl, count).kl_coef for kl, count in pairs]
    forms = (coefs[1:], coefs, alone, coefs[-1])
    words = ("kl_coef", "kl_coefs", "coefs", "coef", "values", "value", "beta", "betas", "new_beta")
    words += (
        "new_kl_coef",
        "kl_ctl",
        "beta_after",
        "trajectory",
        "sequence",
        "kl_coef_after",
        "kl_coef_next",
    )
    compare(dict.fromkeys(words, forms), case["expected"], tolerance)


def overlong(case: Case, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """DAPO's penalty on the last of the tokens that a response may have."""
    given = Given(case["inputs"], case["config"], dtype)
    factor = given.get("overlong_penalty_factor", "penalty_factor", default=1.0)
    knobs = {name: given.get(name) for name in ("max_response_length", "overlong_buffer_len")}
    lengths = given.array("lengths", "response_lengths")
    penalty = overlong_penalty(lengths, overlong_penalty_factor=factor, **knobs)
    words = ("penalty", "penalties", "reward", "rewards", "overlong_penalty")
    compare(dict.fromkeys(words, (penalty,)), case["expected"], tolerance)


CHECKS = {"value_loss": clipped_value_loss, "controller": kl_controller, "reward_shaping": overlong}
"""What checks a file, by its kind."""
