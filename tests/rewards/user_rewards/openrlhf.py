"""As one would write it for OpenRLHF's remote reward function; nothing here knows of this library."""

import torch


def reward_func(queries, prompts, labels, **kwargs):
    responses = [query[len(prompt) :] for query, prompt in zip(queries, prompts, strict=True)]
    answers = [text.split("assistant\n")[-1].removesuffix("<|im_end|>") for text in responses]
    right = [float(answer == label) for answer, label in zip(answers, labels, strict=True)]
    rewards = torch.tensor(right)
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"length": torch.tensor([len(answers[0])])}}
