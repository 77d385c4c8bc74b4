"""Soft actor-critic: its losses by hand, and problems whose optimum is known."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from policies.reinforcement.q_ensemble import QEnsemble
from policies.reinforcement.replay import Transitions
from policies.reinforcement.sac import SAC, SACConfig
from policies.reinforcement.state_policy import StateActor
from vla.model.features import Features
from vla.model.heads.base import HeadDims, HeadInputs
from vla.model.heads.gaussian import GaussianHead, GaussianHeadConfig

DIMS = HeadDims(vector=2, prompt=0, chunk_length=2, action=1)


def generator() -> torch.Generator:
    """The same every time."""
    return torch.Generator().manual_seed(0)


def make(**settings: Any) -> SAC:
    """Small networks on states of two numbers and chunks of two."""
    torch.manual_seed(0)
    plain = {"hidden": 16, "critics": 2, "learning_rate": 3e-4, "temperature_start": 0.1}
    config = SACConfig(**(plain | {"target_entropy": -1.0} | settings))
    actor = StateActor(DIMS, GaussianHeadConfig(16, log_std_min=-4.0))
    critic = QEnsemble(2, 2, config.critics, config.hidden, config.layer_norm)
    return SAC(actor, critic, 2, config)


def batch_of(count: int = 3, reward: float = 0.5, discount: float = 0.9) -> Transitions:
    """Random states and actions."""
    state, following = torch.randn(2, count, 2, generator=generator())
    return Transitions(
        Features.of_vector(state, 1),
        Features.of_vector(following, 1),
        state,
        following,
        torch.rand(count, 2, 1, generator=generator()) * 2 - 1,
        torch.full((count,), reward),
        torch.full((count,), discount),
    )


@torch.no_grad()
def constant(critic: QEnsemble, *values: float) -> None:
    """Let each member give one value, whatever it sees."""
    for weight in critic.weights:
        weight.zero_()
    critic.biases[-1].copy_(torch.tensor(values)[:, None, None])


def test_the_log_density_of_a_reparameterised_sample_is_the_likelihood_s() -> None:
    """Two ways to one number; and the samples are those that `sample` draws."""
    torch.manual_seed(0)
    head = GaussianHead(DIMS, GaussianHeadConfig(16))
    inputs = HeadInputs(torch.randn(5, 2), torch.zeros(5, 0, 0), torch.zeros(5, 0).bool())
    action, log_prob = head.rsample(inputs, generator())
    drawn = head.sample(inputs, generator())
    torch.testing.assert_close(action, drawn.tanh())
    torch.testing.assert_close(log_prob, head.likelihood(inputs, drawn).log_prob())


def test_gradients_flow_through_samples_and_their_density() -> None:
    """The density's gradient against differences of the deviation, the noise being the same."""
    torch.manual_seed(0)
    head = GaussianHead(DIMS, GaussianHeadConfig(16)).double()
    vector = torch.randn(5, 2, dtype=torch.float64)
    inputs = HeadInputs.__new__(HeadInputs)  # its fields are float32 by contract
    for name, value in {
        "vector": vector,
        "prompt": vector[:, None, :0],
        "prompt_mask": torch.zeros(5, 0).bool(),
        "action_mask": None,
    }.items():
        object.__setattr__(inputs, name, value)

    def total(log_std: Tensor) -> Tensor:
        head.raw_log_std = torch.nn.Parameter(log_std)
        action, log_prob = head.rsample(inputs, generator())
        return (action.square().sum() + log_prob.sum()) / 5

    at = torch.full((2, 1), -1.0, dtype=torch.float64)
    loss = total(at)
    (gradient,) = torch.autograd.grad(loss, [head.raw_log_std])
    step = torch.tensor([[1e-6], [0.0]], dtype=torch.float64)
    slope = (total(at + step) - total(at - step)) / 2e-6
    assert float(gradient[0, 0]) == pytest.approx(float(slope.detach()), rel=1e-5)


def test_parameters_return_into_the_range_that_has_a_gradient() -> None:
    """Beyond it a deviation would stay where it is for ever."""
    head = GaussianHead(DIMS, GaussianHeadConfig(16, log_std_min=-2.0, log_std_max=0.5))
    with torch.no_grad():
        head.raw_log_std.copy_(torch.tensor([[-3.0], [1.0]]))
    head.keep_in_range()
    assert head.raw_log_std.flatten().tolist() == [-2.0, 0.5]


def test_the_target_by_hand() -> None:
    """Reward + discount * (min Q - temperature * log pi), with the slow critics."""
    sac, batch = make(temperature=0.2), batch_of()
    constant(sac.target, 1.0, 3.0)
    constant(sac.critic, 70.0, 80.0)
    _, log_prob = sac._actor.rsample(batch.next_features, generator())
    expected = 0.5 + 0.9 * (1.0 - 0.2 * log_prob.sum(1))
    torch.testing.assert_close(sac.targets(batch, generator()), expected.detach())


def test_the_plain_q_learning_target_by_hand() -> None:
    """One critic and no entropy: r + discount * Q."""
    sac = make(critics=1, subset=1, temperature=0.0)
    constant(sac.target, 2.0)
    targets = sac.targets(batch_of(), generator())
    torch.testing.assert_close(targets, torch.full((3,), 0.5 + 0.9 * 2.0))
    assert sac.log_temperature.requires_grad is False


def test_the_least_of_a_random_subset_counts() -> None:
    """Of two of three critics: never the greatest value, and each pair is drawn."""
    sac = make(critics=3, subset=2, temperature=0.0)
    constant(sac.target, 1.0, 2.0, 3.0)
    one_value, draw = batch_of(1, reward=0.0, discount=1.0), generator()
    values = [float(sac.targets(one_value, draw)) for _ in range(60)]
    assert set(values) == {1.0, 2.0}
    # Two of the three pairs hold the first critic.
    assert 25 < values.count(1.0) < 55


def test_the_critic_s_loss_by_hand() -> None:
    """(1 - 2)^2 + (4 - 2)^2, whatever the number of rows."""
    sac, batch = make(), batch_of()
    constant(sac.critic, 1.0, 4.0)
    loss, metrics = sac.critic_loss(batch, torch.full((3,), 2.0))
    assert loss.item() == pytest.approx(5.0)
    assert float(metrics["critic/loss"]) == pytest.approx(2.5)
    assert float(metrics["critic/predicted_value"]) == pytest.approx(2.5)


def test_the_actor_s_loss_by_hand() -> None:
    """Temperature * log pi - mean Q; and the temperature rises where the entropy is too low."""
    sac, batch = make(temperature_start=0.5), batch_of()
    constant(sac.critic, 1.0, 4.0)
    _, log_prob = sac._actor.rsample(batch.features, generator())
    entropy = -float(log_prob.sum(1).mean())
    loss, metrics = sac.actor_loss(batch, generator())
    assert float(metrics["policy/loss"]) == pytest.approx(-0.5 * entropy - 2.5, rel=1e-5)
    assert float(metrics["policy/entropy"]) == pytest.approx(entropy, rel=1e-5)
    (slope,) = torch.autograd.grad(loss, [sac.log_temperature])
    # Descent raises the logarithm by target - entropy; the target is -1 for each of two numbers.
    assert float(slope) == pytest.approx(entropy - (-2.0), rel=1e-5)


def test_the_actor_s_loss_keeps_near_a_clone() -> None:
    """The weight times the KL of the whole chunk, a mean over the batch; 0.5 unless told."""
    batch = batch_of()
    steps = batch.action.shape[1]
    kl = torch.tensor([0.0, 1.0, 5.0])[:, None].expand(-1, steps)  # mean 2 a control step
    for weight, expected in ((None, 0.5), (3.0, 3.0), (0.0, 0.0)):
        sac = make(temperature=0.0)
        config = SACConfig(temperature=0.0, reference_kl=weight)
        near = SAC(sac._actor, sac.critic, 2, config, lambda features, generator: kl)
        free, _ = sac.actor_loss(batch, generator())
        bound, _ = near.actor_loss(batch, generator())
        assert float(bound - free) == pytest.approx(expected * 2 * steps, rel=1e-5)
    with pytest.raises(ValueError, match="is to a clone, and this actor, of noise"):
        SAC(sac._actor, sac.critic, 2, SACConfig(reference_kl=1.0))


def test_the_actor_s_loss_moves_no_critic() -> None:
    """It has a gradient for the actor alone."""
    sac = make()
    loss, _ = sac.actor_loss(batch_of(), generator())
    loss.backward()
    assert all(parameter.grad is None for parameter in sac.critic.parameters())
    assert all(parameter.grad is not None for parameter in sac._actor.parameters())


def test_slow_critics_follow_by_a_share() -> None:
    """By tau * (fast - slow) after each step; the critic alone moves no actor."""
    sac = make(tau=0.25)
    slow = [p.detach().clone() for p in sac.target.parameters()]
    actor = [p.detach().clone() for p in sac._actor.parameters()]
    sac.update([batch_of()], generator(), critic_alone=True)
    for old, fast, new in zip(slow, sac.critic.parameters(), sac.target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25 * (fast - old))
        assert not torch.equal(fast, old)
    assert all(torch.equal(a, b) for a, b in zip(actor, sac._actor.parameters(), strict=True))
    sac.update([batch_of()], generator())
    assert not all(torch.equal(a, b) for a, b in zip(actor, sac._actor.parameters(), strict=True))


def test_slow_critics_see_inputs_as_the_others_do() -> None:
    """Also after statistics have been measured: until they learn, both give the same values."""
    sac = make()
    state, action = 3 + 5 * torch.randn(40, 2, generator=generator()), torch.zeros(40, 2, 1)
    before = sac.critic(state, action)
    sac.critic.update_statistics(state)
    after = sac.critic(state, action)
    assert not torch.allclose(before, after)
    assert torch.equal(sac.target(state, action), after)


def test_members_of_an_ensemble_are_networks_of_their_own() -> None:
    """Each row is what that member alone would give, normalised layers included."""
    torch.manual_seed(0)
    critic = QEnsemble(2, 2, 3, 8, layer_norm=True)
    state, action = torch.randn(5, 2), torch.randn(5, 2, 1)
    values = critic(state, action)
    x = torch.cat([state, action.flatten(1)], 1)
    for weight, bias in zip(critic.weights[:-1], critic.biases[:-1], strict=True):
        x = torch.nn.functional.layer_norm(x @ weight[1] + bias[1], (8,)).relu()
    by_hand = (x @ critic.weights[-1][1] + critic.biases[-1][1])[:, 0]
    torch.testing.assert_close(values[1], by_hand)
    torch.testing.assert_close(critic(state, action, [1])[0], by_hand)


def bandit(action: Tensor) -> Tensor:
    """Rewards [m] of chunks [m, 2, 1]: 1 at (0.3, -0.6), less around it."""
    return 1 - (action[:, :, 0] - torch.tensor([0.3, -0.6])).square().sum(1)


@pytest.mark.parametrize("settings", [{}, {"critics": 1, "subset": 1, "temperature": 0.0}])
def test_the_best_action_of_a_bandit_is_found(settings: dict[str, Any]) -> None:
    """Its value is 1, and the greedy chunk is (0.3, -0.6); also by plain Q-learning."""
    rates = {"learning_rate": 3e-3, "critic_learning_rate": 3e-3, "temperature_start": 0.03}
    sac, draw = make(**(rates | {"hidden": 64} | settings)), generator()
    state = torch.zeros(128, 2)
    features = Features.of_vector(state, 1)
    for _ in range(600):
        action = torch.rand(128, 2, 1, generator=draw) * 2 - 1
        nothing = torch.zeros(128)
        seen = Transitions(features, features, state, state, action, bandit(action), nothing)
        sac.update([seen], draw)
    actor = sac._actor
    assert isinstance(actor, StateActor)
    greedy = actor.act(features)[:1].detach()
    assert greedy.flatten().tolist() == pytest.approx([0.3, -0.6], abs=0.05)
    assert sac.critic(state[:1], greedy).mean().item() == pytest.approx(1.0, abs=0.05)
    if not settings:  # and the entropy is where the temperature has driven it
        _, log_prob = actor.rsample(features, draw)
        assert -float(log_prob.sum(1).mean()) == pytest.approx(-2.0, abs=0.4)


def test_the_value_of_a_cycle_is_the_sum_of_its_rewards() -> None:
    """1 a step for ever at a discount of 0.8 is 5."""
    sac, draw = make(temperature=0.0, tau=0.1, critic_learning_rate=3e-3), generator()
    for _ in range(500):
        sac.update([batch_of(32, reward=1.0, discount=0.8)], draw)
    batch = batch_of(32)
    value = sac.critic(batch.critic_obs, batch.action)
    assert float(value.mean()) == pytest.approx(5.0, abs=0.1)


def test_a_checkpoint_continues_as_if_nothing_had_been() -> None:
    """Critics, slow critics, temperature and Adam's moments."""
    ours, theirs = make(), make()
    draws = generator(), generator()
    for _ in range(3):
        ours.update([batch_of()], draws[0])
    # Copied, as through a file: Adam keeps counters of the state that it is given.
    theirs.load_state_dict(deepcopy(ours.state_dict()))
    theirs._actor.load_state_dict(ours._actor.state_dict())
    draws[1].set_state(draws[0].get_state())
    metrics = [
        sac.update([batch_of()], draw) for sac, draw in zip((ours, theirs), draws, strict=True)
    ]
    assert metrics[0] == metrics[1]
    assert torch.equal(ours.log_temperature, theirs.log_temperature)
    for one, other in zip(ours.target.parameters(), theirs.target.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subset": 6}, "subset must be at least 1 and at most 5, got 6"),
        ({"gamma": 1.0}, "gamma must be at least 0 and at most 0.999999, got 1.0"),
        ({"tau": 0.0}, "tau must be above 0"),
        ({"hindsight": 1.5}, "hindsight must be at least 0 and at most 1, got 1.5"),
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"step_reward": math.nan}, "step_reward must be finite, got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    """Before anything runs, with the range."""
    with pytest.raises(ValueError, match=message):
        SACConfig(**settings)
