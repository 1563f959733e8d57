"""Router replay: the given experts and no others, weighed by the learner's own router."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl.algorithms import get_algorithm
from rl.batch import TrainBatch, make_batch
from rl.layout import PaddedLayout
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.model import PolicyModel, model_facts
from rl.samples import by_turn, trajectory_samples
from rollout.routed_experts import experts_of
from rollout.trajectory import Trajectory
from tests.tiny import load, make_group, make_tiny_mixture, make_tiny_model

MEMBERS = [([[5, 6, 9], [7, 8, 9], [10, 4], [11, 3]], 1.0), ([[5, 6, 9], [12, 13]], 0.0)]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixture(tmp_path_factory.mktemp("mixture"))


def policy(mixture: Path, *, replay_routing: bool) -> PolicyModel:
    return PolicyModel(load(mixture), temperature=1.0, replay_routing=replay_routing)


def layout_of(mixture: Path) -> PaddedLayout:
    return make_batch([make_group(0, MEMBERS, model=load(mixture))]).padded()


@torch.no_grad()
def own_choice(model: Any, layout: PaddedLayout) -> torch.Tensor:
    """What the model itself chooses, (B, T, layers, k)."""
    outputs = model(layout.token_ids, attention_mask=layout.attention_mask, output_router_logits=True)
    chosen = [x.float().softmax(-1).topk(2, -1).indices for x in outputs.router_logits]
    return torch.stack(chosen, 1).reshape(*layout.token_ids.shape, 2, 2).short()


def other_choice(layout: PaddedLayout) -> torch.Tensor:
    """Two different experts for each token and layer, drawn at random."""
    generator = torch.Generator().manual_seed(3)
    return torch.rand(*layout.token_ids.shape, 2, 4, generator=generator).argsort(-1)[..., :2].short()


def forced_logprobs(model: Any, layout: PaddedLayout, experts: torch.Tensor) -> torch.Tensor:
    """The definition, token by token: Σ_e w_e expert_e(x), w the router's probabilities over those given."""
    for number, layer in enumerate(model.model.layers):

        def plain(x: torch.Tensor, mlp: Any = layer.mlp, number: int = number) -> torch.Tensor:
            rows = []
            for state, chosen in zip(
                x.flatten(0, 1), experts[:, :, number].flatten(0, 1).tolist(), strict=True
            ):
                probs = (mlp.gate.weight @ state).softmax(-1)
                if -1 in chosen:
                    chosen = probs.topk(2).indices.tolist()
                out = torch.zeros_like(state)
                for expert in chosen:
                    gate, up = (mlp.experts.gate_up_proj[expert] @ state).chunk(2)
                    share = probs[expert] / probs[chosen].sum() if mlp.gate.norm_topk_prob else probs[expert]
                    out = out + share * (mlp.experts.down_proj[expert] @ (mlp.experts.act_fn(gate) * up))
                rows.append(out)
            return torch.stack(rows).reshape(x.shape)

        layer.mlp.forward = plain
    logits = model(layout.token_ids).logits[:, :-1].log_softmax(-1)
    logprobs = logits.gather(-1, layout.token_ids[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(logprobs, (1, 0)) * layout.loss_mask


def test_the_models_own_choice_changes_no_bit(mixture):
    layout = layout_of(mixture)
    given = replace(layout, routed_experts=own_choice(load(mixture), layout))
    free = policy(mixture, replay_routing=False)(layout).logprobs
    assert torch.equal(policy(mixture, replay_routing=True)(given).logprobs, free)
    assert torch.equal(policy(mixture, replay_routing=False)(given).logprobs, free)  # off is off


@pytest.mark.parametrize("normalized", [True, False])
def test_another_choice_gives_what_the_definition_gives_and_its_gradient_reaches_the_router(
    mixture, normalized
):
    layout = layout_of(mixture)
    experts = other_choice(layout)
    experts[:, 2:4] = -1  # these tokens route freely
    own, model = policy(mixture, replay_routing=True), load(mixture)
    for layer in (*own.model.model.layers, *model.model.layers):
        layer.mlp.gate.norm_topk_prob = normalized
    logprobs = own(replace(layout, routed_experts=experts)).logprobs
    expected = forced_logprobs(model, layout, experts)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)
    free = policy(mixture, replay_routing=False)(layout).logprobs
    assert (logprobs - free).abs().max() > 1e-3
    logprobs.sum().backward()
    expected.sum().backward()
    for layer, plain in zip(own.model.model.layers, model.model.layers, strict=True):
        assert layer.mlp.gate.weight.grad.abs().max() > 1e-4
        torch.testing.assert_close(
            layer.mlp.gate.weight.grad, plain.mlp.gate.weight.grad, atol=1e-5, rtol=1e-4
        )


def test_nothing_known_is_nothing_replayed(mixture):
    layout = layout_of(mixture)
    given = replace(layout, routed_experts=torch.full((*layout.token_ids.shape, 2, 2), -1).short())
    free = policy(mixture, replay_routing=False)(layout).logprobs
    assert torch.equal(policy(mixture, replay_routing=True)(given).logprobs, free)


def test_an_engine_that_rounds_coarsely_agrees_with_a_learner_that_replays(mixture):
    """The engine is the same model in bfloat16, whose router chooses otherwise at about 1 token in 100.

    Seen: the log-probs after these tokens are 0.08 apart on average without replay and 0.003 with it.
    """

    def model() -> Any:
        made = load(mixture)
        for (
            layer
        ) in made.model.layers:  # untrained experts hardly add to the residual stream: 5 x 5 times more
            layer.mlp.experts.gate_up_proj.data *= 5
            layer.mlp.experts.down_proj.data *= 5
        return made

    rng = np.random.default_rng(0)
    members = [([[3, *rng.integers(3, 100, 20)], rng.integers(3, 100, 40)], float(i)) for i in range(16)]
    layout = make_batch([make_group(0, members)]).padded()
    engine = PolicyModel(model().bfloat16(), temperature=1.0)
    given = replace(layout, routed_experts=own_choice(engine.model, layout))
    own = own_choice(model(), layout)
    differs = (given.routed_experts.sort(-1).values != own.sort(-1).values).flatten(2).any(-1)
    follows = differs.roll(1, 1) & layout.loss_mask
    assert follows.any()
    with torch.no_grad():
        rollout = engine(layout).logprobs
        free, replayed = (
            (PolicyModel(model(), temperature=1.0, replay_routing=on)(given).logprobs - rollout).abs()
            for on in (False, True)
        )
    assert replayed[follows].mean() < free[follows].mean() / 5
    assert replayed.max() < free.max() / 5
    assert replayed.sum() < free.sum()


def routed(trajectory: Trajectory, *rows: tuple[int, int] | None) -> Trajectory:
    """`trajectory` with rows numbered [start, end) for each turn, None for a turn that tells nothing."""
    told = [
        None
        if span is None
        else np.broadcast_to(np.arange(*span, dtype=np.int16)[:, None, None], (span[1] - span[0], 2, 2))
        for span in rows
    ]
    turns = [
        replace(turn, completion=replace(turn.completion, routed_experts=x))
        for turn, x in zip(trajectory.turns, told, strict=True)
    ]
    return replace(trajectory, turns=tuple(turns))


def test_turns_tell_of_consecutive_tokens_and_the_last_is_never_known():
    """3 + 3 tokens in turn 0, which tells of tokens 0 to 4; 2 + 2 in turn 1, which tells of 5 to 8."""
    long, short = make_group(0, MEMBERS).trajectories
    (sample,) = trajectory_samples(routed(long, (0, 5), (5, 9)), 0)
    assert sample.routed_experts[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, -1]
    (gap,) = trajectory_samples(routed(long, (0, 5), (7, 9)), 0)
    assert gap.routed_experts[:, 1, 1].tolist() == [0, 1, 2, 3, 4, -1, -1, 7, 8, -1]
    (late,) = trajectory_samples(routed(long, None, (0, 9)), 0)  # one that tells of everything
    assert late.routed_experts[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, -1]
    (none,) = trajectory_samples(short, 0)
    assert none.routed_experts is None
    first, second = by_turn(sample)
    assert first.routed_experts[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert second.routed_experts.shape == (10, 2, 2)
    with pytest.raises(ValueError, match="10 rows of routed_experts for 10 tokens; expected 9 at most"):
        next(trajectory_samples(routed(long, None, (0, 10)), 0))


def test_padding_is_not_known_and_no_routing_at_all_is_none():
    group = make_group(0, MEMBERS)
    long, short = group.trajectories
    batch = make_batch([replace(group, trajectories=(routed(long, (0, 5), (5, 9)), short))])
    assert batch.padded().routed_experts[:, :, 0, 0].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8, -1], [-1] * 10]
    assert make_batch([group]).padded().routed_experts is None


def scored(mixture: Path, **fields: Any) -> tuple[Learner, TrainBatch]:
    row = get_algorithm("grpo")
    own = Learner(LearnerSpec(model=str(mixture), algorithm=row, learning_rate=1e-3, num_updates=2, **fields))
    group = make_group(0, MEMBERS)
    long, short = group.trajectories
    members = [routed(long, (0, 5), (5, 9)), routed(short, (0, 4))]
    batch = make_batch([replace(group, trajectories=tuple(members))])
    samples = [  # experts n and n + 1 modulo 4: other ones at each token
        replace(sample, routed_experts=(experts + np.arange(2, dtype=np.int16)) % 4)
        for sample in batch.samples
        if (experts := sample.routed_experts) is not None
    ]
    return own, own.score(replace(batch, samples=tuple(samples)), row.needs)


def test_a_learner_scores_and_updates_with_the_same_experts_and_so_does_its_reference(mixture):
    _, unreplayed = scored(mixture)
    own, batch = scored(mixture, replay_routing=True)
    difference = np.abs(np.concatenate(batch.old_logprobs) - np.concatenate(unreplayed.old_logprobs))
    assert difference.max() > 1e-3
    for old, ref in zip(batch.old_logprobs, batch.ref_logprobs, strict=True):
        np.testing.assert_array_equal(old, ref)
    layout = batch.padded()
    torch.testing.assert_close(own.evaluate(layout).logprobs, layout.old_logprobs, atol=1e-6, rtol=0)


def test_experts_that_are_not_the_models_are_refused(mixture, tmp_path):
    layout, own = layout_of(mixture), policy(mixture, replay_routing=True)
    with pytest.raises(ValueError, match="the batch has no routed_experts"):
        own(layout)
    for shape, expert in (((2, 3), 0), ((3, 2), 0), ((2, 2), 4)):
        wrong = torch.full((*layout.token_ids.shape, *shape), expert, dtype=torch.int16)
        with pytest.raises(ValueError, match="must hold the same model"):
            own(replace(layout, routed_experts=wrong))
    assert model_facts(str(mixture)).num_routers == 2
    assert model_facts(str(make_tiny_model(tmp_path, tied=True))).num_routers == 0


def test_what_vllm_tells_is_of_every_token_or_refused():
    class Output:
        routed_experts = np.full((5, 2, 2), 200, np.uint8)

    assert experts_of(Output(), 5).dtype == np.int16
    assert experts_of(Output(), 5).max() == 200
    with pytest.raises(ValueError, match="the experts of 5 tokens; expected 6"):
        experts_of(Output(), 6)
    Output.routed_experts = None
    with pytest.raises(ValueError, match="of 0 tokens"):
        experts_of(Output(), 5)
