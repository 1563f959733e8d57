"""Everything that defines a run, in one flat value. `rl/validation.py` says which values fit together."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Annotated, Any, Literal

from envs.policy import SamplingFilters
from rl.algorithms import describe, get_algorithm
from rl.backend_settings import BackendSettings
from rl.drills import Sabotage
from rl.layout_settings import LayoutSettings
from rl.lora_settings import LoraSettings
from rl.overrides import Count, Decay, NonNegative, Overrides, Positive, Range, Share, Size
from rl.world_settings import WorldSettings

Device = Literal["auto", "cpu", "cuda"]
EngineDtype = Literal["auto", "float32", "bfloat16", "float16"]
LearnerDtype = Literal["float32", "bfloat16", "float16"]
HeadDtype = Literal["float32", "bfloat16", "float16"]
NonfinitePolicy = Literal["skip", "stop"]
Determinism = Literal["fast", "exact"]
AtMaxDraws = Literal["stop", "fill"]
SyncBackend = Literal["auto", "shm", "ipc", "nccl"]
LrSchedule = Literal["constant", "linear", "cosine"]

# Largest |log-prob difference| (nats) on a sampled token between engine and learner that still counts as the
# same policy. float32: 1e-5 measured, 1e-2 when a tied head is stale. bfloat16: 4e-3 on average and 0.2 on
# the unlikeliest token measured on half a million parameters; float16 has 3 more bits of mantissa.
GAP_LIMITS = {"float32": 1e-4, "float16": 0.1, "bfloat16": 1.0}


@dataclass(frozen=True, kw_only=True)
class Config(LoraSettings, WorldSettings, BackendSettings, LayoutSettings, Overrides):
    """One run. A recipe holds one such value; the command line overrides any field.

    Fields that are "auto" (0 or None for numbers) are filled in by `resolve`, so that the recorded
    configuration holds what was used.
    """

    # What is learned
    seed: Size = 0
    """Seed of everything random. The same seed gives the same tasks, prompts and order."""
    env: str = "calc"
    """Environment by name, `my_env.py:ENV` or `package.module:ENV`. --env grid:0 names the level too."""
    level: Size = 1
    """Difficulty of the tasks; which levels there are is the environment's affair."""
    reward: str = ""
    """Reward by name or `file.py:function`, one written for TRL, verl or OpenRLHF as it is; empty: the
    environment's own. `shuffled:calc` deals calc's rewards at random within the batch: a control that must
    not learn."""
    reward_workers: Size = 0
    """Child processes for a reward of your own, over all engines. 0 is auto: one a core, up to 8."""
    reward_timeout_s: Positive = 30.0
    """Wall seconds for one call of the reward; then its episode is unscored, its child process killed."""
    algorithm: str = "grpo"
    """Row of the table in rl/algorithms.py, or `file.py:ROW`: one of your own."""
    model: str = ""
    """Folder or hub id of a Hugging Face model; empty: the recipe makes its own small one. Code that comes
    with a model is never run."""

    teacher: str = ""
    """Folder or hub id of the model that a distillation row (opd, jsd) learns from, over the same vocabulary.
    Empty: recipes.calc_distill makes its own."""

    # The step
    num_steps: Count = 60
    """Training steps. Each samples num_groups x group_size trajectories and makes num_minibatches updates."""
    budget_tokens: Size = 0
    """Training ends after the first step by which the run has sampled this many tokens, unless num_steps
    comes first; the learning rate still falls as for num_steps. 0: num_steps alone ends it."""
    num_tasks: Size = 0
    """Tasks that training draws from, again and again in another order; 0: no task comes twice."""
    num_groups: Count = 16
    """Tasks a step."""
    group_size: Count = 8
    """Trajectories a task: what GRPO and RLOO compare with each other."""
    num_minibatches: Count = 1
    """Optimizer updates a step, each on an equal share of the trajectories. 1 is on policy: nothing is
    clipped."""
    micro_batch_size: Count = 32
    """Trajectories in one forward and backward pass: memory only, the gradient does not depend on it."""
    temperature: Positive = 1.0
    """Sampling temperature of training; the learner applies the same one, so log-probs agree."""
    top_p: Annotated[float, Range(0, 1, above_zero=True)] = 1.0
    """Training draws from the likeliest tokens that have this probability together; 1: from all. Log-probs of
    the learner are of all tokens: a row must correct for the difference, or replay_sampling_mask be set."""
    top_k: Size = 0
    """Training draws from so many of the likeliest tokens; 0: from all."""
    min_p: Decay = 0.0
    """Training draws from the tokens at least this share as likely as the likeliest; 0: from all."""
    replay_sampling_mask: bool = False
    """The learner normalises over exactly the tokens that could be drawn, which the engine returns (Keep
    Sampling Mask, DeepSeek-V3.2): both agree again, nothing has to be corrected. Needs top_k, 1 to 20."""
    max_draws_per_group: Count = 8
    """Dynamic sampling (rows with dynamic_sampling): tasks drawn for one group with unequal rewards."""
    at_max_draws: AtMaxDraws = "stop"
    """When they are used up: stop the run, or fill the step up with groups of equal rewards."""

    # The optimizer (AdamW)
    learning_rate: NonNegative = 3e-4
    """Peak learning rate. 0 trains nothing: a control that must end in FAIL."""
    critic_lr: NonNegative | None = None
    """Peak learning rate of a critic. None: the policy's."""
    lr_schedule: LrSchedule = "constant"
    """After warm-up: constant, or falling to 0 at the last update linearly or as a half cosine."""
    warmup_steps: Size = 0
    """Steps over which the learning rate rises linearly from 0 to its peak."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay. 0: RL moves little, and decay pulls an untouched weight away from its value."""
    adam_beta1: Decay = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: Decay = 0.95
    """Decay of AdamW's second moment; below the usual 0.999, since runs are short and gradients change."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this global L2 norm."""

    # Limits of one trajectory; reaching one ends it with its own stop reason
    max_turns: Count = 8
    """Turns."""
    max_turn_tokens: Count = 64
    """Tokens that the policy may sample in one turn."""
    max_total_tokens: Count = 384
    """Tokens in all: prompts, sampled and tool results."""
    max_tool_calls: Size = 16
    """Tool calls."""
    max_wall_s: Positive = 60.0
    """Wall seconds, waiting included."""

    # Failures of the world (sandbox, tool server, one request of an engine) and of the reward
    max_attempts: Count = 2
    """Times that a task is played, in a fresh environment and with the same seeds, before a trajectory that
    the world spoils is given up; 1: no retry. None begins later than max_wall_s after the first."""
    max_error_rate: Share = 0.5
    """The run stops when more than this share of its last error_window episodes failed by the world or the
    reward; 1: however many, as long as each step has a score."""
    error_window: Count = 256
    """Episodes of that share; it counts from 32 of them on."""

    # Placement and precision
    device: Device = "auto"
    """Where engines and learner compute. auto: a GPU where there is one."""
    engines: Count = 1
    """vLLM engines."""
    engine_threads: Size = 0
    """CPU threads of each engine. 0 is auto: 1, with which results do not depend on what shares a batch."""
    learner_threads: Size = 0
    """CPU threads of the learner. 0 is auto: every core, up to 8; engines idle while the learner works."""
    engine_dtype: EngineDtype = "auto"
    """Precision of the engines. auto: float32 on a CPU, bfloat16 on a GPU."""
    learner_dtype: LearnerDtype = "float32"
    """Precision in which the learner computes; weights and optimizer are float32. float16 scales the loss."""
    head_dtype: HeadDtype = "float32"
    """Precision of the head's matrix product in the learner; log-softmax and loss are always float32."""
    determinism: Determinism = "fast"
    """exact: a second run from the same seed on the same machine is bit-equal, by one thread an engine on the
    CPU, batch-invariant kernels on a GPU; it stops where the clock ends a trajectory. fast: equal tasks,
    prompts, sampling seeds and order; the start screen says what may vary."""
    replay_routing: bool = False
    """Mixtures of experts: the learner sends each token to the experts that the engine chose (R3)."""
    context_length: Count = 512
    """Longest prompt plus answer that the engines accept, in tokens."""
    num_concurrent: Size = 0
    """Trajectories that one engine works on at a time. 0 is auto: an engine's share of a step."""
    max_staleness: Size = 0
    """Steps by which the sampling policy may lag behind the learner. Only 0, synchronous, for now."""

    # Weight sync and its proof
    sync_backend: SyncBackend = "auto"
    """Channel for weights. shm: shared memory on one host; ipc: within one GPU; nccl: between GPUs."""
    max_gap: Positive | None = None
    """Largest log-prob difference (nats) of a sampled token between engine and learner before the run stops.
    None: by precision, 1e-4 for float32."""
    num_gap_groups: Count = 2
    """Groups of real trajectories on which the gap is measured before the first step."""
    num_canaries: Count = 4
    """Fixed prompts that both sides score after every sync."""
    canary_tokens: Annotated[int, Range(2)] = 64
    """Length of each of them in tokens."""

    nonfinite_policy: NonfinitePolicy = "skip"
    """What becomes of a run with a gradient that is not finite. Its update is never applied and the batch is
    kept in the run directory; skip goes on until max_skipped_steps steps in a row had one, stop ends at the
    first."""
    max_skipped_steps: Count = 3
    """Steps in a row with an update that was not applied, after which the run stops."""

    # Evaluation and verdict
    eval_tasks: Count = 256
    """Held-out tasks on which the starting and the trained policy are compared."""
    eval_temperature: NonNegative = 1.0
    """Sampling temperature of evaluation; 0 is greedy."""
    eval_every: Size = 0
    """Evaluate every so many steps as well; 0: only before and after training."""
    min_gain: Share = 0.3
    """PASS needs a rise in success of at least this much, and 95 % intervals that are apart."""

    # What is written and shown
    save_every: Size = 0
    """Save a checkpoint every so many steps, and at the end. 0 is auto: about ten times a run."""
    keep_checkpoints: Size = 2
    """Checkpoints that are kept, the newest ones; 0: all."""
    resume: str = ""
    """Directory of an interrupted run to go on with, on the settings that it recorded."""
    force_resume: bool = False
    """Resume although settings, code, inputs or libraries have changed; what has is recorded."""
    show_every: Size = 10
    """Show one trajectory every so many steps; 0: never."""
    run_dir: str = ""
    """Directory of the run, new or empty. Empty: runs/<recipe>-<time>."""
    trackers: str = ""
    """Where metrics go besides metrics.jsonl: wandb, tensorboard, or wandb,tensorboard. wandb reads its own
    environment (WANDB_MODE=offline, WANDB_PROJECT, ...). A tracker that fails never stops the run."""
    max_record_mb: Positive = 1000.0
    """Trajectories are recorded until their file has this size."""
    cache_dir: str = ""
    """Where starting policies are kept. Empty: ~/.cache/whetstone."""

    # The monitor of reward hacking: it warns and stops nothing
    hacking_window: Size = 10
    """Steps in each of the two windows that it compares, at least 5; 0: no monitor."""
    hacking_reference: str = ""
    """Metric that must not fall while the reward rises, such as reward/exact. Empty: rollout/success."""

    # Deadlines: no wait without one
    engine_start_s: Positive = 300.0
    """For an engine to load and answer."""
    group_deadline_s: Positive = 300.0
    """For the groups of one step."""
    learner_deadline_s: Positive = 600.0
    """For one call of the learner."""
    sync_deadline_s: Positive = 120.0
    """For one weight sync with its proof."""

    # Drills
    sabotage: Sabotage = ""
    """Break the run on purpose, to see that it notices: the first weight sync, or (perturb_learner) the
    learner's weights before the start. Empty: off."""
    smoke: bool = False
    """A short real run: other defaults for the number of steps and their sizes (see SMOKE)."""

    def make_algorithm(self) -> Any:
        """The row that this configuration names, with its overrides: an Objective.

        Raises:
            ValueError: an unknown row or value (the nearest is named), or an override without effect in it.
        """
        return get_algorithm(self.algorithm, **self.overrides)

    def describe_algorithm(self) -> str:
        """One line that says what the row does."""
        return describe(self.make_algorithm())

    @property
    def num_trajectories(self) -> int:
        """Trajectories a step."""
        return self.num_groups * self.group_size

    @property
    def num_minibatch_trajectories(self) -> int:
        """Trajectories an optimizer update."""
        return self.num_trajectories // self.num_minibatches

    @property
    def num_micro_batches(self) -> int:
        """Forward and backward passes an optimizer update."""
        return self.num_minibatch_trajectories // self.micro_batch_size

    @property
    def num_optimizer_steps(self) -> int:
        """Optimizer updates of the whole run."""
        return self.num_steps * self.num_minibatches

    @property
    def gap_limit(self) -> float:
        """The largest log-prob gap allowed (nats); of a resolved configuration.

        Under top-p the engine's log-probs are larger by what it cuts away, at most -log(top_p), unless the
        learner replays the mask.
        """
        if self.max_gap is not None:
            return self.max_gap
        cut = 0.0 if self.replay_sampling_mask else -log(self.top_p)
        return max(GAP_LIMITS[self.engine_dtype], GAP_LIMITS[self.learner_dtype]) + cut

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """The trackers, one by one."""
        return tuple(name.strip() for name in self.trackers.split(",")) if self.trackers else ()

    @property
    def filters(self) -> SamplingFilters:
        """Which tokens training may draw."""
        return SamplingFilters(
            top_p=self.top_p, top_k=self.top_k, min_p=self.min_p, return_kept=self.replay_sampling_mask
        )
