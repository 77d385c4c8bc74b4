"""The off-policy trainer: what it stores, learns, resumes and refuses; and its demonstrations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learners import files, same, weights
from lerobot_folder import camera, vector, write_episodes
from off_policy_learners import EXPERT, make, vla_policy
from point_env import STEP_M, PointVecEnv

from policies.checkpoints import DivergedError, ResumeError
from policies.evaluation.evaluate import evaluate
from policies.reinforcement.dsrl import DSRLConfig, NotSteerableError
from policies.reinforcement.off_policy import OffPolicyTrainer
from policies.reinforcement.refinement import RefinementConfig
from policies.reinforcement.sac import SACConfig
from policies.reinforcement.state_policy import StatePolicy
from policies.rollout import rollout
from policies.run_folder import RunFolder
from vla.contract import ContractMismatchError
from vla.model.heads.flow import FlowHeadConfig
from vla.model.heads.gaussian import GaussianHeadConfig
from vla.model.heads.registry import NotReparameterisedError
from vla.model.heads.token import TokenHeadConfig
from vla.policy import load_policy

# What is stored


def test_macro_steps_are_stored_as_they_were_played(tmp_path: Path) -> None:
    """States, executed chunks, discounted rewards of the executed steps, and discounts."""
    env = PointVecEnv(2, episode_length=5)
    method = SACConfig(gamma=0.5, hidden=16, n_step=1, step_reward=-1.0)
    trainer = make(tmp_path, method, StatePolicy(env, 2), env)
    trainer.advance()
    batch = trainer.replay.read(*trainer.replay.newest(6), 1)
    x, goal = batch.features.proprio.unbind(1)
    after = batch.next_features.proprio[:, 0]
    for row in range(len(batch)):
        at, reward, discount = float(x[row]), 0.0, 1.0
        for action in batch.action[row, :, 0].tolist():
            at += STEP_M * action
            reward += discount * (float(abs(at - float(goal[row])) < STEP_M) - 1)
            discount *= 0.5
            if at == pytest.approx(float(after[row]), abs=1e-5):
                break
        assert float(after[row]) == pytest.approx(at, abs=1e-5)
        assert float(batch.reward[row]) == pytest.approx(reward, abs=1e-5)
        fell = abs(at) > 1
        assert float(batch.discount[row]) == pytest.approx(0.0 if fell else discount)
    # Three chunks in an episode of five steps, the last of which is executed by half.
    assert len(batch) == 18
    assert sorted(set(batch.discount.tolist()) - {0.0}) == [0.25, 0.5]


def test_a_critic_sees_simulator_state_and_the_actor_its_features(tmp_path: Path) -> None:
    """Also after the last step of an episode; and features alone where it is told so."""
    policy = vla_policy(GaussianHeadConfig(16))
    trainer = make(tmp_path / "state", policy=policy)
    trainer.advance()
    batch = trainer.replay.read(*trainer.replay.newest(6), 1)
    assert batch.critic_obs.shape[1] == batch.next_critic_obs.shape[1] == 2
    assert batch.features.readout.shape[1] == policy.model.backbone.width
    # The executed chunk has the model's own width, and the point moved as it says.
    first = batch.action[:, :, 0]
    moved = batch.next_critic_obs[:, 0] - batch.critic_obs[:, 0]
    full = (batch.discount - 0.98**3).abs() < 1e-6
    torch.testing.assert_close(moved[full], STEP_M * first[full].sum(1), atol=1e-5, rtol=0)
    other = make(tmp_path / "features", policy=policy, critic="features")
    other.advance()
    seen = other.replay.read(*other.replay.newest(6), 1)
    assert seen.critic_obs.shape[1] > policy.model.backbone.width


# Learning


def test_sac_learns_what_the_expert_does(tmp_path: Path) -> None:
    """From scratch to the expert's return, which is the greatest there is; goals in hindsight."""
    env = PointVecEnv(8, episode_length=12)
    torch.manual_seed(0)
    head = GaussianHeadConfig(64, log_std_min=-4.0, log_std_start=0.0)
    policy = StatePolicy(env, 1, head)
    method = SACConfig(
        gamma=0.9,
        hidden=64,
        batch_size=64,
        critics=2,
        n_step=1,
        updates_per_step=1.0,
        temperature_start=0.1,
        target_entropy=-1.0,
        learning_rate=2e-3,
        critic_learning_rate=2e-3,
        hindsight=0.8,
        log_std_start=0.0,
    )
    config = RefinementConfig(iterations=6, episodes=16, warmup_iterations=0)
    run = RunFolder(tmp_path, config)
    trainer = OffPolicyTrainer(
        policy, env, config, method, run, lambda i: range(16 * i, 16 * i + 16)
    )
    for _ in range(config.iterations):
        trainer.advance()
    tested = range(1000, 1040)

    class Expert:
        """Straight to the goal."""

        spec = env.spec

        def reset(self, indices: Any) -> None:
            """Nothing is remembered."""

        def act(self, observation: Any) -> torch.Tensor:
            """A chunk of one step."""
            return torch.from_numpy(env.expert_actions())[:, None]

    best = np.mean([e.total_reward for e in rollout(env, Expert(), tested).episodes])
    assert evaluate(env, policy, tested)[0]["success/return"] > 0.93 * best


def test_the_critic_learns_alone_before_the_actor_moves(tmp_path: Path) -> None:
    """The first iteration only collects, the second is the warm-up's."""
    trainer = make(tmp_path)
    before = weights(trainer)
    assert "critic/loss" not in trainer.advance()
    metrics = trainer.advance()
    assert metrics["critic/loss"] > 0
    assert "policy/loss" not in metrics
    assert same(weights(trainer), before)
    metrics = trainer.advance()
    assert not same(weights(trainer), before)
    assert {"policy/entropy", "policy/temperature", "critic/explained_variance"} <= {*metrics}
    assert metrics["replay/steps"] == 54


def test_gradient_steps_follow_the_macro_steps(tmp_path: Path) -> None:
    """Half a step each: fractions are carried over, also through a checkpoint."""
    trainer = make(tmp_path, SACConfig(hidden=16, batch_size=8, updates_per_step=0.4))
    for _ in range(2):
        trainer.advance()
    (state, *_) = trainer.sac.state_dict()["optimizer"]["state"].values()
    assert int(state["step"]) == 7  # of 18 macro-steps
    assert trainer._state()["owed"] == pytest.approx(0.2)


def test_one_robot_s_checkpoint_acts_like_any_other(tmp_path: Path) -> None:
    """Refined from features, saved, loaded, and evaluated."""
    policy = vla_policy(GaussianHeadConfig(16, dropout=0.5))
    trainer = make(tmp_path, policy=policy, iterations=2, warmup_iterations=0)
    best = trainer.run([0, 1])
    loaded = load_policy(best)
    env = trainer.env
    env.reset([0, 1, 2], [5, 6, 7])
    observation, _ = env.observe()
    last = load_policy(tmp_path / "step_000002")
    policy.reset()
    assert torch.equal(last.act(observation), policy.act(observation))
    assert loaded.act(observation).shape == (3, 3, 1)
    ledger = json.loads((best / "ledger.json").read_text())
    assert ledger["selection_steps"] > 0


# Resuming


@pytest.mark.parametrize("kind", ["state", "vla", "dsrl"])
def test_a_resumed_run_is_the_same_run(kind: str, tmp_path: Path) -> None:
    """Two and two iterations are four, bit for bit, buffer included."""

    def policy() -> Any:
        if kind == "state":
            torch.manual_seed(0)
            return StatePolicy(PointVecEnv(1), 2)
        head = FlowHeadConfig(EXPERT, steps=2) if kind == "dsrl" else GaussianHeadConfig(16)
        return vla_policy(head)

    def run(folder: Path, iterations: int) -> OffPolicyTrainer[Any]:
        env = PointVecEnv(3, episode_length=5)
        made = StatePolicy(env, 2) if kind == "state" else policy()
        if kind == "state":
            made.actor.load_state_dict(policy().actor.state_dict())
        settings = {"hidden": 16, "batch_size": 8, "updates_per_step": 0.7}
        method = DSRLConfig(**settings, steering=16) if kind == "dsrl" else SACConfig(**settings)
        trainer = make(folder, method, made, env, iterations=iterations)
        trainer.run([0, 1])
        trainer._folder.close()
        return trainer

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 4)
    assert same(weights(whole), weights(parts))
    assert whole.policy.ledger.amounts == parts.policy.ledger.amounts
    one, other = (t.replay.state_dict() for t in (whole, parts))
    assert all(torch.equal(one["observed"][n], other["observed"][n]) for n in one["observed"])


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    """Nothing is written, and what differs is named."""
    make(tmp_path, iterations=1).run([0])
    before = files(tmp_path)
    changed = make(tmp_path, SACConfig(hidden=16, batch_size=8, tau=0.5))
    with pytest.raises(ResumeError, match=r"algorithm.tau: 0.005 in the run, 0.5 now"):
        changed.run([0])
    assert files(tmp_path) == before


# Demonstrations


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Two recorded episodes of the point that goes straight to its goal."""
    return write_point_episodes(tmp_path / "recorded")


def write_point_episodes(
    root: Path, without: str = "", state: tuple[str, ...] = ("x", "goal")
) -> Path:
    """Of 7 and 2 frames, with what `vla collect` records."""
    spec = PointVecEnv.spec
    features = {
        "observation.images.top": camera(2, 2),
        "observation.state": vector(["x"]),
        "action": vector(["x"]),
        "executed.action": vector(["x"]),
        "privileged.state": vector(state),
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    features.pop(without, None)
    episodes = []
    for start, length in ((-0.6, 7), (0.5, 2)):
        episodes.append([])
        for step in range(length):
            x, goal = start + STEP_M * step, start + 0.35
            numbers = {"observation.state": [x], "action": [1.0], "executed.action": [1.0]}
            frame: dict[str, Any] = {
                name: np.array(values, np.float32) for name, values in numbers.items()
            }
            frame["privileged.state"] = np.array([x, goal], np.float32)
            frame["next.success"] = np.array([abs(x + STEP_M - goal) < STEP_M])
            frame["observation.images.top"] = np.full((2, 2, 3), 9, np.uint8)
            frame.pop(without, None)
            episodes[-1].append(frame | {"task": f"go to {goal:.2f}"})
    write_episodes(root, features, episodes, fps=10, robot="point")
    (root / "meta" / "contract.json").write_text(json.dumps(spec.to_dict()))
    return root


@pytest.mark.parametrize("episode_length", [12, 2])
def test_demonstrations_become_macro_steps_from_every_frame(
    episode_length: int, recorded: Path, tmp_path: Path
) -> None:
    """An episode of 7 frames has three chunks of 2 from its first frame and two from its second.

    Also where the environment's own episodes are shorter: none runs into the next one's place.
    """
    env = PointVecEnv(3, episode_length=episode_length)
    method = SACConfig(hidden=16, batch_size=8, gamma=0.5, hindsight=0.0)
    trainer = make(tmp_path / "run", method, StatePolicy(env, 2), env, recorded)
    trainer._begin()
    batch = trainer.replay.read(*trainer.replay.demonstrations(), 1)
    x = batch.features.proprio[:, 0]
    assert sorted(x.tolist()) == pytest.approx([-0.6, -0.5, -0.4, -0.3, -0.2])
    torch.testing.assert_close(batch.next_features.proprio[:, 0], x + 2 * STEP_M)
    assert (batch.action == 1).all()
    assert (batch.discount == 0.25).all()  # a recording that stops is no termination
    # Success from 0.25 to 0.45 m after the start: of the chunks from -0.4, -0.3 and -0.2.
    by_start = {round(float(a), 1): float(r) for a, r in zip(x, batch.reward, strict=True)}
    assert by_start == {-0.6: 0.0, -0.5: 0.5, -0.4: 1.5, -0.3: 1.0, -0.2: 0.0}
    metrics = [trainer.advance() for _ in range(3)][-1]
    assert metrics["policy/loss"] != 0


def test_demonstrations_of_a_vla_are_read_through_its_backbone(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its features, from its own images and words, are what it would see there."""
    policy = vla_policy(GaussianHeadConfig(16))
    trainer = make(tmp_path / "run", policy=policy, demonstrations=recorded, iterations=2)
    trainer.run([0])
    trainer._folder.close()
    batch = trainer.replay.read(*trainer.replay.demonstrations(), 1)
    assert len(batch) == 4  # chunks of 3 from the frames 0 to 3 of seven, 2 from the first
    assert batch.features.readout.abs().sum() > 0
    # Resumed, they come from the checkpoint, and no frame is read again.
    again = make(tmp_path / "run", policy=policy, demonstrations=recorded, iterations=3)
    monkeypatch.setattr(again._recorded, "read", None)
    again.run([0])
    assert len(again.replay.read(*again.replay.demonstrations(), 1)) == 4


def test_demonstrations_that_do_not_fit_are_refused(recorded: Path, tmp_path: Path) -> None:
    """Another robot, another state, nothing of what is needed; no run folder is made."""
    other = shutil.copytree(recorded, tmp_path / "other")
    contract = json.loads((other / "meta" / "contract.json").read_text())
    contract["action"]["units"] = ["m"]
    (other / "meta" / "contract.json").write_text(json.dumps(contract))
    with pytest.raises(ContractMismatchError, match="demonstrations"):
        make(tmp_path / "run", demonstrations=other)
    bare = write_point_episodes(tmp_path / "bare", without="next.success")
    with pytest.raises(ValueError, match=r"have no next.success.*`vla collect` records them"):
        make(tmp_path / "run", demonstrations=bare)
    renamed = write_point_episodes(tmp_path / "renamed", state=("x", "y"))
    with pytest.raises(ValueError, match="hold the state x, y, the environment has x, goal"):
        make(tmp_path / "run", demonstrations=renamed)
    env = PointVecEnv(3, episode_length=12)
    with pytest.raises(ValueError, match="no episode is longer than a chunk of 7 steps"):
        make(tmp_path / "run", None, StatePolicy(env, 7), env, recorded)
    assert not (tmp_path / "run").exists()


# Refusals


@pytest.mark.parametrize(
    ("head", "method", "error", "message"),
    [
        (
            TokenHeadConfig(EXPERT, bins=16),
            SACConfig(),
            NotReparameterisedError,
            "TokenHead does not have; clone with the head gaussian",
        ),
        (
            GaussianHeadConfig(16),
            DSRLConfig(),
            NotSteerableError,
            "GaussianHead does not have; clone with the head flow",
        ),
        (
            GaussianHeadConfig(16),
            SACConfig(hindsight=0.8),
            ValueError,
            "sees the goal in images and words",
        ),
        (GaussianHeadConfig(16), SACConfig(capacity=5), ValueError, "set capacity to 6 or more"),
        (GaussianHeadConfig(16), SACConfig(log_std_start=-3.0), ValueError, "outside of this head"),
        (FlowHeadConfig(EXPERT), DSRLConfig(log_std_start=1.0), ValueError, "outside of this head"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_runs(
    head: Any, method: SACConfig, error: type[Exception], message: str, tmp_path: Path
) -> None:
    """With what is valid; no run folder is made."""
    with pytest.raises(error, match=message):
        make(tmp_path / "run", method, vla_policy(head))
    assert not (tmp_path / "run").exists()


def test_hindsight_without_goals_or_with_chunks_is_refused(tmp_path: Path) -> None:
    """Naming the state that there is, and the chunk that would do."""
    env = PointVecEnv(3, episode_length=5)
    method = SACConfig(hindsight=0.8)
    with pytest.raises(ValueError, match="a chunk of 2 gives only the last one"):
        make(tmp_path / "run", method, StatePolicy(env, 2), env)
    env.goals = None
    with pytest.raises(ValueError, match="this one names no goal in x, goal"):
        make(tmp_path / "run", method, StatePolicy(env, 1), env)
    assert not (tmp_path / "run").exists()


def test_a_reward_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    """Before it is stored: one would spoil every batch that draws it."""
    trainer = make(tmp_path)
    step = trainer.env.step

    def broken(chunks: torch.Tensor) -> Any:
        outcome = step(chunks)
        outcome.rewards[1, 0] = float("nan")
        return outcome

    trainer.env.step = broken
    with pytest.raises(ContractMismatchError, match=r"reward is not finite in environments \[1\]"):
        trainer.advance()
    assert len(trainer.replay) == 0


def test_divergence_stops_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    """A rate that throws the weights out of range."""
    method = SACConfig(hidden=16, batch_size=8, learning_rate=1e38, critic_learning_rate=1e38)
    trainer = make(tmp_path, method, warmup_iterations=0)
    with pytest.raises(DivergedError, match=r"at step [23]: .*step_000001"):
        trainer.run([0])
