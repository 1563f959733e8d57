"""What a run writes down as it goes: metrics, trajectories, and what the console shows of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rl.batch import TrainBatch
from rl.config import Config
from rl.console import RunConsole
from rl.evaluation import LevelResult
from rl.layout import TokenArrays
from rl.metrics import check_names
from rl.run_dir import NEW_RUN, RunDir, RunState
from rl.samples import TrainSample
from rl.token_colors import Decode, printable
from rl.tracking import Trackers
from rollout.record import Record, TrajectoryRecorder
from rollout.trajectory import Trajectory, TrajectoryGroup, is_reward_error

LARGE_REWARD = 20.0
"""|reward| above which a run warns, once: advantages that are not divided by a std grow with it."""


class Journal:
    """Records every trajectory with both log-probs, every metric, and shows them.

    `resumed` is where the run goes on; `trackers` get every number as well.
    """

    def __init__(
        self,
        directory: RunDir,
        config: Config,
        console: RunConsole,
        decode: Decode,
        resumed: RunState = NEW_RUN,
        trackers: Trackers | None = None,
    ) -> None:
        self.num_trained_tokens = resumed.num_trained_tokens
        self.num_sampled_tokens = resumed.num_sampled_tokens
        self._directory = directory
        self._config = config
        self._console = console
        self._decode = decode
        self._trackers = trackers or Trackers()
        self._recorder = TrajectoryRecorder(directory.trajectories, max_bytes=int(config.max_record_mb * 1e6))
        self._recorder.is_full = resumed.record_is_full
        self._step = resumed.step
        self._has_warned = False
        self._shown: Trajectory | None = None

    @property
    def record_is_full(self) -> bool:
        """Whether trajectories.jsonl has reached its largest size."""
        return self._recorder.is_full

    def observe(self, groups: list[TrajectoryGroup], batch: TrainBatch) -> None:
        """Record the trajectories of one training step, with the learner's log-probs and their advantages."""
        self._step += 1
        scored = dict(by_turn(groups, batch.samples, batch.old_logprobs))
        weighed = dict(by_turn(groups, batch.samples, batch.advantages))
        self._recorder.write(
            Record(
                step=self._step,
                split="train",
                group=group.index,
                member=member,
                trajectory=trajectory,
                old_logprobs=scored.get(trajectory.id),
                advantages=weighed.get(trajectory.id),
            )
            for group in groups
            for member, trajectory in enumerate(group.trajectories)
        )
        self._note_reward_errors("train", self._step, [t for group in groups for t in group.trajectories])
        self._directory.append_consumed(self._step, batch.trajectory_ids)
        self.num_trained_tokens += sum(int(sample.loss_mask.sum()) for sample in batch.samples)
        self._shown = groups[0].trajectories[0] if groups else None

    def record_evaluation(self, step: int, groups: list[TrajectoryGroup]) -> None:
        """Record what a policy did on held-out tasks; `step` 0 is the starting policy."""
        self._recorder.write(
            Record(step=step, split="eval", group=group.index, member=0, trajectory=group.trajectories[0])
            for group in groups
        )
        self._note_reward_errors("eval", step, [group.trajectories[0] for group in groups])

    def track_evaluation(self, step: int, result: LevelResult) -> None:
        """Hand an evaluation's success and its interval to the trackers."""
        average = result.average
        values = {"success": average.value, "success_low": average.low, "success_high": average.high}
        metrics = {f"eval/{name}": value for name, value in values.items() if value is not None}
        metrics["eval/unscored"] = float(result.num_unscored)
        check_names(metrics)
        self._trackers.log(step, metrics)

    @property
    def tracker_ids(self) -> dict[str, Any]:
        """What a checkpoint keeps of the trackers."""
        return self._trackers.ids

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write and show one step's metrics, and a trajectory now and then."""
        # Dynamic sampling pays for the groups that it drops, too.
        self.num_sampled_tokens += int(
            metrics.get("tokens/sampled", 0) + metrics.get("rollout/dropped_tokens", 0)
        )
        self._directory.append_metrics(step, metrics)
        self._trackers.log(step, metrics)
        self._console.show_step(step, metrics)
        self._warn_of_rewards(step, metrics.get("rollout/reward_abs_max", 0.0))
        every = self._config.show_every
        if every and step % every == 0 and self._shown is not None:
            self._console.show_trajectory(step, self._shown, self._decode)

    def _note_reward_errors(self, split: str, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Write down each episode that the reward could not score, and say so in one line a step."""
        failed = [trajectory for trajectory in trajectories if is_reward_error(trajectory)]
        if not failed:
            return
        self._directory.append_reward_errors(
            {
                "step": step,
                "split": split,
                "trajectory": t.id,
                "kind": t.score.error_kind,
                "error": t.score.error,
            }
            for t in failed
        )
        first, _, _ = (failed[0].score.error or "").partition("\n")
        print(
            f"reward errors, {split} step {step}: {len(failed)} of {len(trajectories)} episodes unscored; "
            f"trajectory {failed[0].id}, {failed[0].score.error_kind}: {printable(first)} "
            f"(all: {self._directory.reward_errors.name})",
            file=sys.stderr,
            flush=True,
        )

    def _warn_of_rewards(self, step: int, largest: float) -> None:
        """Say, the first time, that rewards are large; none is clipped."""
        if largest > LARGE_REWARD and not self._has_warned:
            self._has_warned = True
            self._console.say(
                f"WARNING: step {step}: a reward of size {largest:g}, above {LARGE_REWARD:g}; none is "
                "clipped: scale them, or use an advantage that is divided by a std (adv_estimator grpo)",
                style="bold yellow",
            )


def by_turn(
    groups: Sequence[TrajectoryGroup], samples: Sequence[TrainSample], arrays: TokenArrays | None
) -> Iterator[tuple[str, tuple[tuple[float, ...], ...]]]:
    """Trajectory id -> its sampled tokens' numbers, a tuple a turn, of each trajectory that is trained on.

    `arrays` is one array (T,) a sample; nothing comes out of None. What a token that is not trained has in it
    (NaN, 0) has no part.
    """
    found: dict[str, dict[int, tuple[float, ...]]] = {}
    for sample, array in zip(samples, arrays, strict=True) if arrays is not None else ():
        for turn in np.unique(sample.turn_ids[sample.loss_mask]):
            found.setdefault(sample.trajectory_id, {})[int(turn)] = tuple(
                array[sample.turn_ids == turn].tolist()
            )
    for trajectory in (t for group in groups for t in group.trajectories):
        if (turns := found.get(trajectory.id)) is not None:
            yield trajectory.id, tuple(turns.get(turn, ()) for turn in range(len(trajectory.turns)))
