"""Every action head through one interface: learning, likelihoods, gradients, files."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from vla.model.heads.autoregressive import AutoregressiveHead, TokenLikelihood
from vla.model.heads.base import ActionHead, HeadConfig, HeadDims, HeadInputs, LikelihoodHead
from vla.model.heads.expert import ExpertConfig
from vla.model.heads.fast import FastHead, FastHeadConfig
from vla.model.heads.flow import FlowHead, FlowHeadConfig
from vla.model.heads.gaussian import GaussianHeadConfig
from vla.model.heads.l1 import L1Head, L1HeadConfig
from vla.model.heads.registry import (
    HEADS,
    NoLikelihoodError,
    head_from_dict,
    head_to_dict,
    make_head,
    require_likelihood,
)
from vla.model.heads.token import TokenHead, TokenHeadConfig

DIMS = HeadDims(vector=6, prompt=8, chunk_length=4, action=3)
_EXPERT = ExpertConfig(width=32, layers=1, heads=2)


def chunks(count: int = 64) -> torch.Tensor:
    """Smooth chunks within [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(count, 1, DIMS.action, generator=generator) - 0.5
    slope = torch.rand(count, 1, DIMS.action, generator=generator) - 0.5
    return start + slope * torch.arange(DIMS.chunk_length)[None, :, None] / DIMS.chunk_length


CONFIGS: dict[str, HeadConfig] = {
    "gaussian": GaussianHeadConfig(hidden=32),
    "token": TokenHeadConfig(_EXPERT, bins=32),
    "fast": FastHeadConfig(_EXPERT, scale=8.0, vocabulary=128).fitted(chunks(500)),
    "l1": L1HeadConfig(_EXPERT),
    "flow": FlowHeadConfig(_EXPERT, steps=4),
    "flow sde": FlowHeadConfig(_EXPERT, steps=4, sampler="sde", random_steps=4),
}
LIKELY = [name for name in CONFIGS if name != "l1"]


def head_inputs(count: int = 5, seed: int = 0) -> HeadInputs:
    """Observations with three prompt tokens, the last of them padding in every other one."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(count, 3, dtype=torch.bool)
    mask[::2, 2] = False
    return HeadInputs(
        torch.randn(count, DIMS.vector, generator=generator),
        torch.randn(count, 3, DIMS.prompt, generator=generator),
        mask,
    )


def repeated(one: HeadInputs, count: int) -> HeadInputs:
    """One observation many times."""
    columns = (one.vector, one.prompt, one.prompt_mask)
    return HeadInputs(*(column.expand(count, *column.shape[1:]) for column in columns))


def build(name: str) -> ActionHead:
    """A head that has learned a little: what begins at 0 does so no more."""
    torch.manual_seed(0)
    head = make_head(DIMS, CONFIGS[name]).eval()
    if isinstance(head, L1Head):
        torch.nn.init.normal_(head.out.weight, std=0.1)
    return head


def likely(name: str) -> LikelihoodHead:
    """A fresh head with a likelihood."""
    return require_likelihood(build(name), "the test")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_head_learns_what_it_is_shown(name: str) -> None:
    """A chunk that is a function of vector and prompt is imitated after some hundred updates."""
    head, inputs = build(name), head_inputs(16)
    wanted = chunks(16)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    is_pad = torch.zeros(16, DIMS.chunk_length, dtype=torch.bool)
    error = math.inf
    for update in range(300):
        loss = head.loss(inputs, wanted, is_pad)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # Looked at now and then: most heads need far fewer updates.
        if update % 50 == 49:
            with torch.no_grad():
                error = float((head.act(inputs) - wanted).abs().mean())
            if error < 0.08:
                break
    assert error < 0.08


@pytest.mark.parametrize("name", CONFIGS)
def test_acting_is_bounded_and_repeats(name: str) -> None:
    """The greedy chunk has its shape and range, and is the same again."""
    head, inputs = build(name), head_inputs()
    with torch.no_grad():
        first, second = head.act(inputs), head.act(inputs)
    assert first.shape == (5, DIMS.chunk_length, DIMS.action)
    assert first.abs().max() <= 1
    assert torch.equal(first, second)


def test_a_new_l1_head_is_an_mlp_until_its_expert_has_learned() -> None:
    """The prompt says nothing at first, and has a gradient at once."""
    torch.manual_seed(0)
    head, inputs = L1Head(DIMS, L1HeadConfig(_EXPERT)), head_inputs()
    assert head.direct is not None
    assert torch.equal(head._chunk(inputs), head.direct(inputs.vector))
    head.loss(inputs, chunks(5), torch.zeros(5, DIMS.chunk_length, dtype=torch.bool)).backward()
    assert head.out.weight.grad is not None
    assert head.out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["gaussian", "token", "l1"])
def test_padded_steps_teach_nothing(name: str) -> None:
    """Actions under `is_pad` do not change the loss."""
    head, actions = build(name), chunks(5)
    is_pad = torch.zeros(5, DIMS.chunk_length, dtype=torch.bool)
    is_pad[:, 3] = True
    other = actions.clone()
    other[:, 3] = -1.0
    losses = []
    for shown in (actions, other):
        torch.manual_seed(0)  # of the noise
        losses.append(head.loss(head_inputs(), shown, is_pad))
    assert torch.allclose(losses[0], losses[1], atol=1e-6)


def test_bins_around_a_demonstrated_number_count() -> None:
    """Its own bin most, none beside it without smoothing; the shares are those of a Gaussian."""
    for std, near in ((0.0, 0.0), (0.05, 1.0)):
        head = TokenHead(DIMS, TokenHeadConfig(bins=64, label_smoothing=std))
        actions = chunks(5).clamp(-0.7, 0.7)
        shares = head._shares(actions)
        assert torch.allclose(shares.sum(-1), torch.ones(()), atol=1e-5)
        own = head.tokens(actions)[..., None]
        assert (shares.gather(-1, own) >= shares - 1e-6).all()
        assert float((shares.gather(-1, own + 1) > 0).float().mean()) == near
        centres = (torch.arange(64) + 0.5) / 32 - 1
        assert ((shares @ centres) - actions.flatten(1)).abs().max() < 1 / 32


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "gaussian"])
def test_attending_heads_read_the_prompt_but_not_its_padding(name: str) -> None:
    """Another token changes the chunk, another padding token does not."""
    head, inputs = build(name), head_inputs(2)
    prompt = inputs.prompt.clone()
    prompt[0, 2] += 5.0  # padding
    with torch.no_grad():
        assert torch.equal(
            head.act(inputs), head.act(HeadInputs(inputs.vector, prompt, inputs.prompt_mask))
        )
        decided = head.act(inputs)
        prompt[:, 0] += 5.0
        moved = head.act(replace(inputs, prompt=prompt))
    if name not in ("token", "fast"):  # bins may round a small difference away
        assert not torch.equal(decided, moved)


@pytest.mark.parametrize("name", LIKELY)
def test_samples_have_their_likelihood(name: str) -> None:
    """Shapes, no distance from itself, positive distance from another, seeded samples."""
    head, inputs = likely(name), head_inputs()
    with torch.no_grad():
        samples = head.sample(inputs, torch.Generator().manual_seed(3))
        again = head.sample(inputs, torch.Generator().manual_seed(3))
        here = head.likelihood(inputs, samples)
        other = head.likelihood(head_inputs(seed=9), samples)
    assert torch.equal(samples, again)
    assert head.actions(samples).shape == (5, DIMS.chunk_length, DIMS.action)
    assert head.actions(samples).abs().max() <= 1
    weight = here.weight(torch.ones(5, DIMS.chunk_length, dtype=torch.bool))
    for values in (here.log_prob(), here.entropy(), here.kl(other)):
        assert values.shape == weight.shape
        assert values.isfinite().all()
    assert here.kl(here).abs().max() < 1e-6
    assert here.kl(other).min() >= -1e-6
    assert here.kl(other).max() > 0


@pytest.mark.parametrize("name", LIKELY)
def test_expected_score_is_zero(name: str) -> None:
    """The mean gradient of the log-probability over the head's own samples vanishes."""
    head, one = likely(name), head_inputs(1)
    count = 4000
    many = HeadInputs(
        *(t.expand(count, *t.shape[1:]) for t in (one.vector, one.prompt, one.prompt_mask))
    )
    samples = head.sample(many, torch.Generator().manual_seed(0)).detach()
    parameter = next(p for n, p in head.named_parameters() if n.endswith(("out.bias", "6.bias")))
    scores = []
    for rows in torch.arange(count).split(500):
        part = HeadInputs(many.vector[rows], many.prompt[rows], many.prompt_mask[rows])
        likelihood = head.likelihood(part, samples[rows])
        weight = likelihood.weight(torch.ones(len(rows), DIMS.chunk_length, dtype=torch.bool))
        log_prob = (likelihood.log_prob() * weight).sum()
        scores.append(torch.autograd.grad(log_prob, parameter)[0])
    mean = torch.stack(scores).sum(0) / count
    spread = torch.stack([s / 500 for s in scores]).std(0) / math.sqrt(len(scores))
    assert (mean.abs() < 5 * spread + 1e-3).all()


@pytest.mark.parametrize("name", ["token", "fast"])
def test_tokens_are_probabilities(name: str) -> None:
    """What can come sums to one at each place; log-probabilities are those of torch."""
    head, inputs = likely(name), head_inputs()
    samples = head.sample(inputs, torch.Generator().manual_seed(0))
    likelihood = head.likelihood(inputs, samples)
    comes = samples >= 0
    peer = torch.distributions.Categorical(logits=likelihood.logits)
    expected = (peer.log_prob(samples.clamp_min(0)) * comes).sum(1)
    weight = likelihood.weight(torch.ones(5, DIMS.chunk_length, dtype=torch.bool))
    assert torch.allclose((likelihood.log_prob() * weight).sum(1), expected, atol=1e-4)


@pytest.mark.parametrize("name", LIKELY)
def test_only_executed_control_steps_weigh(name: str) -> None:
    """A step has its own part or tokens; a token of no one step weighs as much as was executed."""
    head, inputs = likely(name), head_inputs()
    likelihood = head.likelihood(inputs, head.sample(inputs, torch.Generator().manual_seed(0)))
    executed = torch.tensor([[True, False, False, False]]).expand(5, -1)
    weight, whole = likelihood.weight(executed), likelihood.weight(torch.ones_like(executed))
    assert not likelihood.weight(torch.zeros_like(executed)).any()
    if name == "fast":
        assert torch.equal(weight, whole / DIMS.chunk_length)
    else:
        parts = weight.shape[1] // DIMS.chunk_length
        assert weight[:, :parts].eq(1).all()
        assert not weight[:, parts:].any()
        assert whole.eq(1).all()


@pytest.mark.parametrize("name", ["token", "fast"])
def test_a_temperature_is_of_samples_and_their_likelihood_alone(name: str) -> None:
    """Samples come as often as their likelihood says; greedy decisions and the loss know none."""
    head, inputs, actions = likely(name), head_inputs(1), chunks(1)
    assert isinstance(head, AutoregressiveHead)
    is_pad = torch.zeros(1, DIMS.chunk_length, dtype=torch.bool)

    def untempered() -> list[torch.Tensor]:
        torch.manual_seed(0)  # of the noise in the loss
        return [head.act(inputs), head.loss(inputs, actions, is_pad).detach()]

    with torch.no_grad():
        head.decoder.out.weight *= 20  # far from uniform
    before, entropies = untempered(), []
    for temperature in (1.0, 4.0):
        head.temperature = temperature
        samples = head.sample(repeated(inputs, 4000), torch.Generator().manual_seed(0))
        likelihood = head.likelihood(inputs, samples[:1])
        first = likelihood.logits[0, 0].softmax(-1)
        seen = torch.bincount(samples[:, 0], minlength=len(first)) / 4000
        assert (seen - first).abs().max() < 0.03
        entropies.append(likelihood.entropy()[0, 0].item())
        assert all(torch.equal(a, b) for a, b in zip(before, untempered(), strict=True))
    assert entropies[1] > entropies[0] + 0.5


def test_a_temperature_widens_a_normal_distribution_and_keeps_its_mean() -> None:
    """The standard deviation grows by the square root of it."""
    places = torch.linspace(-1, 1, 201)
    logits = -0.5 * ((places - 0.1) / 0.05).square()
    likelihood = TokenLikelihood(logits[None, None], torch.zeros(1, 1, dtype=torch.long), places)
    shares = likelihood.at(9.0).logits[0, 0].softmax(-1)
    mean = shares @ places
    assert float(mean) == pytest.approx(0.1, abs=1e-3)
    assert float((shares @ (places - mean).square()).sqrt()) == pytest.approx(0.15, rel=0.01)


@pytest.mark.parametrize("name", LIKELY)
def test_a_detached_likelihood_is_the_same_without_a_gradient(name: str) -> None:
    """Its KL to the likelihood that it was made from is 0, with a slope of 0."""
    head, inputs = likely(name), head_inputs()
    here = head.likelihood(inputs, head.sample(inputs, torch.Generator().manual_seed(0)).detach())
    constant = here.detach()
    assert here.log_prob().requires_grad
    assert not constant.log_prob().requires_grad
    assert torch.equal(constant.log_prob(), here.log_prob())
    kl = constant.kl(here).sum()
    slopes = torch.autograd.grad(kl, list(head.parameters()), materialize_grads=True)
    assert float(kl.detach().abs()) < 1e-4
    assert all(slope.abs().max() < 1e-4 for slope in slopes)


def test_bins_decode_to_within_half_a_bin() -> None:
    """decode(encode(actions)) is off by at most half a bin."""
    head = make_head(DIMS, TokenHeadConfig(_EXPERT, bins=256))
    assert isinstance(head, TokenHead)
    actions = chunks(100)
    assert (head.actions(head.tokens(actions)) - actions).abs().max() <= 1 / 256 + 1e-6


def test_fast_decodes_what_it_encodes() -> None:
    """Off by rounding only: half a step in each of `chunk_length` orthonormal coefficients."""
    head = build("fast")
    assert isinstance(head, FastHead)
    actions = chunks(200)
    tokens = head.tokens(actions)
    bound = 0.5 * math.sqrt(DIMS.chunk_length) / head.config.scale
    assert (head.actions(tokens) - actions).abs().max() <= bound + 1e-6
    assert tokens.shape[1] < DIMS.chunk_length * DIMS.action  # compressed
    coefficients = head.lengths[tokens.clamp_min(0)] * (tokens >= 0)
    assert (coefficients.sum(1) == DIMS.chunk_length * DIMS.action).all()


def test_every_sampled_fast_sequence_is_a_whole_chunk() -> None:
    """An untrained head's sequences fill the chunk exactly, too."""
    head = build("fast")
    assert isinstance(head, FastHead)
    samples = head.sample(head_inputs(64), torch.Generator().manual_seed(0))
    lengths = head.lengths[samples.clamp_min(0)] * (samples >= 0)
    assert (lengths.sum(1) == DIMS.chunk_length * DIMS.action).all()


def test_flow_sde_keeps_the_marginals() -> None:
    """With the exact velocity of a Gaussian, SDE samples have the ODE's mean and spread.

    For data N(m, s^2) the velocity is known in closed form, so the sampler is tested without any
    training (Flow-GRPO, arXiv:2505.05470, appendix A).
    """
    torch.manual_seed(0)
    head = FlowHead(DIMS, FlowHeadConfig(_EXPERT, 200, "sde", 200, -0.5))
    mean, std = 0.3, 0.2

    def exact(_: HeadInputs, at: torch.Tensor, time: torch.Tensor):
        t = time[:, :, None, None]
        spread = t.square() * std**2 + (1 - t).square()
        gain = (t * std**2 - (1 - t)) / spread
        return mean + gain * (at - t * mean), head.raw_log_std

    head._velocity = exact  # type: ignore[method-assign]
    one = head_inputs(1)
    many = HeadInputs(
        *(t.expand(4000, *t.shape[1:]) for t in (one.vector, one.prompt, one.prompt_mask))
    )
    with torch.no_grad():
        ends = head.sample(many, torch.Generator().manual_seed(1))[:, -1]
    assert abs(float(ends.mean()) - mean) < 0.01
    assert abs(float(ends.std()) - std) < 0.02


def test_only_the_last_steps_of_a_flow_are_random() -> None:
    """A decision holds those; the steps before are the ones that a chain without noise takes."""
    chains = []
    for random_steps in (2, 4):
        torch.manual_seed(0)
        head = FlowHead(DIMS, FlowHeadConfig(_EXPERT, 4, "noise", random_steps, -20.0))
        with torch.no_grad():
            chains.append(head.sample(head_inputs(), torch.Generator().manual_seed(1)))
    end, whole = chains
    assert end.shape == (5, 3, DIMS.chunk_length, DIMS.action)
    torch.testing.assert_close(end, whole[:, 2:], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="random_steps must be at least 1"):
        FlowHeadConfig(random_steps=0)


def test_a_flow_learns_a_sample_at_several_times_at_once() -> None:
    """The loss is the mean over them, each as if it were alone; padded steps do not count."""
    torch.manual_seed(0)
    head = FlowHead(DIMS, FlowHeadConfig(_EXPERT, loss_times=3))
    inputs, actions = head_inputs(4), chunks(4)
    is_pad = torch.zeros(4, DIMS.chunk_length, dtype=torch.bool)
    is_pad[1, -1] = True
    torch.manual_seed(1)
    found = head.loss(inputs, actions, is_pad)
    torch.manual_seed(1)
    noise = torch.randn(4, 3, *head.shape)
    times = 0.999 * (1 - torch.rand(4, 3) ** (1 / 1.5))
    expected = []
    for drawn, time in zip(noise.unbind(1), times.unbind(1), strict=True):
        at = time[:, None, None] * actions + (1 - time)[:, None, None] * drawn
        velocity, _ = head._velocity(inputs, at[:, None], time[:, None])
        errors = (velocity[:, 0] - (actions - drawn)).square().mean(-1)
        expected.append(errors[~is_pad].mean())
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_a_head_without_likelihood_says_so() -> None:
    """The error names the heads that have one."""
    with pytest.raises(NoLikelihoodError, match=r"PPO.*L1Head.*gaussian, token, fast, flow"):
        require_likelihood(build("l1"), "PPO")


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_survive_json(name: str) -> None:
    """The same settings, and a head that takes the same weights."""
    back = head_from_dict(head_to_dict(CONFIGS[name]))
    assert back == CONFIGS[name]
    make_head(DIMS, back).load_state_dict(build(name).state_dict())


def test_unknown_heads_and_unfitted_tokenizers_are_named() -> None:
    """Errors say what is valid."""
    with pytest.raises(ValueError, match=r"no action head 'dice'; valid: gaussian, token"):
        head_from_dict({"type": "dice"})
    with pytest.raises(ValueError, match="not fitted"):
        make_head(DIMS, FastHeadConfig())
    with pytest.raises(ValueError, match="lower the scale or raise the vocabulary"):
        FastHeadConfig(scale=1000.0).fitted(chunks())
    assert set(HEADS) == {"gaussian", "token", "fast", "l1", "flow"}
