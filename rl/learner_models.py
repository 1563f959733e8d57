"""The language models that a learner works with, as its spec has them."""

from __future__ import annotations

from rl.frozen_base import load_base
from rl.learner_spec import LearnerSpec
from rl.model import PolicyModel, load_causal_lm


def load_policy(spec: LearnerSpec, path: str = "") -> PolicyModel:
    """The policy, which is the reference as well, on its device; or with `path` the teacher.

    Raises:
        ValueError: what is there cannot be read as a causal language model.
    """
    algorithm = spec.algorithm
    return PolicyModel(
        load_causal_lm(path) if path else load_base(spec.model, spec.lora, device=spec.device),
        temperature=spec.temperature,
        entropy_gradient=algorithm.entropy_gradient,
        value_head=algorithm.critic == "head",
        jsd_beta=algorithm.jsd_beta,
        needs_log_z=algorithm.needs_log_z,
        router_loss=algorithm.uses_router_loss,
        # A reference replays too: at the start it is the policy, and its KL 0. A teacher may be anything.
        replay_routing=spec.replay_routing and not path,
        head_dtype=spec.precision.head_dtype,
    ).to(spec.device)
