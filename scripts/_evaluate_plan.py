"""From the options of scripts/evaluate.py to all that is known before the first episode."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from envs.endpoint import ChatEndpoint
from envs.policy import SamplingFilters
from envs.splits import Split
from recipes.leftovers import leftovers
from rl.config import Config
from rl.defaults import resolve
from rl.evaluation import Evaluation, read_evaluation
from rl.machine import Machine
from rl.model_folder import ADAPTER
from rl.paired import TaskKey, require_same_tasks, task_keys
from rl.reward_checks import judge_of
from rl.sandbox_checks import sandbox_line
from rl.validation import ConfigError
from scripts._evaluate_adapters import MODEL_ALONE, NamedAdapter, find_adapters
from scripts._evaluate_options import Options, require_options
from scripts._evaluated import (
    Cell,
    Source,
    endpoint_spec,
    engine_config,
    find_policy,
    parse_cells,
    require_sound,
    settings_of,
)
from scripts.export import export

EVALUATION = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known before the first episode: the policy, its settings, the tasks."""

    options: Options
    source: Source | None  # None: the endpoint
    adapter: NamedAdapter | None = None  # beside the model of `source`; None: that alone
    settings: Mapping[str, Any]
    cells: Sequence[Cell]

    @property
    def filters(self) -> SamplingFilters:
        return SamplingFilters(top_p=self.options.top_p, top_k=self.options.top_k, min_p=self.options.min_p)

    def config(self, cell: Cell) -> Config:
        """The engines' configuration, resolved; of a plan that has engines."""
        assert self.source is not None  # an endpoint has none
        return resolve(engine_config(self.options, self.source, self.settings, cell), Machine.here())

    def recorded_settings(self) -> dict[str, Any]:
        """What evaluation.json says of how the policy was sampled."""
        options = self.options
        chosen = dict(self.settings)
        raised = {c.name: c.max_turns for c in self.cells if c.max_turns != self.settings["max_turns"]}
        if raised:
            chosen["max_turns_by_cell"] = raised
        if self.source:
            config = self.config(self.cells[0])
            chosen |= {"device": config.device, "engine_dtype": config.engine_dtype}
            # Where code ran, if any did: found when the plan was checked, and the same for every cell.
            if sandbox := max(sandbox_line(self.config(cell)) for cell in self.cells):
                chosen["sandbox"] = sandbox
        else:
            del chosen["engine_dtype"], chosen["context_length"]  # the endpoint's own affair
        return chosen | {
            **asdict(self.filters),
            "split": Split.HELD_OUT.value,
            "num_tasks": options.num_tasks,
            "num_samples": options.num_samples,
            "rewards": {cell.name: cell.reward or "the environment's own" for cell in self.cells},
        }

    def recorded_policy(self) -> dict[str, Any]:
        """What evaluation.json says of the policy."""
        if self.adapter and self.source:
            return {**self.adapter.source.facts(), "base": self.source.facts()}
        if self.source:
            return self.source.facts()
        return {"name": self.options.endpoint_model, "endpoint": self.options.endpoint}

    @property
    def version(self) -> int:
        """That engines must label every sampled token with."""
        return self.adapter.manifest.version if self.adapter else 0

    @property
    def warnings(self) -> list[str]:
        """What is damaged of that which is evaluated."""
        sources = [self.adapter.source if self.adapter else self.source]
        return [f"{s.model} is evaluated: {problem}" for s in sources if s for problem in s.warnings]

    def task_keys(self) -> set[TaskKey]:
        return {(cell.definition.name, cell.level, task.id) for cell in self.cells for task in cell.tasks}


def make_plan(options: Options) -> Plan:
    """The plan of --model or --endpoint; nothing has been started. Raises ValueError with what is wrong."""
    require_options(options)
    source = whole(find_policy(options.model)) if options.model else None
    if source is None:
        endpoint_spec(options)
    settings = settings_of(options, source)
    cells = parse_cells(options, source, settings)
    return Plan(options=options, source=source, settings=settings, cells=cells)


def whole(source: Source) -> Source:
    """`source` as a model that engines load: an adapter is merged, into a folder that goes with this process.

    Raises:
        ValueError: the adapter's base is not there, or is another one by now.
    """
    if not (Path(source.model).expanduser() / ADAPTER).is_file():
        return source
    folder = Path(tempfile.mkdtemp(prefix="merged-", dir=leftovers().folder)) / "model"
    export(Path(source.model).expanduser(), folder)
    return replace(source, model=str(folder), adapter=source.model)


def make_other(plan: Plan) -> Plan | Evaluation | None:
    """What --against names: a former evaluation of the same tasks, or a policy to evaluate as ours is."""
    name = plan.options.against
    path = Path(name).expanduser()
    if not name:
        return None
    if not path.is_file() and not (path / EVALUATION).is_file():
        return replace(plan, source=whole(find_policy(name)))
    former = read_evaluation(path if path.is_file() else path / EVALUATION)
    require_same_tasks(plan.task_keys(), task_keys(former.outcomes))
    former.results(plan.options.ks)  # raises where it has too few samples
    return former


def make_plans(plan: Plan) -> list[Plan]:
    """`plan`, and one for each of the adapters that are evaluated on its engines.

    Raises:
        ValueError: an adapter does not fit the model of `plan`, or one asks what cannot be asked of several.
    """
    if not plan.options.adapters:
        return [plan]
    assert plan.source is not None  # of an endpoint adapters have no effect, which was refused
    refuse_own_judge(plan.cells)
    adapters = find_adapters(plan.options.adapters, plan.source)
    alone = replace(plan.source, name=MODEL_ALONE)
    return [replace(plan, source=alone), *(replace(plan, source=alone, adapter=each) for each in adapters)]


def refuse_own_judge(cells: Sequence[Cell]) -> None:
    for cell in cells:
        if (judge := judge_of(cell.reward)) is not None and judge.policy:
            raise ConfigError(
                f'reward = {cell.reward!r}: policy = "self" asks the policy that is judged, and --adapters '
                "are several; name an endpoint in the judge's file, or evaluate one at a time (--model)"
            )


def check(plan: Plan) -> None:
    """Raise ConfigError or EndpointError where no episode could begin."""
    if plan.source is None:
        for cell in plan.cells:
            if (judge := judge_of(cell.reward)) is not None and judge.policy:
                raise ConfigError(
                    f'reward = {cell.reward!r}: policy = "self" asks an engine of ours, and the model is '
                    "behind an endpoint; name an endpoint in the judge's file as well, or another --reward"
                )
        asyncio.run(_ask_endpoint(plan.options))
        return
    for cell in plan.cells:
        require_sound(engine_config(plan.options, plan.source, plan.settings, cell), Machine.here())


async def _ask_endpoint(options: Options) -> None:
    endpoint = ChatEndpoint(endpoint_spec(options))
    try:
        await endpoint.check()
    finally:
        await endpoint.close()
