"""The table of preference losses: what is wrong, or without effect in a row, is refused."""

import re

import pytest
import torch

from rl.preference_rows import PREFERENCES, get_preference
from rl.preferences import PreferenceLoss
from rl.preferences import bradley_terry_loss as bt_loss

X, MASK = torch.zeros(2, 3), torch.ones(2, 3)
DPO, KTO, SIMPO = (PREFERENCES[name] for name in ("dpo", "kto", "simpo"))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("unknown preference loss 'dpoo'; did you mean 'dpo'", lambda: get_preference("dpoo")),
        ("unknown knob of preference loss 'dpo' 'betta'", lambda: get_preference("dpo", betta=1.0)),
        ("did you mean 'sigmoid'", lambda: get_preference("dpo", loss_type="sigmoidd")),
        ("label_smoothing = 0.5: expected", lambda: get_preference("cdpo", label_smoothing=0.5)),
        ("beta = 0.0: expected more than 0", lambda: get_preference("dpo", beta=0.0)),
        ("exactly one of gamma", lambda: get_preference("simpo", gamma=0.5, gamma_beta_ratio=0.5)),
        ("exactly one of gamma", lambda: PreferenceLoss(name="neither", loss_type="simpo")),
        ("exactly one of gamma", lambda: get_preference("dpo", loss_type="simpo")),
        ("gamma = 0.0 has no effect in preference loss 'dpo'", lambda: get_preference("dpo", gamma=0.0)),
        ("beta = 0.1 has no effect", lambda: get_preference("orpo", beta=0.1)),
        ("'dpo' needs ref_logprobs", lambda: DPO.loss(X, X, MASK, MASK)),
        ("'simpo' has no reference", lambda: SIMPO.loss(X, X, MASK, MASK, X, X)),
        ("call unpaired_loss", lambda: KTO.loss(X, X, MASK, MASK, X, X)),
        ("'dpo' compares pairs", lambda: DPO.unpaired_loss(X, X, MASK, MASK[:, 0], 0.0)),
        ("ref_logprobs has shape (2, 2), expected (2, 3)", lambda: DPO.loss(X, X, MASK, MASK, X[:, :2], X)),
        ("rejected_mask has shape (1, 3)", lambda: SIMPO.loss(X, X[:1], MASK, MASK[:1])),
        ("desirable has shape (2, 3), expected (2,)", lambda: KTO.unpaired_loss(X, X, MASK, MASK, 0.0)),
        ("rejected_scores has shape (1, 3), expected (2, 3)", lambda: bt_loss(X, X[:1])),
    ],
)
def test_what_is_wrong_or_without_effect_is_refused(message, call):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
    assert get_preference("simpo", beta=None, gamma=None) == SIMPO  # None keeps the row's own
