"""A calculator agent that shares no code with ours: transformers, a chat template, a regular expression."""

from __future__ import annotations

import operator
import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
CALL = re.compile(r"\[calc (-?\d+)([-+*])(-?\d+)\]")


@torch.no_grad()
def solves(folder: Path, expressions: list[str], *, seed: int) -> float:
    """The share of `expressions` that the policy in `folder` answers, sampling at temperature 1.

    At most four turns; the answer must be what the calculator returned last.
    """
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    solved = 0
    for expression in expressions:
        messages = [{"role": "user", "content": expression}]
        returned = ""
        for _ in range(4):
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
            said = model.generate(
                ids, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=24, eos_token_id=end
            )[0, ids.shape[1] :]
            text = tokenizer.decode(said[said != end])
            call = CALL.fullmatch(text)
            if call is None:
                solved += text.strip() == returned == str(eval(expression))
                break
            left, sign, right = call.groups()
            returned = str(OPERATIONS[sign](int(left), int(right)))
            messages += [{"role": "assistant", "content": text}, {"role": "tool", "content": returned}]
    return solved / len(expressions)
