"""Trajectories become training samples: one a leaf of the tree, each sampled token trained exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rollout.trajectory import Trajectory, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSample:
    """One path through a trajectory's tree, from the root to a leaf: T tokens, every array (T,).

    Position t of each array describes token t itself. Where the mask is 0, `rollout_logprobs` is NaN, and
    `versions` and `turn_ids` are -1. `weight` is the sample's part of its trajectory's sampled tokens: they
    sum to 1 over it. `kept_ids` has as many columns as the longest list of ids that could be drawn, -1 after
    shorter ones and where the mask is 0; the policy's log-probs are normalised over these ids.

    Example, a plain episode (P0 prompt, A0 answer, E0 tool reply, A1 answer):
        token_ids = P0           + A0           + E0           + A1
        loss_mask = [0]*len(P0)  + [1]*len(A0)  + [0]*len(E0)  + [1]*len(A1)

    Example, a fork after A0 into A1 and A2, two leaves; A0 is trained once, in the first:
        token_ids = P0 A0 E1 A1      P0 A0 E2 A2
        loss_mask =  0  1  0  1       0  0  0  1
    """

    token_ids: np.ndarray  # int64
    loss_mask: np.ndarray  # bool
    rollout_logprobs: np.ndarray  # float32, nats, from the engine
    versions: np.ndarray  # int64, the policy version that sampled the token
    turn_ids: np.ndarray  # int64, the trajectory's turn in which it was sampled
    trajectory_id: str
    group_id: int
    env: str
    weight: float
    answer: str | None = None  # of the task, for a teacher that is told it
    kept_ids: np.ndarray | None = None  # (T, K) int32, the ids that could be drawn; None: every one
    routed_experts: np.ndarray | None = None  # int16 (T, layers, top_k), of the engine; -1: not known

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        for name in ("loss_mask", "rollout_logprobs", "versions", "turn_ids"):
            check_shape(f"TrainSample.{name} of {self.trajectory_id}", getattr(self, name), length)
        routed = self.routed_experts
        if routed is not None and (routed.ndim != 3 or len(routed) != length):
            raise ValueError(
                f"TrainSample.routed_experts of {self.trajectory_id} has shape {routed.shape}; expected "
                f"({length}, layers, top_k)"
            )
        if length and self.loss_mask[0]:
            raise ValueError(
                f"{self.trajectory_id}: token 0 is sampled, but nothing stands before it; give a prompt"
            )
        if self.kept_ids is not None:
            self._check_kept(self.kept_ids)

    def _check_kept(self, kept_ids: np.ndarray) -> None:
        if kept_ids.ndim != 2 or len(kept_ids) != len(self.token_ids):
            raise ValueError(
                f"TrainSample.kept_ids of {self.trajectory_id} has shape {kept_ids.shape}; expected "
                f"({len(self.token_ids)}, K), the ids that could be drawn at each place"
            )
        strange = self.loss_mask & ~(kept_ids == self.token_ids[:, None]).any(1)
        if strange.any():
            place = int(np.flatnonzero(strange)[0])
            raise ValueError(
                f"{self.trajectory_id}: token {place} is {self.token_ids[place]}, which is not among its "
                f"kept_ids {kept_ids[place].tolist()}; expected the ids that could be drawn, the sampled one "
                "among them"
            )


def trajectory_samples(trajectory: Trajectory, group_id: int) -> Iterator[TrainSample]:
    """The paths from the root to each leaf, in leaf order, less those on which nothing is left to train."""
    trained: set[int] = set()
    for leaf in trajectory.leaves:
        path = _path(trajectory, leaf)
        fresh = set(path) - trained
        trained |= fresh
        num_fresh = sum(len(trajectory.turns[index].completion.token_ids) for index in fresh)
        if num_fresh:
            columns = [_columns(trajectory.turns[index], index, index in fresh) for index in path]
            token_ids, loss_mask, logprobs, versions, turn_ids = (
                np.concatenate(parts) for parts in zip(*columns, strict=True)
            )
            yield TrainSample(
                token_ids=token_ids,
                loss_mask=loss_mask,
                rollout_logprobs=logprobs,
                versions=versions,
                turn_ids=turn_ids,
                trajectory_id=trajectory.id,
                group_id=group_id,
                env=trajectory.episode.task.env,
                weight=num_fresh / trajectory.num_sampled_tokens,
                answer=trajectory.episode.task.answer,
                kept_ids=_kept_ids(trajectory, path, fresh),
                routed_experts=_routed_experts(trajectory.id, [trajectory.turns[index] for index in path]),
            )


def _path(trajectory: Trajectory, leaf: int) -> list[int]:
    """Indices of the turns from the root to `leaf`."""
    path, index = [], leaf
    while index is not None:
        path.append(index)
        index = trajectory.turns[index].parent
    return path[::-1]


def by_turn(sample: TrainSample) -> Iterator[TrainSample]:
    """One sample a turn: what stood before the turn, and only the turn's own tokens under the loss.

    The weights of the parts sum to the sample's: a trajectory weighs the same, whole or split.
    """
    num_trained = int(sample.loss_mask.sum())
    for turn in np.unique(sample.turn_ids[sample.loss_mask]):
        mask = sample.loss_mask & (sample.turn_ids == turn)
        end = int(np.flatnonzero(mask)[-1]) + 1
        yield replace(
            sample,
            token_ids=sample.token_ids[:end],
            loss_mask=mask[:end],
            rollout_logprobs=np.where(mask, sample.rollout_logprobs, np.float32(np.nan))[:end],
            versions=np.where(mask, sample.versions, -1)[:end],
            turn_ids=np.where(mask, sample.turn_ids, -1)[:end],
            weight=sample.weight * int(mask.sum()) / num_trained,
            kept_ids=None
            if sample.kept_ids is None
            else np.where(mask[:, None], sample.kept_ids, np.int32(-1))[:end],
            routed_experts=None if sample.routed_experts is None else sample.routed_experts[:end],
        )


def _columns(turn: Turn, index: int, is_trained: bool) -> tuple[np.ndarray, ...]:
    """Ids, mask, log-probs, versions and turn `index` of one turn's context and sampled tokens."""
    num_context, completion = len(turn.context_ids), turn.completion
    length = num_context + len(completion.token_ids)
    mask = np.arange(length) >= num_context if is_trained else np.zeros(length, np.bool_)
    logprobs, versions = np.full(length, np.nan, np.float32), np.full(length, -1, np.int64)
    logprobs[num_context:] = completion.logprobs
    for span in completion.version_spans:
        versions[num_context + span.start : num_context + span.end] = span.version
    ids = np.array(turn.context_ids + completion.token_ids, np.int64)
    logprobs = np.where(mask, logprobs, np.float32(np.nan))
    return ids, mask, logprobs, np.where(mask, versions, -1), np.where(mask, index, -1)


def _kept_ids(trajectory: Trajectory, path: Sequence[int], fresh: set[int]) -> np.ndarray | None:
    """TrainSample.kept_ids of the turns of `path`, those of `fresh` under the loss."""
    turns = [(trajectory.turns[index], index in fresh) for index in path]
    trained = [turn.completion.kept_ids for turn, is_trained in turns if is_trained]
    given = [kept_ids for kept_ids in trained if kept_ids is not None]
    if not given:
        return None
    if len(given) != len(trained):
        raise ValueError(
            f"{trajectory.id}: {len(given)} of {len(trained)} turns have kept_ids; expected all or none, "
            "sampled with the same filters"
        )
    width = max(len(ids) for kept_ids in given for ids in kept_ids)
    rows: list[list[int]] = []
    for turn, is_trained in turns:
        sampled = turn.completion.kept_ids if is_trained else None
        lists = sampled if sampled is not None else [()] * len(turn.completion.token_ids)
        rows += [[*ids, *[-1] * (width - len(ids))] for ids in [*[()] * len(turn.context_ids), *lists]]
    return np.array(rows, np.int32)


def _routed_experts(name: str, path: Sequence[Turn]) -> np.ndarray | None:
    """The experts of a path's T tokens, (T, layers, top_k) int16; None where no turn tells any.

    -1 where no turn tells, as of the last token always. Where two tell, the earlier counts.

    Example, P0 A0 E0 A1 with one token of each, and what the two turns tell:
        turn 0: P0                turn 1: A0 E0                -> P0 A0 E0 -1
    """
    told = [turn.completion.routed_experts for turn in path]
    shapes = {rows.shape[1:] for rows in told if rows is not None}
    if not shapes:
        return None
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: turns tell experts of shapes {sorted(shapes)}; expected one (layers, top_k)"
        )
    ends = np.cumsum([len(turn.context_ids) + len(turn.completion.token_ids) for turn in path])
    experts = np.full((ends[-1], *shapes.pop()), -1, np.int16)
    for rows, end in reversed(list(zip(told, ends, strict=True))):
        if rows is None:
            continue
        if len(rows) > end - 1:
            raise ValueError(
                f"{name}: {len(rows)} rows of routed_experts for {end} tokens; expected {end - 1} at most"
            )
        experts[end - 1 - len(rows) : end - 1] = rows
    return experts


def check_shape(name: str, array: np.ndarray, length: int) -> None:
    """Refuse an array that is not (length,), by name."""
    if array.shape != (length,):
        raise ValueError(f"{name} has shape {array.shape}; expected ({length},)")
