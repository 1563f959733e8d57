"""As one would write them for TRL's GRPOTrainer; nothing here knows of this library."""

from trl.rewards import get_soft_overlong_punishment, think_format_reward

__all__ = ["think_format_reward"]

overlong = get_soft_overlong_punishment(max_completion_len=40, soft_punish_cache=20)


def exact(completions, answer, **kwargs):
    kwargs["log_extra"]("said", [completion[-1]["content"] for completion in completions])
    kwargs["log_metric"]("step", kwargs["trainer_state"].global_step)
    spoken = [completion[-1]["content"].strip() for completion in completions]
    return [float(said == truth) for said, truth in zip(spoken, answer, strict=True)]


async def some(prompts, completions, **kwargs):
    lengths = [len(completion[-1]["content"]) for completion in completions]
    return [None if length % 2 else length / 4 for length in lengths]
