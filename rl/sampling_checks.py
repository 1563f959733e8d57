"""What is refused of how training samples: filters, their replay, and dynamic sampling."""

from __future__ import annotations

from collections.abc import Iterator

from envs.policy import MAX_KEPT
from rl.config import Config
from rl.objective import Objective
from rl.policy_gradient import PolicyGradient


def sampling_problems(config: Config, algorithm: Objective) -> Iterator[str]:
    """What the engine draws must be what the learner weighs, or be corrected for."""
    for name in ("max_draws_per_group", "at_max_draws"):
        if getattr(config, name) != getattr(Config, name) and not algorithm.dynamic_sampling:
            yield (
                f"{name} has no effect: algorithm {config.algorithm!r} takes groups as they come; leave it "
                "out, or set dynamic_sampling"
            )
    used = [
        f"{name} = {getattr(config, name)}"
        for name in ("top_p", "top_k", "min_p")
        if getattr(config, name) != getattr(Config, name)
    ]
    if config.replay_sampling_mask:
        yield from _replay_problems(config, algorithm, used)
    elif used:
        yield from _mismatch_problems(config, algorithm, " and ".join(used))


def _mismatch_problems(config: Config, algorithm: Objective, used: str) -> Iterator[str]:
    """The learner's log-probs are of all tokens: the difference must be corrected for, and be bounded."""
    if isinstance(algorithm, PolicyGradient) and algorithm.rollout_is == "none" and not algorithm.bypass_mode:
        yield (
            f"{used}: the engine draws from fewer tokens than the learner's log-probs are of, "
            f"and algorithm {config.algorithm!r} corrects for nothing; set rollout_is (token_tis), "
            "bypass_mode or replay_sampling_mask, or leave it out"
        )
    if config.max_gap is None and (config.top_k or config.min_p):
        yield (
            f"{used}: the engine's log-probs rise by what is cut away, which has no bound "
            "that is known beforehand; give max_gap (nats), the largest difference of a token that is "
            "allowed, or set replay_sampling_mask"
        )


def _replay_problems(config: Config, algorithm: Objective, used: list[str]) -> Iterator[str]:
    """The learner normalises over what could be drawn: that must be known, and be what the row means.

    A reference is allowed: its log-probs are over the same ids, so a KL to it is that of the two filtered
    policies.
    """
    if not used:
        yield (
            "replay_sampling_mask has no effect: every token can be drawn; set top_k (top_p and min_p may "
            "stand beside it), or leave it out"
        )
    elif not 2 <= config.top_k <= MAX_KEPT:
        yield (
            f"replay_sampling_mask with top_k = {config.top_k}: the engine returns at most {MAX_KEPT} "
            f"ids a token, and of one there is nothing to learn; set top_k to 2 to {MAX_KEPT}"
        )
    if not isinstance(algorithm, PolicyGradient):
        yield (
            f"replay_sampling_mask with algorithm {config.algorithm!r}: only a policy gradient asks how "
            "likely a token was when it was drawn, this one learns the whole distribution; leave it out"
        )
        return
    if algorithm.uses_teacher:
        yield (
            f"replay_sampling_mask with algorithm {config.algorithm!r}: what the teacher says of tokens that "
            "the policy could not draw would be lost; leave it out"
        )
    if algorithm.z_loss_coef:
        yield (
            f"replay_sampling_mask with z_loss_coef = {algorithm.z_loss_coef}: log Z would be of the tokens "
            "that could be drawn alone, and the other logits stay free; leave one of them out"
        )
