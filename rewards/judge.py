"""A judge as a reward: a language model says how good an answer is. `--reward judge:FILE.toml` names one.

What is known to go wrong with judges, and what is done about it here:

- They favour a position (arXiv 2306.05685, section 3.3): modes with two texts are asked in both orders and
  averaged; the part "judge/order_gap" is how far the orders were apart.
- They favour length (arXiv 2404.04475): `length_coef` takes the length's share off, in that paper's form, a
  tanh of the difference in length. What there is fitted over a set of answers is a stated number here, since
  a reward is a function of one episode; "hack/reward_length_correlation" measures what is left of it.
- They obey what they read: see rewards/judge_prompt.py.
- They fail: then the episode is unscored, never 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from math import tanh

from envs.base import JudgeError
from envs.episode import Episode, RewardFn, Score
from envs.messages import Message
from rewards.judge_asking import Asker, EndpointAsker, Nobody, OwnPolicy, PolicyAsker
from rewards.judge_file import JudgeSpec, read_judge
from rewards.judge_prompt import Reply, pieces_of


def read_judge_reward(path: str, own: OwnPolicy | None) -> RewardFn:
    """The reward of a judge file; `own` is the policy that `policy = "self"` asks.

    Raises:
        ValueError: the file is refused, or `own` cannot be asked so.
    """
    spec = read_judge(path)
    if not spec.policy:
        return judge(spec, EndpointAsker(spec))
    return judge(spec, PolicyAsker(spec, own) if own is not None else Nobody())


def judge(spec: JudgeSpec, asker: Asker) -> Callable[[Episode], Awaitable[Score]]:
    """The reward of `spec`. It says what is preferred, not what is right: it has no success of its own.

    Value: low + (high - low) * (share - length penalty), the share being the judge's score in [0, 1], of two
    orders the mean. Unscored, with error_kind "judge", where the judge failed or cannot be read. Whoever
    awaits it sets a deadline (--reward-timeout-s), the wait for one of `num_concurrent` places included.
    """
    places = asyncio.Semaphore(spec.num_concurrent)

    async def ask(values: Mapping[str, str]) -> Reply:
        async with places:
            return await asker.ask(pieces_of(spec.template, values, max_chars=spec.max_chars))

    async def score(episode: Episode) -> Score:
        try:
            replies = await _all(map(ask, questions_of(spec, episode)))
        except JudgeError as error:
            problem = f"{type(error).__name__}: {error}"
            return Score(value=None, error=problem, explanation=error.said, error_kind="judge")
        return judged_score(spec, episode, replies)

    return score


async def _all(asking: Iterable[Awaitable[Reply]]) -> list[Reply]:
    """The replies, when all have come; the first error only then, so that no request is left behind."""
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    replies = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        replies.append(outcome)
    return replies


def questions_of(spec: JudgeSpec, episode: Episode) -> list[dict[str, str]]:
    """The fields of each question about an episode: one, or the two orders of answer and reference.

    Raises:
        JudgeError: the template asks for a reference that the task does not have.
    """
    task, answer = _as_text(episode.task.messages), episode.answer
    if spec.needs_reference and episode.task.answer is None:
        raise JudgeError(f"task {episode.task.id} has no answer for the template's reference")
    reference = episode.task.answer or ""
    if spec.mode == "pointwise":
        transcript = _as_text(episode.transcript)
        return [{"task": task, "transcript": transcript, "answer": answer, "reference": reference}]
    return [
        {"task": task, "first": first, "second": second}
        for first, second in ((answer, reference), (reference, answer))
    ]


def judged_score(spec: JudgeSpec, episode: Episode, replies: Sequence[Reply]) -> Score:
    """The Score of a judge's replies, one for each question of `questions_of`."""
    shares = [reply.share for reply in replies]
    if spec.mode == "pairwise":
        shares[1] = 1.0 - shares[1]  # there "the first" was the reference
    share = sum(shares) / len(shares)
    penalty = length_penalty(spec, episode)
    parts = {
        "judge/score": share,
        **({"judge/order_gap": abs(shares[0] - shares[1])} if len(shares) > 1 else {}),
        **({"judge/length_penalty": penalty} if spec.length_coef else {}),
        "judge/calls": float(len(replies)),
        "judge/prompt_tokens": float(sum(reply.prompt_tokens for reply in replies)),
        "judge/completion_tokens": float(sum(reply.completion_tokens for reply in replies)),
    }
    return Score(
        value=spec.low + (spec.high - spec.low) * (share - penalty),
        parts=parts,
        explanation="\n".join(reply.explanation for reply in replies).strip(),
    )


def length_penalty(spec: JudgeSpec, episode: Episode) -> float:
    """length_coef * tanh((len(answer) - len(reference)) / length_scale), lengths in characters.

    Below 0, a bonus, for an answer shorter than the reference.
    """
    if not spec.length_coef:
        return 0.0
    reference = spec.length_reference or len(episode.task.answer or "")
    return spec.length_coef * tanh((len(episode.answer) - reference) / spec.length_scale)


def _as_text(messages: Sequence[Message]) -> str:
    """Messages as lines of `role: text`, calls in brackets as made; a single one as its text alone."""
    if len(messages) == 1:
        return messages[0].text
    return "\n".join(
        f"{entry.role}: {entry.text}{''.join(f'[{call.text}]' for call in entry.tool_calls)}"
        for entry in messages
    )
