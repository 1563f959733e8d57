"""A character tokenizer in Hugging Face form: small enough that a tiny model learns a task in seconds."""

from __future__ import annotations

import string

from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as BackendTokenizer
from transformers import PreTrainedTokenizerFast

from rollout.renderer import CHATML_TEMPLATE, TURN_END, TURN_START

PAD = "<|endoftext|>"
UNKNOWN = "<unk>"
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END, UNKNOWN)

ROLES = ("system", "user", "assistant", "tool")
"""Whole tokens: a calc episode of two calls is a third shorter than with roles spelled in characters."""

CHARACTERS = "\n" + "".join(sorted(string.ascii_letters + string.digits + string.punctuation + " "))


def make_char_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character of printable ASCII and newline, one a marker of ChatML, one a role name.

    Any other character becomes `<unk>`. The order of ids is fixed: special tokens, characters, roles.
    """
    vocab = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS, *ROLES))}
    # BPE without merges splits a text into its characters.
    backend = BackendTokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNKNOWN, fuse_unk=False))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    backend.add_tokens([AddedToken(role, normalized=False) for role in ROLES])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=TURN_END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[TURN_START],
        chat_template=CHATML_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
