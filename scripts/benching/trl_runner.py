"""TRL's GRPOTrainer, one step a command, run in .venv-trl: `python -m scripts.benching.trl_runner FOLDER`.

FOLDER holds the model. Commands: `train` (a step on the completions of the batch at `path`), `step` (the same
batch's prompts, completions generated with the batch's lengths), `logprobs` (of the batch, written to `to`).
A step answers with its CPU seconds; `cpu_s` is the training part: loss, backward and optimizer.

The settings are the fastest that TRL has on a CPU: float32, no gradient checkpointing, no KL. Nothing of
whetstone's packages is imported.
"""

# ruff: noqa: E402  (what is hidden must be hidden before the imports)
from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

# .venv-trl sees our packages, and TRL imports what it finds: a peer's own environment has none of these.
for hidden in ("vllm", "ray", "deepspeed", "peft", "wandb", "tensorboard", "bitsandbytes", "torchvision"):
    sys.modules[hidden] = None  # type: ignore[assignment]

import datasets
import numpy as np
import torch
import transformers
import trl
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import pad

from scripts.benching.commands import Commands
from scripts.benching.workload import EOS_ID, PAD_ID, Batch, share_of_even, text_of

MICRO_BATCH_SIZE = 8


class ForcedLengths(transformers.LogitsProcessor):
    """Row by row: no end before the length that is asked for, and the end at it."""

    def __init__(self, num_prompt: int, lengths: Sequence[int]) -> None:
        self._ends = torch.tensor(lengths) + num_prompt

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores[:, EOS_ID] = -torch.inf
        is_last = self._ends == input_ids.shape[1] + 1
        scores[is_last] = -torch.inf
        scores[is_last, EOS_ID] = 0.0
        # Rows that have ended are padded by `generate` itself, whatever is drawn for them.
        return scores


class CommandedTrainer(GRPOTrainer):
    """Each of its steps waits for a command, takes the command's batch, and tells what it took."""

    commands: Commands
    batch: Batch
    do = ""
    forwarded = 0

    def serve(self, commands: Commands) -> None:
        """Train until there are no more commands."""
        self.commands, self._pending = commands, iter(commands)
        self.add_callback(_StepEnds(self))
        model: Any = self.model
        model.get_input_embeddings().register_forward_pre_hook(self._count)
        self._generate_plainly = model.generate
        model.generate = self._generate_with_lengths
        self.train()

    def ended(self) -> None:
        """The optimizer has stepped."""
        now = time.process_time()
        self.commands.answer(
            cpu_s=now - self.rolled_out,
            step_cpu_s=now - self.began,
            forwarded=self.forwarded,
            num_trained=self.batch.num_trained,
        )

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        del inputs  # the data set's rows only drive the loop
        for command in self._pending:
            self.do, self.batch = command["do"], Batch.load(command["path"])
            if self.do != "logprobs":
                break
            self._write_logprobs(command["to"])
        else:
            sys.exit()
        self.began = time.process_time()
        rows = [{"prompt": text_of(prompt)} for prompt, _ in self.batch.pairs]
        output = super()._generate_and_score_completions(rows)
        self.rolled_out, self.forwarded = time.process_time(), 0
        return output

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **options: Any) -> Any:
        if prompt_ids != [prompt for prompt, _ in self.batch.pairs]:
            raise RuntimeError("the tokenizer did not give back the prompts' ids")
        if self.do == "train":
            return self.batch.completions, None
        made = super()._generate_single_turn(prompt_ids, *rest, **options)
        if list(map(len, made[0])) != list(map(len, self.batch.completions)):
            raise RuntimeError(f"lengths {[*map(len, made[0])]} were generated")
        return made

    def _generate_with_lengths(self, **options: Any) -> Any:
        lengths = [len(completion) for completion in self.batch.completions]
        forced = ForcedLengths(options["input_ids"].shape[1], lengths)
        return self._generate_plainly(**options, logits_processor=transformers.LogitsProcessorList([forced]))

    def _count(self, module: Any, args: tuple[torch.Tensor]) -> None:
        self.forwarded += args[0].numel()

    @torch.no_grad()
    def _write_logprobs(self, to: str) -> None:
        """The trainer's own log-probs of the batch's completions, one array a sample."""
        prompts, completions = (
            [torch.tensor(ids) for ids in side] for side in zip(*self.batch.pairs, strict=True)
        )
        ids, mask = (
            torch.cat(
                [pad(left, padding_value=fill, padding_side="left"), pad(right, padding_value=fill)], dim=1
            )
            for left, right, fill in (
                (prompts, completions, PAD_ID),
                ([*map(torch.ones_like, prompts)], [*map(torch.ones_like, completions)], 0),
            )
        )
        width = max(map(len, completions))
        logprobs = self._get_per_token_logps_and_entropies(self.model, ids, mask, width, MICRO_BATCH_SIZE)[0]
        rows = zip(logprobs, completions, strict=True)
        np.savez(to, *[row[: len(completion)].numpy() for row, completion in rows])
        self.commands.answer(**versions())


class _StepEnds(transformers.TrainerCallback):
    def __init__(self, trainer: CommandedTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._trainer.ended()


def versions() -> dict[str, str]:
    return {
        "trl": trl.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    commands = Commands()
    folder, num_samples, group_size, longest = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = GRPOConfig(
        output_dir=f"{folder}/trl",
        max_steps=1_000_000,
        per_device_train_batch_size=min(MICRO_BATCH_SIZE, num_samples),
        gradient_accumulation_steps=max(1, num_samples // MICRO_BATCH_SIZE),
        num_generations=group_size,
        max_completion_length=longest,
        temperature=1.0,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        use_vllm=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1_000_000,
        log_level="error",
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    trainer = CommandedTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=lambda completion_ids, **_: [share_of_even(ids) for ids in completion_ids],
        args=config,
        train_dataset=datasets.Dataset.from_list([{"prompt": "w3"}] * num_samples),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.serve(commands)


if __name__ == "__main__":
    main()
