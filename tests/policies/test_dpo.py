"""Direct preference optimisation: the loss by hand, its exact optimum, and runs that resume."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import compared, trajectory
from learners import files, same
from point_env import PointVecEnv
from test_reinforcement import HEADS, vla_policy
from torch import Tensor

from policies.checkpoints import DivergedError, ResumeError
from policies.optimisation import optimizer_step
from policies.preferences.comparisons import Comparison, ComparisonError, Pair, Segment
from policies.preferences.dpo import DPOConfig, PairBatch, dpo_loss, margins, stack_pairs
from policies.preferences.dpo_trainer import DPOTrainer
from policies.preferences.trajectories import Trajectory, collect_trajectories
from policies.reinforcement.exploration import Exploration
from policies.reinforcement.reference import Reference
from policies.reinforcement.state_policy import StatePolicy
from policies.run_folder import RunFolder
from vla.model.heads.gaussian import GaussianHeadConfig
from vla.model.heads.l1 import L1HeadConfig
from vla.model.heads.registry import NoLikelihoodError

CPU = torch.device("cpu")
EPISODES = {
    "a": trajectory([[0.1, 0.0], [0.2, 0.0]], sample=torch.full((2, 2, 1), 0.5)),
    "b": trajectory(
        [[0.3, 0.0], [0.4, 0.0], [0.5, 0.0]],
        sample=torch.full((3, 2, 1), -0.5),
        valid=torch.tensor([[True, True], [True, True], [True, False]]),
    ),
}


def policy_of_two() -> StatePolicy:
    """Untrained, on the two numbers of the point's state, in chunks of two."""
    torch.manual_seed(0)
    return StatePolicy(PointVecEnv(1), 2)


def pairs_of(labels: dict[tuple[str, str], float | None], policy: StatePolicy) -> PairBatch:
    """With the policy as the reference."""
    return stack_pairs(compared(EPISODES, labels), EPISODES, Reference(policy.actor), CPU)


def test_pairs_are_stacked_preferred_first() -> None:
    """Ties and what nobody could tell are left out; a shorter trajectory is padded."""
    labels = {("a", "b"): 0.0, ("b", "a"): 0.5, ("a", "a"): None, ("b", "b"): 1.0}
    pairs = pairs_of(labels, policy_of_two())
    # Rows in the order in which trajectories are met: b is preferred to a, so it is the first.
    assert pairs.rows[0].tolist() == [[0, 1, 2], [3, 4, 0]]
    assert pairs.played[0].tolist() == [[True] * 3, [True, True, False]]
    assert len(pairs) == 2
    assert pairs.valid[2].tolist() == [True, False]
    part = pairs.select(torch.tensor([1]))
    assert part.rows.tolist() == [[[0, 1, 2], [0, 1, 2]]]
    assert torch.equal(part.reference, pairs.reference[:3])


def test_margins_by_hand() -> None:
    """Log-ratios 1, 2, 4 of the preferred and 8, 16 of the rejected, at a beta of a half."""
    pairs = pairs_of({("b", "a"): 1.0}, policy_of_two())
    ratio = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    margin, counts = margins(ratio, pairs, DPOConfig(beta=0.5))
    assert margin.tolist() == [[(7 - 24) / 2]]
    assert counts.tolist() == [[True]]
    margin, counts = margins(ratio, pairs, DPOConfig(beta=0.5, level="chunk"))
    assert margin[0, :2].tolist() == [(1 - 8) / 2, (2 - 16) / 2]
    assert counts.tolist() == [[True, True, False]]


@pytest.mark.parametrize("level", ["trajectory", "chunk"])
def test_the_loss_begins_at_log_2_and_is_equation_7(level: Any) -> None:
    """At the reference nothing is preferred; afterwards, computed anew from the densities."""
    policy = policy_of_two()
    pairs = pairs_of({("b", "a"): 1.0}, policy)
    config = DPOConfig(beta=0.3, level=level)
    loss, metrics = dpo_loss(policy.actor, pairs, config)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)
    assert metrics["dpo/accuracy"] == 0
    before = policy.actor.likelihood(pairs.features, pairs.sample).log_prob().detach()
    with torch.no_grad():
        policy.actor.head.get_parameter("layers.6.bias").add_(torch.tensor([-0.3, -0.1]))
    after = policy.actor.likelihood(pairs.features, pairs.sample).log_prob().detach()
    gained = ((after - before) * pairs.valid).sum(1)  # [5], b's three chunks and a's two
    assert gained.tolist()[0] > 0
    if level == "trajectory":
        expected = math.log1p(math.exp(-0.3 * float(gained[:3].sum() - gained[3:].sum())))
    else:
        each = -0.3 * (gained[:2] - gained[3:])
        expected = float(each.exp().log1p().mean())
    loss, metrics = dpo_loss(policy.actor, pairs, config)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert metrics["dpo/accuracy"] == 1
    assert metrics["dpo/preferred_log_ratio"] == pytest.approx(float(gained[:3].sum()), rel=1e-4)


def test_what_was_not_executed_does_not_count() -> None:
    """The last step of b lies behind its end: whatever was drawn there, the loss is the same."""
    policy = policy_of_two()
    losses = []
    for value in (-0.5, 2.0):
        sample = EPISODES["b"].sample.clone()
        sample[2, 1] = value
        episodes = EPISODES | {"b": replace(EPISODES["b"], sample=sample)}
        comparisons = compared(episodes, {("b", "a"): 1.0})
        pairs = stack_pairs(comparisons, episodes, Reference(policy.actor), CPU)
        with torch.no_grad():
            pairs = replace(pairs, reference=pairs.reference + torch.arange(5))
        losses.append(dpo_loss(policy.actor, pairs, DPOConfig())[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_optimum_of_preferences_of_a_known_reward_is_reached() -> None:
    """Of a Gaussian and a reward of c a sample: the mean moves by c sigma^2 / beta, exactly.

    The optimum of the reward with a KL penalty is pi_ref exp(r / beta), a Gaussian again.
    """
    torch.manual_seed(0)
    env = PointVecEnv(1)
    policy = StatePolicy(env, 1, GaussianHeadConfig(hidden=8))
    Exploration(policy.actor, (-1.0, -1.0), (1.0, 1.0)).begin()
    reference, slope, beta = Reference(policy.actor), 2.0, 0.5
    generator = torch.Generator().manual_seed(0)
    state, count = [[0.2, 0.1]], 6000
    one = trajectory(state, valid=torch.ones(1, 1, dtype=torch.bool), rewards=[[0.0]])
    features = one.features.select(torch.zeros(count, dtype=torch.int64))
    samples = [policy.actor.sample(features, generator).detach() for _ in range(2)]
    odds = slope * (samples[0] - samples[1])[:, 0, 0]
    first = torch.rand(count, generator=generator) < odds.sigmoid()  # Bradley-Terry
    won = torch.where(first[:, None, None], samples[0], samples[1])
    lost = torch.where(first[:, None, None], samples[1], samples[0])
    sample = torch.cat([won, lost])
    both = one.features.select(torch.zeros(2 * count, dtype=torch.int64))
    rows = torch.arange(2 * count).view(2, count).T[:, :, None]  # [count, 2, 1]
    executed = torch.ones(2 * count, 1, dtype=torch.bool)
    frozen = reference.likelihood(both, sample).log_prob().sum(1)
    pairs = PairBatch(both, sample, executed, rows, torch.ones_like(rows, dtype=torch.bool), frozen)
    mean = policy.actor.act(one.features).atanh().item()
    # The log standard deviation stays, as in a run.
    weights = [p for p in policy.actor.parameters() if p is not policy.actor.head.raw_log_std]
    optimizer = torch.optim.Adam(weights, lr=0.02)
    for _ in range(60):
        loss, _ = dpo_loss(policy.actor, pairs, DPOConfig(beta=beta))
        optimizer_step(optimizer, loss, 10.0)
    moved = policy.actor.act(one.features).atanh().item() - mean
    assert moved == pytest.approx(slope * math.exp(-2.0) / beta, rel=0.06)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_with_a_likelihood_learns_what_is_preferred(name: str, tmp_path: Path) -> None:
    """From a reference at which nothing is: later its own samples rank as they were judged."""
    policy = vla_policy(HEADS[name])
    trainer = make_run(tmp_path, policy, learning_rate=3e-3, log_std=-0.5)
    loss, _ = dpo_loss(policy.actor, trainer.train, trainer.config)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-4)
    for _ in range(30):
        metrics = trainer.learn()
    assert metrics["dpo/loss"] < 0.9 * math.log(2)
    assert metrics["dpo/accuracy"] > 0.8


def played(policy: Any, env: PointVecEnv, log_std: float) -> dict[str, Trajectory]:
    """Two attempts at each of eight states."""
    Exploration(policy.actor, (log_std, log_std), (4.0, 4.0)).begin()
    generator = torch.Generator().manual_seed(0)
    seeds = [seed for seed in range(8) for _ in range(2)]
    found = collect_trajectories(env, policy, seeds, generator, "me", "mine")
    return {f"{t.seed}-{index}": t for index, t in enumerate(found)}


def further_right(trajectories: dict[str, Trajectory]) -> list[Comparison]:
    """The episode that ended further to the right is better."""
    names = list(trajectories)
    labels = {
        (one, other): float(
            trajectories[one].privileged[-1, 0] > trajectories[other].privileged[-1, 0]
        )
        for one, other in zip(names[::2], names[1::2], strict=True)
    }
    return compared(trajectories, labels)  # type: ignore[arg-type]


def make_run(
    folder: Path, policy: Any = None, log_std: float = -1.0, **changes: Any
) -> DPOTrainer[Any]:
    """A short run on what the policy has played itself."""
    env = PointVecEnv(16, episode_length=4)
    if policy is None:
        torch.manual_seed(0)
        policy = StatePolicy(env, 2)
    trajectories = played(policy, env, log_std)
    config = DPOConfig(**{"epochs": 2, "evaluate_every": 1, "minibatch_size": 4} | changes)
    return DPOTrainer(
        policy,
        env,
        config,
        RunFolder(folder, config),
        further_right(trajectories),
        trajectories,
        log_std,
        4.0,
    )


def weights(trainer: DPOTrainer[Any]) -> list[Tensor]:
    """Copies of the actor's weights."""
    return [p.detach().clone() for p in trainer.policy.actor.parameters()]


def test_a_run_moves_where_it_is_told_and_leaves_exploration_alone(tmp_path: Path) -> None:
    """Further right than before; the log standard deviation is that of the collection."""
    trainer = make_run(tmp_path, epochs=30, evaluate_every=30, learning_rate=3e-3)
    state = EPISODES["b"].features
    before = trainer.policy.actor.act(state).mean()
    trainer.run(range(4))
    assert (trainer.policy.actor.act(state).mean() - before).item() > 0.02
    (log_std,) = trainer.policy.actor.log_std_parameters()
    assert (log_std == -1.0).all()


def test_a_run_resumes_exactly(tmp_path: Path) -> None:
    """Two epochs, and then two more, are four; the best checkpoint and the log are there."""
    whole = make_run(tmp_path / "whole", epochs=4)
    whole.run(range(4))
    make_run(tmp_path / "parts", epochs=2).run(range(4))
    resumed = make_run(tmp_path / "parts", epochs=4)
    best = resumed.run(range(4))
    assert same(weights(whole), weights(resumed))
    assert best == tmp_path / "parts" / "best"
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert len(logs[0].splitlines()) == 5


def test_a_run_is_resumed_with_its_own_judgements_alone(tmp_path: Path) -> None:
    """Others are other data; nothing is written."""
    make_run(tmp_path).run(range(4))
    before = files(tmp_path)
    other = make_run(tmp_path, epochs=3)
    other._judged = "others"
    with pytest.raises(ResumeError, match=r"comparisons: .* in the run, others now"):
        other.run(range(4))
    with pytest.raises(ResumeError, match=r"training\.beta: 0\.1 in the run, 0\.2 now"):
        make_run(tmp_path, beta=0.2).run(range(4))
    assert files(tmp_path) == before


def test_divergence_names_the_last_checkpoint(tmp_path: Path) -> None:
    """A rate that throws the weights out of range."""
    with pytest.raises(DivergedError, match=r"at step 1.*none was written yet"):
        make_run(tmp_path, learning_rate=1e38).run(range(4))


def test_what_dpo_cannot_learn_from_is_refused(tmp_path: Path) -> None:
    """A head without a likelihood, segments, ties alone, one state alone."""
    with pytest.raises(NoLikelihoodError, match=r"DPO needs .* gaussian, token, fast, flow"):
        DPOTrainer(
            vla_policy(L1HeadConfig()),
            PointVecEnv(2),
            DPOConfig(),
            RunFolder(tmp_path / "run", {}),
            [],
            {},
            -1.0,
            1.0,
        )
    assert not (tmp_path / "run").exists()
    policy = policy_of_two()
    with pytest.raises(ComparisonError, match="none of 1 comparisons prefers one"):
        pairs_of({("a", "b"): 0.5}, policy)
    inside = Comparison(Pair(Segment("a", 0, 1), Segment("b", 0, 1)), 1.0, "test")
    with pytest.raises(ComparisonError, match="segments from inside of episodes"):
        stack_pairs([inside], EPISODES, Reference(policy.actor), CPU)
    for label, message in (
        (1.0, "1 initial states leave 0 to learn from"),
        (0.5, "none of 1 comparisons prefers one"),
    ):
        with pytest.raises(ComparisonError, match=message):
            DPOTrainer(
                policy,
                PointVecEnv(2),
                DPOConfig(),
                RunFolder(tmp_path / "run", {}),
                compared(EPISODES, {("a", "b"): label}),
                EPISODES,
                -1.0,
                1.0,
            )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be above 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"heldout_fraction": 0.95}, "heldout_fraction must be above 0 and at most 0.9"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    """Before anything runs, with the range."""
    with pytest.raises(ValueError, match=message):
        DPOConfig(**settings)
