"""What a golden file gives, looked up by any of several names, and the comparison with what it expects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from tests.rl.golden_config import Case, NotOfferedError

Tolerance = dict[str, Any]
Outputs = dict[str, tuple[Any, ...]]
"""By name in `expected`: the values in every form that a file may ask for (a trajectory's, a token's)."""

GARBAGE = (float("nan"), float("inf"), -float("inf"), 1e9)
GROUPS = ("group_ids", "groups", "group_id", "index", "uid", "prompt_ids")
TURNS = ("turn_ids", "turn_index", "turn_id", "turns", "step_ids", "step_index")
ANCHORS = ("anchors", "anchor_obs", "anchor_ids", "anchor_states", "anchor", "states", "observations")
REWARDS = ("rewards", "outcome_rewards", "rewards_outcome", "episode_rewards", "scores", "returns", "reward")
REMARKS = ("note", "notes", "comment", "comments")
"""Keys of `expected` and `config` that say something and ask for nothing."""


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
            raise NotOfferedError(f"no {' or '.join(names)} in {[*self.inputs, *self.config]}")
        return default["default"]

    def check_config(self, understood: Iterable[str] = ()) -> None:
        """NotOfferedError for a setting that nothing has asked for: it may mean something else."""
        known = {*self.used, *understood, *REMARKS}
        unread = [key for key, x in self.config.items() if key not in known and x is not None]
        if unread:
            raise NotOfferedError(f"{unread[0]} {self.config[unread[0]]!r} is not understood here")

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
    if not isinstance(values, list):
        return np.array([values], np.float64)
    return np.concatenate([np.zeros(0), *(flat(value) for value in values)])


def assert_all_computed(expected: Case, computed: Iterable[str]) -> None:
    """What a file expects and nothing computes must not pass unseen."""
    computed = sorted(computed)
    unseen = sorted(expected.keys() - {*computed, *REMARKS})
    assert not unseen, f"expects {', '.join(unseen)}, which nothing computes; computed are {computed}"


def compare(outputs: Outputs, expected: Case, tolerance: Tolerance) -> None:
    """Every output that the file expects, in the form that it expects: of a trajectory, a token or a step."""
    assert_all_computed(expected, outputs)
    for name in expected.keys() - {*REMARKS}:
        numbers = flat(expected[name])
        forms = [np.asarray(form) for form in outputs[name]]
        chosen = next((form for form in forms if form.size == numbers.size), None)
        assert chosen is not None, f"{name}: {numbers.size} numbers; computed {[x.shape for x in forms]}"
        check(chosen.ravel(), numbers, tolerance)
