"""The reward that is learned from beside true success, and rewards by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learners import make_trainer
from off_policy_learners import make
from point_env import STEP_M, PointVecEnv
from torch import Tensor

from policies.evaluation.habits.diagnosis import diagnose_folder
from policies.optimisation import NotFiniteError
from policies.reinforcement.collect import Reward
from policies.reinforcement.ppo import PPOConfig
from policies.reinforcement.reward_watch import RewardWatch
from policies.reinforcement.rewards import REWARDS, make_reward
from policies.reinforcement.sac import SACConfig
from policies.reinforcement.state_policy import StatePolicy
from policies.rollout import Transition, rollout
from scripts.progress import Bar
from scripts.refine import RefineConfig
from scripts.refine import main as refine
from vla.model.heads.base import HeadInputs

STATE = tuple(f"{point}_{axis}" for point in ("gripper", "object", "goal") for axis in "xyz")


def in_the_middle(transition: Transition) -> Tensor:
    """Meant to keep the point from falling off; it pays for the middle, wherever the goal is."""
    return transition.step.valid * (1 - transition.step.privileged[:, :1].abs())


def test_each_episode_keeps_what_it_earned() -> None:
    """Whatever environment it was played in, and whenever it ended."""
    env = PointVecEnv(2, episode_length=5)
    watch = RewardWatch(lambda transition: 2.0 * transition.step.rewards)
    reward = watch.begin(5)
    assert reward is not None
    episodes = rollout(env, StatePolicy(env, 2), range(5), reward)
    doubled = [2 * e.total_reward for e in episodes.episodes]
    assert watch.returns(episodes).tolist() == pytest.approx(doubled)
    assert sum(doubled) > 0
    own = RewardWatch(None)
    assert own.begin(5) is None
    assert own.returns(episodes).tolist() == pytest.approx([r / 2 for r in doubled])
    assert own.judge({"success/end": 1.0}) == {}


def expert(env: PointVecEnv) -> StatePolicy:
    """A policy that goes straight to the goal, cloned in a second."""
    torch.manual_seed(0)
    policy = StatePolicy(env, 2)
    optimizer = torch.optim.Adam(policy.actor.parameters(), lr=3e-3)
    for _ in range(300):
        state = torch.rand(64, 2) * 2 - 1
        first = ((state[:, 1] - state[:, 0]) / STEP_M).clamp(-1, 1)
        second = ((state[:, 1] - state[:, 0]) / STEP_M - first).clamp(-1, 1)
        inputs = HeadInputs(state, torch.zeros(64, 0, 0), torch.zeros(64, 0, dtype=torch.bool))
        chunk = torch.stack([first, second], dim=1)[..., None]  # [64, 2, 1]
        loss = policy.actor.head.loss(inputs, chunk, torch.zeros(64, 2, dtype=torch.bool))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


def test_a_flawed_reward_raises_the_alarm_and_the_sparse_one_does_not(tmp_path: Path) -> None:
    """In a real run: the proxy rises while success falls, and the best checkpoint is kept."""
    env = PointVecEnv(30, episode_length=12)
    method = PPOConfig(gamma=0.7, learning_rate=3e-3, minibatch_size=60, epochs=6, target_kl=0.3)
    alarms, habits = {}, {}
    for name, reward in (("flawed", in_the_middle), ("sparse", None)):
        trainer = make_trainer(
            tmp_path / name,
            method,
            expert(env),
            env,
            iterations=4,
            episodes=30,
            evaluate_every=2,
            reward=reward,
            critic_learning_rate=3e-3,
            critic_minibatch_size=60,
            critic_epochs=10,
            warmup_iterations=1,
            warmup_epochs=30,
        )
        trainer._collection_seeds = lambda iteration: range(30 * iteration, 30 * iteration + 30)
        seen: list[dict[str, float]] = []
        trainer.run(range(900, 960), lambda iteration, values, seen=seen: seen.append(values))
        alarms[name] = [values["reward/alarm"] for values in seen if "reward/alarm" in values]
        verdicts = diagnose_folder(tmp_path / name).verdicts
        habits[name] = next(v for v in verdicts if v.habit == "Reward hacking")
    assert alarms["flawed"][0] == 0
    assert alarms["flawed"][-1] == 1, habits
    assert alarms["sparse"] == []
    assert habits["flawed"].state == "red"
    assert "the reward is being hacked" in habits["flawed"].reason
    assert habits["sparse"].state == "green"


def test_evaluations_are_remembered_when_a_run_is_resumed(tmp_path: Path) -> None:
    """The alarm compares with those before the interruption."""
    make_trainer(tmp_path, iterations=2, reward=in_the_middle).run([0, 1])
    again = make_trainer(tmp_path, iterations=3, reward=in_the_middle)
    again.run([0, 1])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    proxy = [row["success/proxy"] for row in rows if "success/proxy" in row]
    assert again._watch.state_dict()["proxy"] == pytest.approx(proxy)
    assert len(proxy) == 4
    assert make_trainer(tmp_path / "new")._watch.state_dict() == {"proxy": [], "success": []}


def test_an_off_policy_run_is_watched_too(tmp_path: Path) -> None:
    """It learns from the other reward, and logs both at each evaluation, also when resumed."""
    for iterations in (2, 3):
        env = PointVecEnv(3, episode_length=5)
        torch.manual_seed(0)
        trainer = make(
            tmp_path / "run",
            SACConfig(hidden=16, batch_size=8, gamma=0.5, n_step=1, step_reward=-1.0),
            StatePolicy(env, 2),
            env,
            iterations=iterations,
            reward=in_the_middle,
        )
        trainer.run([0, 1])
        trainer._folder.close()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "reward/alarm" in row] == [0, 1, 2, 3]
    assert trainer._watch.state_dict()["proxy"] == [row["success/proxy"] for row in rows]
    assert rows[1]["collect/learned_return"] != rows[1]["collect/return"]
    batch = trainer.replay.read(*trainer.replay.newest(6), 1)
    # Both steps of a chunk earn 1 minus the distance of where it ended from the middle, minus 1.
    each = -batch.next_features.proprio[:, 0].abs()
    steps = torch.where(batch.discount == 0.25, 1.5, 1.0)
    played = batch.discount > 0  # a termination does not say how many steps there were
    torch.testing.assert_close(batch.reward[played], (each * steps)[played])


@pytest.mark.parametrize("changes", [{"hindsight": 0.8}, {}])
def test_the_tasks_own_reward_is_not_mixed_with_another(
    changes: dict[str, float], tmp_path: Path
) -> None:
    """Hindsight and demonstrations bring it into the buffer."""
    env = PointVecEnv(3, episode_length=5)
    recorded = None if changes else tmp_path
    with pytest.raises(ValueError, match="demonstrations and hindsight bring the task's own"):
        make(
            tmp_path / "run",
            SACConfig(**changes),
            StatePolicy(env, 1),
            env,
            recorded,
            reward=in_the_middle,
        )


@pytest.mark.parametrize(
    ("reward", "error", "message"),
    [
        (
            lambda transition: transition.step.rewards / 0,
            NotFiniteError,
            "the reward that is learned from is",
        ),
        (lambda transition: transition.step.rewards.sum(1), ValueError, r"expected one a control"),
    ],
)
def test_a_reward_that_is_no_reward_is_named(
    reward: Reward, error: type[Exception], message: str
) -> None:
    """In the first collection, and not as a loss that is NaN."""
    # Two environments in chunks of two: one number an environment would be added up in silence.
    env = PointVecEnv(2, episode_length=4)
    watched = RewardWatch(reward).begin(2)
    with pytest.raises(error, match=message):
        rollout(env, StatePolicy(env, 2), range(2), watched)


def test_the_progress_line_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Once an evaluation has raised the alarm."""
    with Bar("refine", 3) as bar:
        bar.update(1, {"success/end": 0.9, "success/proxy": 10, "reward/alarm": 0.0})
        assert "ALARM" not in capsys.readouterr().out
        bar.update(2, {"success/end": 0.4, "success/proxy": 20, "reward/alarm": 1.0})
    assert "ALARM" in capsys.readouterr().out


# Rewards by name


def transition(before: list[float], after: list[float]) -> Transition:
    """One environment, three control steps of which two were executed; x of each point alone."""
    env = PointVecEnv(1)
    env.reset([0], [0])
    states = [torch.tensor([[x, 0.0, 0.0] for x in state]).view(1, -1) for state in (before, after)]
    step = env.step(torch.zeros(1, 3, 1))
    step = replace(step, privileged=states[1], valid=torch.tensor([[True, True, False]]))
    return Transition(np.zeros(1, int), env.observe()[0], states[0], torch.zeros(1, 3, 1), step)


def test_rewards_by_hand() -> None:
    """Of gripper, object and goal in metres; steps that were not executed earn nothing."""
    honest, flawed = (make_reward(name, STATE) for name in ("distance", "motion"))
    pushed = transition([0.0, 0.06, 0.2], [0.0, 0.1, 0.2])  # 4 cm nearer, 10 cm left
    assert honest(pushed).tolist() == [[pytest.approx(0.5)] * 2 + [0]]
    assert flawed(pushed).tolist() == [[pytest.approx(2.0)] * 2 + [0]]
    arrived = transition([0.0, 0.2, 0.2], [0.1, 0.2, 0.2])  # it stays at the goal
    assert honest(arrived)[0].tolist() == [1, 1, 0]
    assert not flawed(arrived).any()


def test_a_task_without_an_object_moves_its_gripper() -> None:
    """Both rewards serve reaching, too; a state without positions is refused."""
    names = tuple(name for name in STATE if "object" not in name)
    reached = transition([0.0, 0.2], [0.1, 0.2])
    assert float(make_reward("distance", names)(reached)[0, 0]) == pytest.approx(0.5)
    assert float(make_reward("motion", names)(reached)[0, 0]) == pytest.approx(5.0)
    with pytest.raises(ValueError, match="reads goal_x, goal_y, goal_z, which the task's state"):
        make_reward("distance", names[:3])


def test_what_does_not_exist_is_refused_before_anything_runs() -> None:
    """With what is valid; neither checkpoint nor folder is looked for."""
    with pytest.raises(ValueError, match=f"no reward 'dense'; valid: {', '.join(REWARDS)}"):
        refine(RefineConfig(reward="dense"))
    with pytest.raises(ValueError, match="no curriculum 'hard'; valid: frontier, radius"):
        refine(RefineConfig(curriculum="hard"))
    with pytest.raises(ValueError, match=r"--curriculum belongs to the on-policy"):
        refine(RefineConfig(algorithm="sac", reward="distance", curriculum="frontier"))
    with pytest.raises(ValueError, match="--demonstrations bring the task's own reward"):
        RefineConfig(algorithm="sac", reward="distance", demonstrations=Path("data"))
    with pytest.raises(ValueError, match="--reward and --curriculum radius both say"):
        RefineConfig(reward="distance", curriculum="radius:start_m=0.3")
