"""TRPO: conjugate gradient, curvature, step and line search, by hand where there is a way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bandit import Bandit, pulls
from learners import make_trainer, same, weights
from test_reinforcement import HEADS, collected, vla_policy
from torch.nn.attention import SDPBackend, sdpa_kernel

from policies.optimisation import NotFiniteError
from policies.reinforcement.reference import Reference
from policies.reinforcement.trpo import TRPO, TRPOConfig, conjugate_gradient


def test_conjugate_gradient_solves_exactly_in_as_many_steps_as_dimensions() -> None:
    """And a target of 0 has the solution 0, without a division by it."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(6, dtype=torch.float64)
    target = torch.randn(6, generator=generator, dtype=torch.float64)
    solution = conjugate_gradient(lambda vector: matrix @ vector, target, 6)
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, target))
    early = conjugate_gradient(lambda vector: matrix @ vector, target, 2)
    assert (matrix @ early - target).norm() > (matrix @ solution - target).norm() + 1e-3
    assert not conjugate_gradient(lambda vector: matrix @ vector, 0 * target, 6).any()


def test_the_curvature_of_a_softmax_by_hand() -> None:
    """Its Fisher information is diag(p) - p p', here damped by 0.5."""
    actor = Bandit(0.3, -0.2, 0.9)
    product = TRPO(actor, TRPOConfig(damping=0.5)).fisher_product(pulls(actor, [0, 1], [1.0, 2.0]))
    p = actor.logits.detach().softmax(0)
    fisher = p.diag() - p[:, None] * p + 0.5 * torch.eye(3)
    for vector in torch.eye(3):
        torch.testing.assert_close(product(vector), fisher @ vector)


@pytest.mark.parametrize("name", HEADS)
def test_the_curvature_of_every_head_is_that_of_its_kl(name: str, tmp_path: Path) -> None:
    """KL(here || moved by v) is v.Fv / 2 for small v; also through attention, and symmetric."""
    trainer = make_trainer(tmp_path, TRPOConfig(damping=0.0), vla_policy(HEADS[name]))
    actor, update = trainer.policy.actor, trainer.update
    assert isinstance(update, TRPO)
    _, batch = collected(trainer)
    with sdpa_kernel(SDPBackend.MATH):
        product = update.fisher_product(batch)
        generator = torch.Generator().manual_seed(0)
        count = sum(p.numel() for p in actor.parameters())
        one, other = 2e-3 * torch.randn(2, count, generator=generator)
        image = product(one)
        torch.testing.assert_close(other @ image, one @ product(other), rtol=1e-2, atol=1e-9)
        with torch.no_grad():
            old = actor.likelihood(batch.features, batch.sample)
            start = torch.cat([p.flatten() for p in actor.parameters()])
            update._set_weights(start + one)
            kl = batch.mean(old.kl(actor.likelihood(batch.features, batch.sample)))
    assert float(kl) > 0
    assert float(one @ image) / 2 == pytest.approx(float(kl), rel=0.1)


def test_a_step_by_hand() -> None:
    """Two tokens of probability 1/2, one better: the logits move by sqrt(2 max_kl) each.

    With advantages a and -a the gradient is (a/2, -a/2); along it the Fisher information is 1/2, so
    a step x has |x|^2 / 4 = max_kl.
    """
    actor = Bandit(0.0, 0.0)
    method = TRPO(actor, TRPOConfig(max_kl=0.01, damping=0.0))
    batch = pulls(actor, [0, 1], [1.0, -1.0])
    metrics = method.update(batch, Reference(actor), torch.Generator().manual_seed(0))
    moved = 0.02**0.5
    torch.testing.assert_close(actor.logits.detach(), torch.tensor([moved, -moved]))
    p = torch.tensor([moved, -moved]).softmax(0)
    assert metrics["policy/kl"] == pytest.approx(float((0.5 * (0.5 / p).log()).sum()), rel=1e-4)
    # The ratios are 2p, and standardised advantages are +-1/sqrt(2).
    gain = float(0.5 * (2 * p[0] - 1) / 2**0.5 - 0.5 * (2 * p[1] - 1) / 2**0.5)
    assert metrics["policy/loss"] == pytest.approx(-gain, rel=1e-4)
    assert metrics["policy/grad_norm"] == pytest.approx(0.5, rel=1e-4)
    assert metrics["policy/step_share"] == metrics["policy/gradient_steps"] == 1.0


@pytest.mark.parametrize(("factor", "share"), [(1.0, 1.0), (1.5, 0.64), (-1.0, 0.0)])
def test_a_step_is_shortened_until_it_is_good(factor: float, share: float) -> None:
    """Within the trust region and better than before; downhill there is none."""
    actor = Bandit(0.0, 0.0)
    method = TRPO(actor, TRPOConfig(max_kl=0.01))
    batch = pulls(actor, [0, 1], [1.0, -1.0])
    step = factor * torch.tensor([0.02**0.5, -(0.02**0.5)])
    metrics = method._line_search(batch, step)
    assert metrics["policy/step_share"] == pytest.approx(share)
    assert metrics["policy/gradient_steps"] == float(share > 0)
    torch.testing.assert_close(actor.logits.detach(), share * step)
    assert 0 <= metrics["policy/kl"] <= 0.01


def test_without_advantages_nothing_moves(tmp_path: Path) -> None:
    """And what is not finite stops it before the weights change."""
    trainer = make_trainer(tmp_path, TRPOConfig())
    experience, _ = trainer.collect()
    generator = torch.Generator().manual_seed(0)
    before = weights(trainer)
    for value in (0.0, torch.nan):
        batch = experience.batch(torch.full(experience.ended.shape, value))
        if value == 0.0:
            metrics = trainer.update.update(batch, trainer.reference, generator)
            assert metrics["policy/gradient_steps"] == 0
        else:
            with pytest.raises(NotFiniteError, match="the gradient is nan"):
                trainer.update.update(batch, trainer.reference, generator)
        assert same(weights(trainer), before)


def test_the_gradient_of_parts_is_that_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of unequal length weigh by their executed steps."""
    trainer = make_trainer(tmp_path, TRPOConfig())
    assert isinstance(trainer.update, TRPO)
    _, batch = collected(trainer)
    whole = trainer.update.gradient(batch)
    monkeypatch.setattr("policies.reinforcement.trpo._ROWS", 5)
    assert len(batch) % 5
    torch.testing.assert_close(trainer.update.gradient(batch), whole, rtol=1e-3, atol=1e-6)
