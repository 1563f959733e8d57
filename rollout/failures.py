"""What stops a run and is no bug of ours: a dead or silent process, a full disk, weights that are not the
learner's, a reward function that gives no score for each sample.

A bug keeps its traceback; these have a message that says who failed at what, and no more.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from envs.base import WorldError
from rewards.forms import RewardBugError
from rollout.clock import ClockError
from rollout.collector import NoSignalError
from rollout.engine import EngineError
from rollout.manifest import WeightSyncError


class PeerFailedError(RuntimeError):
    """Another process of the run failed or did not answer; the message names waiter, peer and cause."""


WORLD_ERRORS = (
    PeerFailedError,
    WorldError,  # outside an episode, in which it is data
    EngineError,
    WeightSyncError,
    NoSignalError,
    ClockError,
    RewardBugError,
    TimeoutError,
    MemoryError,
)
WORLD_ERRNOS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.ENOMEM,
    errno.EMFILE,
)
"""Disks and memory. Any other number (no such file, not a folder) is ours to have got right."""


def world_cause(error: BaseException) -> str | None:
    """What failed in the world, once however often it was raised; None where any part of `error` is a bug."""
    parts = list(_leaves(error))
    if not all(_is_the_worlds(part) for part in parts):
        return None
    first, *others = dict.fromkeys(str(part) or type(part).__name__ for part in parts)
    return first + (f" (and {len(others)} more such failures)" if others else "")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside an exception group, groups in it opened; any other exception itself."""
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for part in error.exceptions:
        yield from _leaves(part)


def _is_the_worlds(error: BaseException) -> bool:
    # An OSError without a number is one of our own, raised with what to do about it.
    return isinstance(error, WORLD_ERRORS) or (
        isinstance(error, OSError) and (error.errno is None or error.errno in WORLD_ERRNOS)
    )
