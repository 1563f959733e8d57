"""Policies and environments that do what a test of the ReAct loop asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from envs.base import WorldError
from envs.policy import NO_FILTERS, Completion, SamplingParams, VersionSpan
from envs.registry import resolve_env
from envs.splits import Split, task_seed
from envs.tool_env import ToolEnv
from envs.tools import tool
from recipes.char_tokenizer import make_char_tokenizer
from rewards.base import resolve_reward
from rollout.agent import request_seed, run_episode
from rollout.limits import Limits
from rollout.renderer import ChatMLRenderer

CALC = resolve_env("calc")
REWARD = resolve_reward("", CALC)
TASK = CALC.make_task(1, task_seed(Split.TRAIN, 0, 0))
TOKENIZER = make_char_tokenizer()
RENDERER = ChatMLRenderer(TOKENIZER)
END, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id
CALL = "[calc 1+1]"  # 10 characters, 11 tokens with <|im_end|>


class Script:
    """A policy that says its lines in order, each cut at the tokens that it may have."""

    def __init__(self, *lines: str, stop_id: int = END, finish_reason: str | None = None) -> None:
        self.lines, self.stop_id, self.finish_reason = lines, stop_id, finish_reason
        self.prompts: list[tuple[int, ...]] = []
        self.samplings: list[SamplingParams] = []

    async def complete(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Completion:
        line = self.lines[len(self.prompts)]
        self.prompts.append(tuple(prompt_ids))
        self.samplings.append(sampling)
        ids = (*TOKENIZER.encode(line, add_special_tokens=False), self.stop_id)[: sampling.max_tokens]
        return Completion(
            token_ids=ids,
            logprobs=(-0.5,) * len(ids),
            version_spans=(VersionSpan(version=0, start=0, end=len(ids)),),
            finish_reason=self.finish_reason or ("stop" if ids[-1] == self.stop_id else "length"),
        )


class Patient:
    """A policy that waits before it speaks."""

    def __init__(self, policy, wait_s: float) -> None:
        self.policy, self.wait_s = policy, wait_s

    async def complete(self, prompt_ids, sampling):
        await asyncio.sleep(self.wait_s)
        return await self.policy.complete(prompt_ids, sampling)


class Trouble(ToolEnv):
    """Does what the policy asks for: fail as the world fails, fail as a bug, hang."""

    def __init__(self) -> None:
        super().__init__()
        self.num_closed = 0
        self.hangs_at_close = False

    @tool
    async def do(self, what: str) -> str:
        """Fail in the way that `what` names."""
        match what:
            case "world":
                raise WorldError("the sandbox died")
            case "bug":
                raise KeyError("ours")
            case "hang":
                await asyncio.sleep(60)
            case "socket":
                raise TimeoutError("a socket's")
        return what

    async def close(self) -> None:
        self.num_closed += 1
        await super().close()
        if self.hangs_at_close:
            await asyncio.sleep(60)


def reference_lines(task):
    (a, x, b, y), (c, z, d, w) = task.metadata["plan"]
    return f"[calc {a}{x}{b}]", f"[calc {c}{z}{d}]", str(w), y


LIMITS = Limits()


def episode(policy, env=None, *, limits=LIMITS, context_length=1024, task=TASK, filters=NO_FILTERS):
    return run_episode(
        task,
        env or CALC.make_env(),
        policy,
        RENDERER,
        trajectory_id="7-3-0",
        request_seed=partial(request_seed, 0, 7, 3, 0),
        limits=limits,
        context_length=context_length,
        filters=filters,
    )


def prompt_length(task=TASK):
    return len(RENDERER.render(task.messages))
