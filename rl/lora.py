"""Which LoRA adapters fit a model, and where an adapter is used. No peft: that is in rl/model_lora.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from envs.names import unknown_name
from rl.layout import PaddedLayout
from rl.lora_settings import ALL_LINEAR, AUTO, C
from rl.model import has_router, meta_model
from rl.outputs import TokenOutputs

if TYPE_CHECKING:
    from rl.config import Config
    from rl.learner_spec import LearnerSpec
    from rl.model_lora import Adapter

PREFIX = "base_model.model."
"""Of every name in a file of peft's."""

SMALL_VOCABULARY = 1024
"""Up to which "auto" adapts the token embedding too: a table of characters is much of a tiny model. Measured
on the calc policy by supervised steps, the chance of a reference episode came to 0.65 without, 0.76 with it,
and 0.78 with all weights."""

MAX_NAMED = 4
"""Differences that an error names; the others it counts."""


def start_adapter(model: Any, spec: LearnerSpec) -> Adapter | None:
    """The adapter of `spec`, put beside the layers of `model`, which is frozen; None where spec.lora is None.

    Raises:
        ValueError: the targets match no module, the starting adapter is of another base, or the adapter is
            one that several ranks cannot train (`tied_problems`).
    """
    if spec.lora is None:
        return None
    # peft takes a second to import, and a learner without an adapter never needs it.
    from rl.model_lora import Adapter

    adapter = Adapter(model, spec.lora, base=spec.model)
    if adapter.is_tied and spec.backend != "plain":
        raise ValueError(_tied_problem(spec.backend, spec.lora.adapter))
    return adapter


Scorer = Callable[..., TokenOutputs]
"""What scores a layout: a policy, or a policy as it was."""


def as_it_began(forward: Callable[..., TokenOutputs], adapter: Adapter) -> Scorer:
    """The policy that training starts from, without a second model: the frozen base of an adapter.

    It is `forward`, by which the trained model (rl/backends/trained.py) is called, while the adapter is taken
    away or set to what it began as.
    """

    def score(layout: PaddedLayout, **options: bool) -> TokenOutputs:
        with adapter.as_reference():
            return forward(layout, wants_values=False, **options)

    return score


def fit_problems(config: Config) -> Iterator[str]:
    """Why the adapter of a resolved `config` cannot be beside its model; only shapes are read."""
    if not config.trains_adapter:
        return
    config, model = with_targets(config), meta_model(config.model)
    if config.lora_adapter:
        from rl.model_adapter import adapter_problems  # with peft, as above

        yield from adapter_problems(model, config.lora_adapter, config.model, base_format=config.lora_base)
    else:
        yield from target_problems(model, config.target_names)
    yield from tied_problems(config, model)
    if config.lora_sync == "adapter":
        for problem in unserved(model, config.model, served_shape(config)[1]):
            yield f"lora_sync = 'adapter': {problem}; use lora_sync merged"


def unserved(model: Any, name: str, targets: Iterable[str]) -> Iterator[str]:
    """Why engines are not given adapters beside modules of `model` (meta will do), called `name`.

    `targets` are the last parts of the modules' names.
    """
    if has_router(model):
        yield f"model {name} is a mixture of experts, whose adapters engines are not given here"
    if of_tokens := [name for name in targets if name in _last_parts([*token_layers(model), "lm_head"])]:
        yield f"engines are not given adapters of {', '.join(of_tokens)} here"


def tied_problems(config: Config, model: Any) -> Iterator[str]:
    """An adapter of a tied embedding on ranks: one memory under two names, which is split as two there."""
    if config.backend == "plain" or not _is_tied(model):
        return
    _, names = served_shape(config)
    if set(names) & set(_last_parts(token_layers(model))):
        yield _tied_problem(config.backend, config.lora_adapter)


def _tied_problem(backend: str, adapter: str) -> str:
    given = f"lora_adapter = {adapter!r}" if adapter else "lora_targets"
    return (
        f"{given} with backend = {backend!r}: it adapts the token embedding, which is tied to the head, and "
        "the one adapter of both is trained by plain torch only; use backend plain, or "
        + ("another adapter" if adapter else f"lora_targets {ALL_LINEAR}")
    )


def num_trained(config: Config, num_parameters: int) -> int:
    """How many of the model's `num_parameters`, or of its adapter, are trained; 0 for a starting adapter."""
    if not config.trains_adapter:
        return num_parameters
    model = meta_model(config.model)
    layers: dict[str, Any] = {**linear_layers(model), **token_layers(model)}
    targets = named_targets(model, with_targets(config).target_names)
    return config.lora_rank * sum(
        sum(shape_of_layer(layer))
        for name, layer in layers.items()
        if any(_is_named(name, target) for target in targets)
    )


def served_shape(config: Config) -> tuple[int, tuple[str, ...]]:
    """What an engine makes room for: the adapter's largest rank, and the last parts of its modules' names."""
    if config.lora_adapter:
        from rl.model_lora import shape_of  # with peft, as above

        return shape_of(config.lora_adapter)
    names = named_targets(meta_model(config.model), config.target_names)
    return config.lora_rank, tuple(_last_parts(names))


def linear_layers(model: Any) -> dict[str, nn.Linear]:
    """Every linear layer but the head, by name."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def shape_of_layer(layer: Any) -> tuple[int, int]:
    """(rows, columns) of a linear layer's or an embedding's weight, also where its data are codes."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.num_embeddings, layer.embedding_dim


def linear_names(model: Any) -> list[str]:
    """The last part of the name of each of them, once."""
    return _last_parts(linear_layers(model))


def token_layers(model: Any) -> dict[str, nn.Module]:
    """The token embedding, and the head where it has weights of its own, by name.

    An adapter of a tied embedding is one of the head as well.
    """
    ends = {model.get_input_embeddings()}
    if not _is_tied(model):
        ends.add(model.get_output_embeddings())
    return {name: module for name, module in model.named_modules() if module in ends}


def _is_tied(model: Any) -> bool:
    """Whether a model's head and its token embedding are one."""
    return model.config.get_text_config().tie_word_embeddings


def _last_parts(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def named_targets(model: Any, targets: Sequence[str]) -> list[str]:
    """`targets` with all-linear written out: by that word peft adapts a mixture's experts as well."""
    linear = linear_names(model) if ALL_LINEAR in targets else []
    return [*linear, *(name for name in targets if name not in (ALL_LINEAR, *linear))]


def with_targets(config: C) -> C:
    """`config` with the targets that "auto" stands for, now that its model is known."""
    if not config.trains_adapter or config.lora_targets != AUTO:
        return config
    targets = [ALL_LINEAR]
    model = None if config.lora_adapter or config.lora_sync == "adapter" else meta_model(config.model)
    has_ranks = config.backend != "plain"
    if (
        model is not None
        and model.config.get_text_config().vocab_size <= SMALL_VOCABULARY
        and not (has_ranks and _is_tied(model))
    ):
        targets += _last_parts(token_layers(model))
    return replace(config, lora_targets=",".join(targets))


def target_problems(model: Any, targets: Sequence[str]) -> Iterator[str]:
    """Targets that no layer of `model` (meta will do) is named like; the nearest is named."""
    layers = {**linear_layers(model), **token_layers(model)}
    ends = _last_parts(layers)
    for target in targets:
        if target == ALL_LINEAR or any(_is_named(name, target) for name in layers):
            continue
        if any(_is_named(name, target) for name, _ in model.named_modules()):
            yield (
                f"lora_targets: {target!r} is a module of the model beside which no adapter can be (of a "
                f"tied head and embedding name the embedding); known: {', '.join(ends)}"
            )
        else:
            yield f"lora_targets: {unknown_name('module', target, ends)}"


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def shape_problems(model: Any, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Where an adapter of these tensors (peft's name -> shape) does not fit `model`; each as a phrase."""
    layers: dict[str, Any] = {**linear_layers(model), **token_layers(model)}
    ends = model.get_output_embeddings()
    head = next(name for name, module in model.named_modules() if module is ends)
    layers.setdefault(head, ends)  # tied: the embedding has it
    problems = []
    for name, shape in sorted(shapes.items()):
        path, _, part = name.removeprefix(PREFIX).partition(".lora_")
        layer = layers.get(path)
        if layer is None:
            problems.append(f"it adapts {path}, which the model lacks")
            continue
        is_down = part.removeprefix("embedding_").startswith("A")
        rows, columns = shape_of_layer(layer)
        axis, width = (1, columns) if is_down else (0, rows)
        if isinstance(layer, nn.Embedding):  # a table is looked up, and its adapter is written transposed
            axis, width = (1, rows) if is_down else (0, columns)
        if len(shape) != 2 or shape[axis] != width:
            problems.append(f"{path}.lora_{part} has shape {list(shape)}, the model's layer takes {width}")
    return list(dict.fromkeys(problems))


def told(problems: Sequence[str]) -> str:
    """The first problems, and how many more there are."""
    more = len(problems) - MAX_NAMED
    return "; ".join(problems[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")


def differing_keys(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """How two state dicts differ in names and shapes; each difference as a phrase."""
    return [
        *(f"it lacks {name}" for name in ours if name not in theirs),
        *(f"it has {name}, which is none of ours" for name in theirs if name not in ours),
        *(
            f"{name} has shape {list(tensor.shape)}, ours {list(ours[name].shape)}"
            for name, tensor in theirs.items()
            if name in ours and tensor.shape != ours[name].shape
        ),
    ]
