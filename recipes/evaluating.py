"""Evaluation inside a run: the same held-out tasks and random streams each time, written down as it goes."""

from __future__ import annotations

from dataclasses import dataclass

from envs.splits import Split
from rl.config import Config
from rl.evaluation import level_result, outcome_of
from rl.intervals import SuccessRate
from rl.journal import Journal
from rl.run_dir import RunDir
from rl.screens import success_text
from rollout.collector import Collector
from rollout.jsonl import JsonlWriter, read_jsonl
from rollout.task_stream import TaskStream
from rollout.workers import RemoteRollouts

EVALUATIONS = "evaluations.jsonl"
"""In the run directory: one line an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Success on the held-out tasks; of the failures `num_unscored` are episodes that could not be scored."""

    rate: SuccessRate
    num_unscored: int

    def __str__(self) -> str:
        return success_text(self.rate, self.num_unscored)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Measures the policy that the engines serve on the run's held-out tasks, one episode of each.

    It draws from no stream of training's: the task cursor stays, and every request has a seed of its own. So
    a run that evaluates more often trains on the same samples.
    """

    config: Config
    collector: Collector[RemoteRollouts]
    journal: Journal
    directory: RunDir

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after `step` of training; the end is evaluated anyway."""
        every = self.config.eval_every
        return every > 0 and step % every == 0 and step < self.config.num_steps

    async def before(self, known: SuccessRate | None) -> Measured:
        """Success of the starting policy; of a run that goes on, what it had found."""
        if known is None:
            return await self.evaluate(step=0)
        path = self.directory.path / EVALUATIONS
        rows = read_jsonl(path) if path.exists() else ()
        unscored = (row["unscored"] for row in rows if row["step"] == 0)
        return Measured(rate=known, num_unscored=next(unscored, 0))

    async def evaluate(self, step: int) -> Measured:
        """Success after `step` steps; an episode that could not be scored counts as not solved."""
        config = self.config
        stream = TaskStream(env=config.env, level=config.level, run_seed=config.seed, split=Split.HELD_OUT)
        groups = await self.collector.evaluate(
            stream.slice(0, config.eval_tasks), temperature=config.eval_temperature
        )
        self.journal.record_evaluation(step, groups)
        outcomes = [outcome_of(group, config.env, config.level) for group in groups]
        num_solved = sum(outcome.num_solved for outcome in outcomes)
        result = level_result(outcomes, ())
        row = {
            "step": step,
            "env": config.env,
            "level": config.level,
            "num_tasks": result.num_tasks,
            "solved": num_solved,
            "unscored": result.num_unscored,
            "success": result.average.value,
            "low": result.average.low,
            "high": result.average.high,
        }
        with JsonlWriter(self.directory.path / EVALUATIONS) as file:
            file.append([row])
        self.journal.track_evaluation(step, result)
        return Measured(rate=SuccessRate(num_solved, result.num_tasks), num_unscored=result.num_unscored)
