"""What a golden file gives, looked up by any of several names, and the comparison with what it expects."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.rl.golden_config import Case, UnreadError, say_unread

Tolerance = dict[str, Any]
Outputs = dict[str, tuple[Any, ...]]
"""By name in `expected`: the values in every form that a file may ask for (a trajectory's, a token's)."""

GARBAGE = (float("nan"), float("inf"), -float("inf"), 1e9)
GROUPS = ("group_ids", "groups", "group_id", "index", "uid", "prompt_ids")
TURNS = ("turn_ids", "turn_index", "turn_id", "turns", "step_ids", "step_index")
ANCHORS = ("anchors", "anchor_obs", "anchor_ids", "anchor_states", "anchor", "states", "observations")
REWARDS = ("rewards", "outcome_rewards", "rewards_outcome", "episode_rewards", "scores", "returns", "reward")
REMARKS = ("note", "notes", "comment", "comments", "description")
ALLOWANCE = re.compile("notes?$|comments?$|description$|max_(rel|abs)_(error|diff)|.*tolerance")
"""Keys of `expected` that say something or allow something, and ask for nothing."""
OUTPUTS = {
    **dict.fromkeys(
        ("adv", "a", "token_adv", "advantage", "token_advantage", "total_advantages"), "advantages"
    ),
    **dict.fromkeys(("grad", "gradient", "grad_logp", "grad_log_probs", "dloss_dlogprobs"), "grad_logprobs"),
    **dict.fromkeys(("grad_policy_logprobs", "grad_chosen_rejected"), "grad_logprobs"),
    **dict.fromkeys(("policy_loss", "total_loss", "value"), "loss"),
    "return": "returns",
    "whitened": "advantages_whitened",
    "whitened_advantages": "advantages_whitened",
}
"""Other names of outputs."""


@dataclass(frozen=True)
class Given:
    """A file's inputs and settings by any of several names; arrays are float64, rounded to `dtype`."""

    inputs: Case
    config: Case
    dtype: torch.dtype
    garbage: bool = False
    used: set[str] = field(default_factory=set)
    """Keys of the config that were asked for, found or not."""

    def get(self, *names: str, **default: Any) -> Any:
        nested = {key: x for key, x in self.config.items() if isinstance(x, dict)}
        places = [("", self.inputs), ("", self.config), *nested.items()]
        self.used.update(names)
        for name in names:
            for owner, place in places:
                key = name if name in place else next((key for key in place if key.lower() == name), None)
                if key is not None and place[key] is not None:
                    self.used.update((owner, key))
                    return place[key]
        if "default" not in default:
            raise UnreadError(f"no {' or '.join(names)} in {[*self.inputs, *self.config]}")
        return default["default"]

    def check_config(self, understood: Iterable[str] = ()) -> None:
        """Say which settings nothing has asked for: whether they change anything, the numbers tell."""
        known = {*self.used, *understood, *REMARKS}
        say_unread({key: x for key, x in self.config.items() if key not in known and x is not None})

    def array(self, *names: str, **default: Any) -> np.ndarray:
        return self.rounded(self.get(*names, **default))

    def rounded(self, values: Any) -> np.ndarray:
        rounded = torch.tensor(np.array(values, np.float64), dtype=self.dtype).double().numpy()
        if not self.garbage or rounded.shape != self.mask.shape:
            return rounded
        return np.where(self.mask, rounded, np.resize(GARBAGE, rounded.shape))

    @property
    def mask(self) -> np.ndarray:
        mask = self.get("mask", "response_mask", "loss_mask", default=None)
        return np.ones((len(self.groups), 1), bool) if mask is None else np.array(mask, np.float64) > 0

    @property
    def groups(self) -> np.ndarray:
        return np.array(self.get(*GROUPS))

    @property
    def compared(self) -> tuple[np.ndarray, np.ndarray]:
        return self.array(*REWARDS), self.groups

    @property
    def lengths(self) -> np.ndarray:
        return self.array("lengths", "response_lengths", "num_tokens", default=self.mask.sum(1))

    def keyword(self, name: str, *names: str) -> Case:
        """`name` as a keyword under any of its names; nothing, hence the library's default, without one."""
        value = self.get(name, *names, default=None)
        return {} if value is None else {name: value}

    def matching(self, pattern: str) -> list[str]:
        """The settings whose name has `pattern` in it: another library's word for a knob."""
        return [key for key in self.config if re.search(pattern, key) and key != "kl_coef"]

    def by_row(self, *names: str) -> np.ndarray:
        """A value for each trajectory, from one each or one a group, in the order of the ids."""
        values, (_, group) = self.array(*names), np.unique(self.groups, return_inverse=True)
        return values if len(values) == len(group) else values[group]


def turns_of(given: Given) -> np.ndarray:
    """Turns from 0; without ids, each run of mask 1 is one: tool results stand between them."""
    mask, ids = given.mask, given.get(*TURNS, default=None)
    if (first := given.get("first_turn_mask", "turn1_mask", default=None)) is not None:
        return 1 - np.array(first, np.int64)
    if ids is None:
        return np.cumsum(mask & ~np.pad(mask, ((0, 0), (1, 0)))[:, :-1], axis=1) - 1
    return np.array(ids) - np.array(ids)[mask].min(initial=1)


class Steps(NamedTuple):
    """Steps in the file's order, `at` (trajectory, step); `first` is a trajectory's first. Padded: (N, K)."""

    at: tuple[np.ndarray, np.ndarray]
    first: np.ndarray
    rewards: np.ndarray
    anchors: np.ndarray
    taken: np.ndarray


def steps_of(given: Given) -> Steps:
    """One list of steps a trajectory, or flat lists with each step's trajectory."""
    rewards, anchors = given.get("step_rewards", "rewards_per_step"), given.get(*ANCHORS)
    owners = given.get("trajectory_ids", "traj_ids", "traj_index", "trajectory", default=None)
    if owners is None:
        owners = [row for row, steps in enumerate(rewards) for _ in steps]
        rewards, anchors = ([x for steps in nested for x in steps] for nested in (rewards, anchors))
    _, first, rows = np.unique(np.array(owners), return_index=True, return_inverse=True)
    columns = np.array([np.sum(rows[:index] == row) for index, row in enumerate(rows)])
    at, shape = (rows, columns), (len(first), columns.max() + 1)
    steps = Steps(at, first, np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape, bool))
    steps.rewards[at] = given.rounded(rewards)
    steps.anchors[at] = np.unique(np.array([str(x) for x in anchors]), return_inverse=True)[1]
    steps.taken[at] = True
    return steps


def check(actual: Any, expected: Any, tolerance: Tolerance) -> None:
    actual = actual.detach().double().numpy() if isinstance(actual, torch.Tensor) else np.array(actual)
    np.testing.assert_allclose(actual, np.array(expected, np.float64), **tolerance)


def flat(values: Any) -> np.ndarray:
    """Nested lists of any lengths as one array."""
    if not isinstance(values, list | tuple):
        return np.array(values, np.float64).ravel()
    return np.concatenate([np.zeros(0), *(flat(value) for value in values)])


def compare(outputs: Outputs, expected: Case, tolerance: Tolerance) -> None:
    """Every output that the file expects, in one of its forms: of a trajectory, a token or a step.

    An output of a name that is unknown here must be one of those computed: what nothing computes must not
    pass unseen.
    """
    for name, value in expected.items():
        if ALLOWANCE.match(name):
            continue
        numbers = flat(value)
        sized = {
            key: [x for x in map(flat, map(listed, forms)) if x.size == numbers.size]
            for key, forms in outputs.items()
        }
        known = sized.get(spelled(name, outputs))
        if known is None:
            check_unnamed(name, numbers, sized, tolerance)
            continue
        assert known, f"{name}: {numbers.size} numbers; computed {[np.shape(x) for x in outputs[name]]}"
        if not any(agrees(form, numbers, tolerance) for form in known):
            np.testing.assert_allclose(known[0], numbers, err_msg=name, **tolerance)


def check_unnamed(
    name: str, numbers: np.ndarray, computed: dict[str, list[np.ndarray]], tolerance: Tolerance
) -> None:
    """An output by its value. One of zeros and ones alone, which anything may have, is not recognised so."""
    telling = bool(np.any((numbers != 0) & (np.abs(numbers) != 1)))
    same = [key for key, forms in computed.items() if any(agrees(x, numbers, tolerance) for x in forms)]
    assert telling, f"expects {name}, which nothing computes; computed are {sorted(computed)}"
    assert same, f"expects {name}, which nothing computes; computed are {sorted(computed)}"
    warnings.warn(f"{name} is not a name known here: it has the value of {same[0]}", stacklevel=3)


def spelled(name: str, outputs: Outputs) -> str:
    """The name of an output that is meant: other places, other words for a share."""
    short = name.lower().rsplit("/", 1)[-1].replace("clipfrac", "clip_frac").replace("fraction", "frac")
    return next((key for key in (name, short, OUTPUTS.get(short, "")) if key in outputs), name)


def listed(form: Any) -> Any:
    return form.detach().double().cpu().numpy() if isinstance(form, torch.Tensor) else form


def agrees(actual: np.ndarray, expected: np.ndarray, tolerance: Tolerance) -> bool:
    return bool(np.allclose(actual, expected, equal_nan=True, **tolerance))


def tensor(values: Any, dtype: torch.dtype) -> Tensor:
    return torch.tensor(np.array(values, np.float64), dtype=dtype)  # "nan" and "inf" are strings in the files


def lookup(names: tuple[str, ...], *places: Case) -> Any:
    """What the first place that has one of `names` has there; None."""
    return next((place[name] for place in places for name in names if name in place), None)


def need(names: tuple[str, ...], *places: Case) -> Any:
    found = lookup(names, *places)
    if found is None:
        raise UnreadError(f"no {' or '.join(names)}")
    return found


def polluted(x: Tensor, mask: Tensor, garbage: bool) -> Tensor:
    """x with what must not matter where the mask, that of x or of its rows, is 0."""
    mask = mask if mask.dim() == x.dim() else mask[..., None].expand_as(x)
    filling = torch.tensor(GARBAGE, dtype=x.dtype).repeat(mask.numel())[: mask.numel()].reshape(mask.shape)
    return torch.where(mask, x, filling) if garbage else x.clone()


def check_gradients(gradient: Tensor, expected: Case, tolerance: Tolerance) -> None:
    """The gradient under any name that begins so: of all rows, or of those of one side of the pairs."""
    half = len(gradient) // 2
    for key, value in expected.items():
        if key.startswith("grad"):
            part = gradient[:half] if "chosen" in key else gradient[half:] if "rejected" in key else gradient
            check(part, value, tolerance)
