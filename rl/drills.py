"""The drills of --sabotage (rollout/sabotage.py says what each breaks)."""

from __future__ import annotations

from typing import Literal

Sabotage = Literal[
    "",
    "skip_tensor",
    "skip_fused_half",
    "swap_rows",
    "no_retie",
    "dead_copy",
    "no_adapter",
    "perturb_learner",
]
