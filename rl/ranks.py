"""A learner in several processes: an actor a rank, and the driver's view of all of them as one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray.util import get_node_ip_address

from rl.backends.group import CollectiveError, Meeting, is_lost_peer, join, open_store
from rl.batch import TrainBatch
from rl.layout import TokenArrays
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.numerics import MetricSums, add_metrics
from rl.splitting import rows_by_rank
from rl.transport import crossing
from rl.workers import LearnerClient, actor_of
from rollout.failures import PeerFailedError
from rollout.workers import within

GRACE_S = 5.0
"""For the other ranks to say what happened, once one has failed: the cause may lie in another."""

PATIENCE = 0.9
"""A collective's share of the driver's deadline: who waits in one fails first, and who is late is named."""


class LearnerRank:
    """One rank of a learner of the class `kind`: a process, and the GPU that it has to itself."""

    def __init__(self, kind: type[Learner], spec: LearnerSpec, timeout_s: float) -> None:
        self._kind, self._spec, self._timeout_s = kind, spec, timeout_s
        self._store: Any = None
        self._learner: Any = None

    def open(self) -> Meeting:
        """Rank 0: where the others find it."""
        host = get_node_ip_address()
        self._store = open_store(host, self._spec.num_ranks, self._timeout_s)
        return Meeting(host, self._store.port)

    def join(self, meeting: Meeting) -> dict[str, float]:
        """Meet the other ranks, load this one's part of the model; returns its facts."""
        spec = self._spec
        with self._blaming("start"):
            join(
                meeting,
                rank=spec.rank,
                num_ranks=spec.num_ranks,
                device=spec.device,
                timeout_s=self._timeout_s,
                store=self._store,
            )
            self._learner = self._kind(spec)
            return self._learner.facts()

    def score(self, part: TrainBatch, needs: frozenset[str]) -> dict[str, TokenArrays]:
        """What scoring adds to this rank's samples."""
        with self._blaming("score"):
            return self._learner.score(part, needs).token_arrays

    def update(self, part: Any) -> MetricSums:
        """This rank's part of an update."""
        with self._blaming("update"):
            return self._learner.update(part)

    def own_logprobs(self) -> TokenArrays:
        """Those that the last update of this rank's samples started from."""
        return self._learner.own_logprobs()

    def call(self, method: str, *arguments: Any) -> Any:
        """A method of the learner that all ranks run; the answer is rank 0's."""
        with self._blaming(method):
            answer = getattr(self._learner, method)(*arguments)
        return answer if self._spec.rank == 0 else None

    @contextmanager
    def _blaming(self, what: str) -> Iterator[None]:
        """Say of a collective that did not end that another rank is to blame."""
        try:
            yield
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise
            raise CollectiveError(
                f"learner rank {self._spec.rank} of {self._spec.num_ranks} lost another rank during {what}: "
                f"{error}"
            ) from None


class ShardedLearner(LearnerClient):
    """A learner of `spec.num_ranks` ranks: each trains its samples, and every weight is on all of them once.

    Batches are split by tokens. Each part has the whole's denominators, and gradients are summed.
    """

    def __init__(
        self, spec: LearnerSpec, *, deadline_s: float, sync_s: float, kind: type[Learner] = Learner
    ) -> None:
        super().__init__(deadline_s=deadline_s, sync_s=sync_s)
        self._spec, self._kind = spec, kind
        self.actors: list[Any] = [
            actor_of(LearnerRank, spec, DS_ACCELERATOR=spec.device).remote(
                kind, replace(spec, rank=rank, incidents=_own(spec.incidents, rank)), PATIENCE * deadline_s
            )
            for rank in range(spec.num_ranks)
        ]

    async def start(self) -> dict[str, float]:
        """Wait until the ranks have met and loaded the model; returns the facts of the first.

        `held_parameters` is the most that a rank holds.
        """
        name = f"learner rank 0 of {self._spec.num_ranks} (rendezvous)"
        meeting = await within(
            self.actors[0].open.remote(), self._deadline_s, waiter="the driver", awaited=name
        )
        facts = await self._all(
            [actor.join.remote(meeting) for actor in self.actors], deadline_s=self._deadline_s, what="start"
        )
        return facts[0] | {"held_parameters": max(each["held_parameters"] for each in facts)}

    async def _score(self, batch: TrainBatch, needs: frozenset[str]) -> TrainBatch:
        rows = rows_by_rank(batch.samples, len(self.actors))
        references = [
            actor.score.remote(crossing(part), needs)
            for actor, part in zip(self.actors, batch.split(rows), strict=True)
        ]
        scored = await self._all(references, deadline_s=self._deadline_s, what="score")
        return replace(batch, **{name: joined(rows, [part[name] for part in scored]) for name in scored[0]})

    async def update(self, minibatch: Any) -> MetricSums:
        self._has_updated = True
        parts = self._kind.split(minibatch, len(self.actors), self._spec.algorithm)
        with self._timed("update"):
            references = [
                actor.update.remote(crossing(part)) for actor, part in zip(self.actors, parts, strict=True)
            ]
            return add_metrics(await self._all(references, deadline_s=self._deadline_s, what="update"))

    async def with_old_logprobs(self, batch: TrainBatch) -> TrainBatch:
        if batch.old_logprobs is not None:
            return batch
        rows = rows_by_rank(batch.samples, len(self.actors))
        made = await self._all(
            [actor.own_logprobs.remote() for actor in self.actors],
            deadline_s=self._deadline_s,
            what="own log-probs",
        )
        return replace(batch, old_logprobs=joined(rows, made))

    async def _ask(self, method: str, *arguments: Any, deadline_s: float, what: str) -> Any:
        references = [actor.call.remote(method, *arguments) for actor in self.actors]
        return (await self._all(references, deadline_s=deadline_s, what=what))[0]

    async def _all(self, references: Sequence[Any], *, deadline_s: float, what: str) -> list[Any]:
        """Every rank's answer.

        Where one fails the others would wait for it in a collective: they are ended, and its failure raised.
        """
        names = [f"learner rank {rank} of {len(self.actors)} ({what})" for rank in range(len(self.actors))]
        waits = [
            asyncio.ensure_future(within(reference, deadline_s, waiter="the driver", awaited=name))
            for reference, name in zip(references, names, strict=True)
        ]
        try:
            _, waiting = await asyncio.wait(waits, return_when=asyncio.FIRST_EXCEPTION)
            if waiting:
                await asyncio.wait(waiting, timeout=GRACE_S)
            failures = [error for wait in waits if wait.done() and (error := wait.exception())]
            if not failures:
                return [wait.result() for wait in waits]
            silent = [name for name, wait in zip(names, waits, strict=True) if not wait.done()]
            self._kill()
            raise root_cause(failures, silent)
        finally:
            for wait in waits:
                wait.cancel()

    def _kill(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


def root_cause(failures: Sequence[BaseException], silent: Sequence[str] = ()) -> BaseException:
    """Of the ranks' failures the one that led to the others: not that of a collective, where there is one.

    Args:
        silent: the ranks that neither answered nor failed.
    """
    own = [error for error in failures if not isinstance(error, CollectiveError)]
    if own:
        return own[0]
    told = [str(getattr(error, "cause", error)) for error in failures]  # without Ray's traceback
    return PeerFailedError("; ".join([*told, *(f"{name} did not answer" for name in silent)]))


def joined(rows: Sequence[Sequence[int]], parts: Sequence[TokenArrays]) -> TokenArrays:
    """The arrays of all samples in their order, from those of each rank's `rows`."""
    by_row = {
        row: array
        for own, arrays in zip(rows, parts, strict=True)
        for row, array in zip(own, arrays, strict=True)
    }
    return tuple(by_row[row] for row in range(len(by_row)))


def _own(folder: str, rank: int) -> str:
    """A rank's own folder in one that all share; "" stays."""
    return folder and f"{folder}/rank_{rank}"
