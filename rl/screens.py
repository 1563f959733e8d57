"""The start screen, the line of a step and the end screen as text: pure functions of facts and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rl.config import Config
from rl.determinism import determinism_lines
from rl.intervals import SuccessRate, Verdict

if TYPE_CHECKING:
    from rl.gates import Gap

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One process of the run and where it computes. `num_threads` are CPU threads."""

    name: str  # "learner", "engine 0"
    device: str  # "cpu", "cuda:0"
    num_threads: int
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A channel (from one role to another) or a communicator (a collective over several)."""

    name: str  # "weights"
    between: str  # "learner -> engine 0"
    by: str  # "shared memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFacts:
    """What the start screen tells. `config` is resolved; `sync_bytes` is what one weight sync moves."""

    title: str
    config: Config
    roles: Sequence[Role]
    channels: Sequence[Link]
    communicators: Sequence[Link]
    num_parameters: int
    num_trained: int  # of them, or of an adapter beside them
    sync_bytes: int
    num_cores: int
    versions: Mapping[str, str]
    run_dir: str
    reward_note: str = ""  # how a user's reward is called, where that is not plain
    sandbox: str = ""  # where model-written code runs, if any does


@dataclass(frozen=True, slots=True, kw_only=True)
class EndFacts:
    """What the end screen tells: success before and after training, the verdict, and where to go on."""

    before: SuccessRate
    after: SuccessRate
    verdict: Verdict
    wall_s: float
    paths: Mapping[str, str]  # what was written -> where
    next_commands: Sequence[str]
    num_unscored: tuple[int, int] = (0, 0)  # episodes before and after that count as not solved


def start_lines(facts: StartFacts) -> Iterator[str]:
    """Device map, batch arithmetic, weight sync, versions."""
    config = facts.config
    yield facts.title
    yield ""
    yield f"devices         ({facts.num_cores} cores)"
    yield from _table(
        (role.name, role.device, _threads(role.num_threads), role.detail) for role in facts.roles
    )
    yield "channels"
    yield from _table((link.name, link.between, link.by) for link in facts.channels)
    yield "communicators"
    yield from _table((link.name, link.between, link.by) for link in facts.communicators)
    yield "batch"
    yield from (f"  {line}" for line in batch_lines(config))
    yield "weights"
    yield f"  {facts.num_parameters:,} parameters; a sync moves {facts.sync_bytes:,} bytes to each engine"
    if config.trains_adapter:
        yield f"  {adapter_line(config, facts.num_trained)}"
    yield "run"
    reward = config.reward or f"{config.env}'s own"
    yield f"  {config.env} level {config.level}, reward: {reward}, seed {config.seed}"
    if facts.reward_note:
        yield f"  {facts.reward_note}"
    yield f"  {config.describe_algorithm()}"
    yield f"  written to {facts.run_dir}"
    if facts.sandbox:
        yield f"  {facts.sandbox}"
    yield "determinism"
    yield from (f"  {line}" for line in determinism_lines(config))
    yield "versions"
    yield "  " + ", ".join(f"{name} {version}" for name, version in facts.versions.items())


def adapter_line(config: Config, num_trained: int) -> str:
    """What an adapter is, how it learns and how it gets to the engines; of a resolved configuration."""
    made = f"rank {config.lora_rank}, alpha {config.lora_alpha or 0:g}, beside {config.lora_targets}"
    rate = f"learning rate {config.lora_lr:g} (--lora.lr; learning_rate is {config.learning_rate:g})"
    held = "all frozen" if config.lora_base == "full" else f"all frozen, linear layers in {config.lora_base}"
    return (
        f"{held}; a LoRA adapter learns ({config.lora_adapter or made}): {num_trained:,} parameters, "
        f"{rate}; engines get {'it alone' if config.lora_sync == 'adapter' else 'the model with it merged'}"
    )


def batch_lines(config: Config) -> Iterator[str]:
    """The batch arithmetic, with units."""
    yield (
        f"{config.num_groups} tasks x {config.group_size} trajectories a task"
        f" = {config.num_trajectories} trajectories a step"
    )
    yield (
        f"{config.num_trajectories} trajectories / {config.num_minibatches} minibatches"
        f" = {config.num_minibatch_trajectories} trajectories an optimizer update"
    )
    if config.micro_batch_tokens:
        yield (
            f"{config.num_minibatch_trajectories} trajectories in forward passes of at most "
            f"{config.micro_batch_tokens:,} tokens"
        )
    else:
        yield (
            f"{config.num_minibatch_trajectories} trajectories / {config.micro_batch_size} in a forward pass"
            f" = {config.num_micro_batches} micro-batches an update"
        )
    yield (
        f"{config.num_steps} steps x {config.num_minibatches} updates"
        f" = {config.num_optimizer_steps} optimizer updates,"
        f" {config.num_steps * config.num_trajectories:,} trajectories"
    )


def gap_lines(before: Gap, after: Gap, limit: float) -> Iterator[str]:
    """The measured log-prob gap between engine and learner, with its limit."""
    yield f"log-prob gap between engine and learner, nats (limit {limit:.1e} on any token)"
    for when, gap in (("before any sync", before), ("after a sync that changed every tensor", after)):
        word = "within" if gap.max <= limit else "ABOVE"
        numbers = f"max {gap.max:.1e}  mean {gap.mean:.1e}  {gap.num_tokens:,} tokens"
        yield f"  {when:<39} {numbers}  {word} the limit"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the step lines: the metrics that its cell shows, in the places of `form`."""

    header: str
    width: int
    form: str
    names: tuple[str, ...]

    def cell(self, metrics: Metrics) -> str:
        """`-` where the step has no such metric: nothing was scored, or the algorithm has no such term."""
        if not all(name in metrics for name in self.names):
            return "-"
        return self.form.format(*(metrics[name] for name in self.names))


COLUMNS = (
    Column("reward", 9, "{:.2f}±{:.2f}", ("rollout/reward_mean", "rollout/reward_std")),
    Column("success", 7, "{:.3f}", ("rollout/success",)),
    Column("tokens", 6, "{:.1f}", ("rollout/response_tokens",)),
    Column("turns", 5, "{:.2f}", ("rollout/turns",)),
    Column("errors", 6, "{:.2f}", ("rollout/tool_errors",)),
    Column("nll", 7, "{:.4f}", ("sft/loss",)),
    Column("kl old", 7, "{:.1e}", ("policy/approx_kl_k3",)),
    Column("kl ref", 7, "{:.1e}", ("policy/kl_ref_k3",)),
    Column("margin", 7, "{:.3f}", ("preference/margin",)),
    Column("pairs", 5, "{:.0f}", ("preference/pairs",)),
    Column("kl teach", 8, "{:.1e}", ("distill/teacher_kl_k1",)),
    Column("clip -/+", 9, "{:.2f}/{:.2f}", ("policy/clip_frac_low", "policy/clip_frac_high")),
    Column("entropy", 7, "{:.3f}", ("policy/entropy",)),
    Column("gap", 7, "{:.1e}", ("gap/abs_max",)),
    Column("stale", 5, "{:.0f}", ("version/staleness_max",)),
    Column("step s", 6, "{:.1f}", ("time/total_s",)),
    Column("generate", 8, "{:.1f}", ("time/generate_s",)),
    Column("tools", 5, "{:.1f}", ("time/tools_s",)),
    Column("reward", 6, "{:.1f}", ("time/reward_s",)),
    Column("train", 5, "{:.1f}", ("time/train_s",)),
    Column("sync", 4, "{:.1f}", ("time/sync_s",)),
)


def columns_of(metrics: Metrics) -> tuple[Column, ...]:
    """The columns that a run has something to show in, by the metrics of its first step."""
    return tuple(column for column in COLUMNS if metrics.keys() >= set(column.names))


def step_header(columns: Sequence[Column] = COLUMNS) -> str:
    return "step " + " ".join(f"{column.header:>{column.width}}" for column in columns)


def step_line(step: int, metrics: Metrics, columns: Sequence[Column] = COLUMNS) -> str:
    """One step in the columns of `step_header`, the last six are seconds; reward errors at its end."""
    cells = " ".join(f"{column.cell(metrics):>{column.width}}" for column in columns)
    num_errors = metrics.get("reward/errors", 0)
    return f"{step:>4} {cells}" + (f"  {num_errors:.0f} reward errors" if num_errors else "")


def world_note(metrics: Metrics) -> str:
    """What the world or the reward spoiled in a step, and what a further attempt saved; "" for nothing."""
    told = {
        "failed by the world": _kinds(metrics, "error/"),
        "by the reward": _kinds(metrics, "unscored/"),
        "tried again": _kinds(metrics, "retry/"),
        "failed to close": f"{count:.0f}" if (count := metrics.get("rollout/close_errors")) else "",
    }
    return "; ".join(f"{what}: {kinds}" for what, kinds in told.items() if kinds)


def _kinds(metrics: Metrics, family: str) -> str:
    kinds = sorted(name for name in metrics if name.startswith(family))
    return ", ".join(f"{name.removeprefix(family)} {metrics[name]:.0f}" for name in kinds)


def end_lines(facts: EndFacts) -> Iterator[str]:
    """Success before and after, what was written, what to try next; the last line is the verdict."""
    yield ""
    yield "success on held-out tasks"
    yield f"  starting policy  {success_text(facts.before, facts.num_unscored[0])}"
    yield f"  trained policy   {success_text(facts.after, facts.num_unscored[1])}"
    yield "written"
    yield from _table(facts.paths.items())
    yield "next"
    yield from (f"  {command}" for command in facts.next_commands)
    yield ""
    yield verdict_line(facts.verdict, facts.wall_s)


def success_text(rate: SuccessRate, num_unscored: int) -> str:
    """A success rate, and how many of its failures are episodes that could not be scored, if any."""
    return f"{rate}" + (f"; {num_unscored} unscored, counted as not solved" if num_unscored else "")


def verdict_line(verdict: Verdict, wall_s: float) -> str:
    word = "PASS" if verdict.passed else "FAIL"
    return f"{word}: {verdict.reason} (whole run: {wall_s:.0f} s)"


def _threads(number: int) -> str:
    return f"{number} thread" + ("" if number == 1 else "s")


def _table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Rows with their columns aligned, indented by two."""
    cells = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
