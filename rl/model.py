"""The policy as one nn.Module: everything that touches weights happens inside its forward."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from rl.distributions import generalized_jsd_of_states
from rl.fused_head import fused_logprobs
from rl.layout import PaddedLayout
from rl.logprobs import (
    ENTROPY_TOKENS,
    entropy_stride,
    next_token_targets,
    scatter_tokens,
    token_logprobs,
)
from rl.lora_layers import weight_of
from rl.outputs import TokenOutputs
from rl.router_replay import replayed, routers_of
from rl.trie import trie_options


class PolicyModel(nn.Module):
    """A Hugging Face causal language model whose forward gives log-probabilities of tokens, not logits.

    Sharded weights exist only inside a wrapped module's forward (ZeRO-3 leaves shape (0,) outside), so the
    head and its cross-entropy are in here too, and only for the positions that are trained.
    """

    def __init__(
        self,
        model: Any,
        *,
        temperature: float,
        entropy_gradient: bool = False,
        value_head: bool = False,
        jsd_beta: float = 0.5,
        router_loss: bool = False,
        replay_routing: bool = False,
        head_dtype: torch.dtype = torch.float32,
        chunk_size: int = 1024,
        entropy_tokens: int = ENTROPY_TOKENS,
        needs_log_z: bool = False,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.temperature = temperature
        self.entropy_gradient = entropy_gradient
        self.value_head = ValueHead(model) if value_head else None
        self.jsd_beta = jsd_beta
        self.router_loss = router_loss
        self.replay_routing = replay_routing
        self.head_dtype = head_dtype
        self.chunk_size = chunk_size
        self.entropy_tokens = entropy_tokens
        self.needs_log_z = needs_log_z

    def forward(
        self,
        layout: PaddedLayout,
        teacher: PolicyModel | None = None,
        *,
        wants_entropy: bool = True,
        foreseen: torch.Tensor | None = None,
    ) -> TokenOutputs:
        """Log-probabilities, entropies and, with a value head, values of the sampled tokens.

        Args:
            layout: B right-padded rows of T tokens.
            teacher: a model over the same vocabulary, to compare whole distributions with.
            wants_entropy: whether anything reads it; without, it is NaN.
            foreseen: (N,), what the loss is expected to ask for (rl/foreseen.py); a matter of speed.

        Returns:
            Nats; position t describes token t given tokens < t. Entropy carries a gradient, and is that of
            every token, only with `entropy_gradient`; otherwise of `entropy_tokens` of them at most, evenly
            spread, and NaN at the others. With layout.kept_ids, log-probs, entropy and log Z are of the
            distribution over these ids.
        """
        states, targets, head, router_loss = self._heads(layout, router_loss=self.router_loss)
        logprobs, entropy, log_z = self._logprobs(layout, states, head, targets, wants_entropy, foreseen)
        values = None
        if self.value_head is not None:
            values = scatter_tokens(self.value_head(states), layout.loss_mask)
        divergence = None
        if teacher is not None:
            divergence = scatter_tokens(self._divergence(layout, states, head, teacher), layout.loss_mask)
        return TokenOutputs(
            scatter_tokens(logprobs, layout.loss_mask),
            scatter_tokens(entropy, layout.loss_mask),
            values,
            divergence,
            None if log_z is None else scatter_tokens(log_z, layout.loss_mask),
            router_loss,
        )

    def _logprobs(
        self,
        layout: PaddedLayout,
        states: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        wants_entropy: bool,
        foreseen: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Log-probs, entropies and log Z (N,), the last only where it is needed."""
        kept_ids = None if layout.kept_ids is None else layout.kept_ids[layout.loss_mask]
        whole = partial(
            token_logprobs,
            temperature=self.temperature,
            chunk_size=self.chunk_size,
            head_dtype=self.head_dtype,
        )
        is_narrow = self.head_dtype is not torch.float32 and head.dtype is not torch.float64
        if kept_ids is not None or self.needs_log_z or self.entropy_gradient or is_narrow:
            return whole(states, head, targets, kept_ids=kept_ids, entropy_gradient=self.entropy_gradient)
        stride = entropy_stride(len(targets), self.entropy_tokens) if wants_entropy else 0
        fused = partial(fused_logprobs, temperature=self.temperature, entropy_every=stride)
        return *fused(states, head, targets, foreseen), None

    def _heads(
        self, layout: PaddedLayout, *, router_loss: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """States (N, H) that predict the sampled tokens, those tokens (N,), the head (V, H), router loss."""
        experts = layout.routed_experts if layout.trie is None else layout.trie.routed_experts
        with replayed(self.model, experts) if self.replay_routing else nullcontext():
            hidden, balance = (routed_states if router_loss else plain_states)(self.model, layout)
        states, targets = sampled_states(hidden, layout)
        return states, targets, weight_of(self.model.get_output_embeddings()), balance

    def _divergence(
        self, layout: PaddedLayout, states: torch.Tensor, head: torch.Tensor, teacher: PolicyModel
    ) -> torch.Tensor:
        with torch.no_grad():
            teacher_states, _, teacher_head, _ = teacher._heads(layout)
        return generalized_jsd_of_states(
            (states, head),
            (teacher_states, teacher_head),
            beta=self.jsd_beta,
            temperature=self.temperature,
            chunk_size=self.chunk_size,
        )


class ValueHead(nn.Linear):
    """Hidden states (N, H) to values (N,), float32. It starts at 0: a critic that expects nothing."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(states.to(self.weight.dtype))[:, 0].float()


class ValueModel(nn.Module):
    """A critic with a body of its own: the states of a causal language model, and a value head on them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.value_head = ValueHead(model)

    def forward(self, layout: PaddedLayout) -> torch.Tensor:
        """Values (B, T) of the states before the sampled tokens, float32; 0 where loss_mask is 0."""
        states, _ = sampled_states(hidden_states(self.model, layout), layout)
        return scatter_tokens(self.value_head(states), layout.loss_mask)


def hidden_states(model: Any, layout: PaddedLayout) -> torch.Tensor:
    """The last layer's states before the head: (B, T, H), or (1, U, H) of a trie."""
    return _body(model, layout).last_hidden_state


def sampled_states(hidden: torch.Tensor, layout: PaddedLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """The states (N, H) that predict the sampled tokens, and these tokens (N,), row by row."""
    if layout.trie is None:
        return next_token_targets(hidden, layout.token_ids, layout.loss_mask)
    # Not hidden[0, predictors]: siblings share a predictor, and on a CPU torch adds up the gradients of an
    # indexed row in the order that threads come by.
    return hidden[0].index_select(0, layout.trie.predictors), layout.token_ids[layout.loss_mask]


def plain_states(model: Any, layout: PaddedLayout) -> tuple[torch.Tensor, None]:
    """`hidden_states`, of a model without a router loss."""
    return hidden_states(model, layout), None


def routed_states(model: Any, layout: PaddedLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """`hidden_states` of a mixture of experts, and its load-balancing loss (arXiv 2101.03961, eq. 4 to 6).

    Over real tokens, padding left out; one that several samples share counts once for each. Where every
    expert gets an equal share it is num_experts_per_tok: transformers sums over the experts of a token, the
    paper has one.
    """
    config = model.config.get_text_config()
    outputs = _body(model, layout, output_router_logits=True)
    counts = layout.attention_mask.long() if layout.trie is None else layout.trie.counts
    loss = load_balancing_loss_func(
        outputs.router_logits, config.num_experts, config.num_experts_per_tok, counts
    )
    return outputs.last_hidden_state, torch.as_tensor(loss)


def has_router(model: Any) -> bool:
    """Whether a model is a mixture of experts whose router's load can be balanced."""
    return getattr(model.config.get_text_config(), "num_experts", 0) > 1


def _body(model: Any, layout: PaddedLayout, **options: bool) -> Any:
    backbone: Any = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    if layout.trie is not None:
        return backbone(**trie_options(layout.trie), use_cache=False, **options)
    # Right padding: a causal model's real tokens never see it, so no attention mask has to be built.
    return backbone(input_ids=layout.token_ids, position_ids=layout.position_ids, use_cache=False, **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model's config.json tells. `context_length` (tokens) is None where the architecture has none.

    `num_routers` counts those whose choice can be replayed (rl/router_replay.py).
    """

    num_parameters: int
    context_length: int | None
    has_router: bool = False
    num_routers: int = 0


def model_facts(path: str) -> ModelFacts:
    """Facts of a model folder or hub id; its weights are not read. Raises ValueError like load_causal_lm."""
    model = meta_model(path)
    return ModelFacts(
        num_parameters=sum(p.numel() for p in model.parameters()),
        context_length=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        has_router=has_router(model),
        num_routers=len(routers_of(model)),
    )


def meta_model(path: str) -> Any:
    """A model folder or hub id without its weights: shapes only, however large it is.

    Raises:
        ValueError: the folder or hub id cannot be read as a causal language model.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unloadable(path, error) from error


def load_causal_lm(path: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A model folder or hub id, in `dtype`, in evaluation mode (no dropout: log-probs must be repeatable).

    Code that comes with a model is never run, and only safetensors are read. Options as from_pretrained's.

    Raises:
        ValueError: the folder or hub id cannot be read as a causal language model.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        return AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, trust_remote_code=False, use_safetensors=True, **options
        ).eval()
    except (OSError, ValueError) as error:
        raise _unloadable(path, error) from error


def _unloadable(path: str, error: Exception) -> ValueError:
    return ValueError(
        f"--model {path!r} cannot be loaded as a causal language model: {error}. Expected a folder with "
        f"config.json and safetensors, or the id of such a model on the Hugging Face hub"
    )
