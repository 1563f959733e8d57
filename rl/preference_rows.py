"""The table of preference losses, and one of them by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from envs.names import unknown_name
from rl.preferences import USED_BY, PreferenceLoss

PREFERENCES: dict[str, PreferenceLoss] = {
    row.name: row
    for row in (
        PreferenceLoss(name="dpo"),  # arXiv 2305.18290, eq. 7
        PreferenceLoss(name="rpo", rpo_alpha=1.0),  # Iterative RPO, arXiv 2404.19733, section 3.1
        PreferenceLoss(name="cdpo", label_smoothing=0.1),  # a tenth of the labels wrong: a guess of ours
        PreferenceLoss(name="robust", loss_type="robust", label_smoothing=0.1),  # arXiv 2403.00409
        PreferenceLoss(name="ipo", loss_type="ipo"),  # arXiv 2310.12036
        PreferenceLoss(name="hinge", loss_type="hinge"),  # SLiC-HF, arXiv 2305.10425
        PreferenceLoss(name="dpo_norm", loss_type="sigmoid_norm", beta=5.0),  # Tülu 3, arXiv 2411.15124
        PreferenceLoss(name="simpo", loss_type="simpo", beta=2.0, gamma_beta_ratio=0.25),  # arXiv 2405.14734
        PreferenceLoss(name="kto", loss_type="kto"),  # arXiv 2402.01306
        PreferenceLoss(name="orpo", loss_type="orpo"),  # arXiv 2403.07691; lambda of TRL
    )
}


def get_preference(name: str, **overrides: Any) -> PreferenceLoss:
    """The row `name`, knobs overridden (None: its own); ValueError for what is unknown or has no effect."""
    if name not in PREFERENCES:
        raise ValueError(unknown_name("preference loss", name, PREFERENCES))
    for knob in overrides:
        if knob not in USED_BY:
            raise ValueError(unknown_name(f"knob of preference loss {name!r}", knob, USED_BY))
    given = {knob: value for knob, value in overrides.items() if value is not None}
    if given.keys() & {"gamma", "gamma_beta_ratio"}:  # either takes the place of the row's own
        given = {"gamma": None, "gamma_beta_ratio": None, **given}
    row = replace(PREFERENCES[name], **given)
    for knob, users in USED_BY.items():
        if given.get(knob) is not None and row.loss_type not in users:
            where = f"it is for loss_type {', '.join(users)}; leave it out"
            raise ValueError(f"{knob} = {given[knob]!r} has no effect in preference loss {name!r}: {where}")
    return row
