"""Privileged contexts: what the teacher of self-distillation reads before a sample, and the student does not.

On-policy self-distillation (arXiv 2601.18734; prime-rl's opsd): the teacher is the policy itself, told more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from envs.messages import Message, message
from rl.samples import TrainSample
from rollout.renderer import ChatMLRenderer

ANSWER = "{answer}"
"""What stands in a hint for the task's reference answer."""


def hint_message(hint: str, answer: str | None) -> Message:
    """The system message that says `hint`, with the task's answer in it.

    A hint without "{answer}" says the same of every task (context distillation, arXiv 2112.00861).

    Raises:
        ValueError: the hint names an answer and the task has none.
    """
    if ANSWER in hint and answer is None:
        raise ValueError(
            f"hint = {hint!r} tells the teacher the task's answer, and the task has none (Task.answer is "
            f"None); use tasks with reference answers, or a hint without {ANSWER}"
        )
    return message("system", hint.replace(ANSWER, answer or ""))


def hinted(sample: TrainSample, messages: Sequence[Message], renderer: ChatMLRenderer) -> TrainSample:
    """`sample` behind the turns of `messages`: its last T tokens are its own, under the mask they had.

    Example, hint H, prompt P0, answer A0:
        token_ids = P0           + A0               H           + P0           + A0
        loss_mask = [0]*len(P0)  + [1]*len(A0)      [0]*len(H)  + [0]*len(P0)  + [1]*len(A0)
    """
    token_ids = np.array(renderer.render_before(messages, sample.token_ids.tolist()), np.int64)
    num_before = len(token_ids) - len(sample.token_ids)

    def behind(fill: float, values: np.ndarray) -> np.ndarray:
        return np.concatenate([np.full(num_before, fill, values.dtype), values])

    experts = sample.routed_experts
    if experts is not None:  # of the hint nothing is known
        free = np.full((num_before, *experts.shape[1:]), -1, experts.dtype)
        experts = np.concatenate([free, experts])
    return replace(
        sample,
        token_ids=token_ids,
        loss_mask=behind(False, sample.loss_mask),
        rollout_logprobs=behind(np.nan, sample.rollout_logprobs),
        versions=behind(-1, sample.versions),
        turn_ids=behind(-1, sample.turn_ids),
        routed_experts=experts,
    )
