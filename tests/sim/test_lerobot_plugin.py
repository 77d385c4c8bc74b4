"""The environment and the robot that LeRobot sees."""

from __future__ import annotations

import numpy as np
import pytest
from lerobot.envs import EnvConfig
from lerobot.envs.utils import env_to_policy_features
from lerobot.robots import RobotConfig, make_robot_from_config

from sim.lerobot_plugin.config_env import VlaSimEnv
from sim.lerobot_plugin.config_robot import SimulatedRobotConfig
from sim.lerobot_plugin.env import TaskEnv
from sim.lerobot_plugin.robot import SimulatedRobot
from sim.seeds import DEVELOPMENT
from sim.tasks.registry import make_task

SEED = 1_000_003


def test_both_are_registered_under_their_names() -> None:
    """As `--env.type` and `--robot.type` look them up."""
    assert EnvConfig.get_choice_class("vla_sim") is VlaSimEnv
    assert RobotConfig.get_choice_class("vla_sim") is SimulatedRobotConfig


def test_the_environment_says_what_our_data_sets_say() -> None:
    """The same features under the same names, images with the colour first."""
    config = VlaSimEnv(task="FetchPush", image_size=32)
    features = {key: ft.shape for key, ft in env_to_policy_features(config).items()}
    assert config.fps == 25
    assert features == {
        "action": (4,),
        "observation.state": (5,),
        "observation.images.front": (3, 32, 32),
        "observation.images.side": (3, 32, 32),
        "observation.images.wrist": (3, 32, 32),
    }
    with pytest.raises(ValueError, match="valid names"):
        VlaSimEnv(task="FetchFly")


@pytest.mark.render
def test_an_episode_is_the_tasks_own() -> None:
    """Equal seeds and actions give the states that the task gives; success counts at the end."""
    env = TaskEnv("FetchReach", image_size=32)
    task = make_task("FetchReach", image_size=32)
    data = task.make_data()
    episode = task.reset(data, SEED)
    observation, _ = env.reset(seed=SEED)
    assert env.task_description == episode.instruction
    assert env.observation_space.contains(observation)
    truncated, successes = False, []
    while not truncated:
        action = task.expert_action(data, episode)
        task.step(data, episode, action)
        observation, reward, terminated, truncated, info = env.step(action)
        np.testing.assert_array_equal(observation["agent_pos"], task.proprio(data))
        assert reward == float(task.is_success(data, episode))
        assert not terminated
        successes.append(info["is_success"])
    assert len(successes) == task.episode_length == env.get_wrapper_attr("_max_episode_steps")
    assert successes == [False] * (task.episode_length - 1) + [True]
    assert env.render().shape == (32, 96, 3)
    with pytest.raises(ValueError, match="4 finite numbers"):
        env.step(np.full(4, np.nan, np.float32))
    env.close()


@pytest.mark.render
def test_an_episode_without_a_seed_is_one_of_development() -> None:
    """As LeRobot begins every episode after the first: never one of the final evaluation."""
    env = TaskEnv("FetchReach", image_size=32)
    for seed in (0, None, None):
        env.reset(seed=seed)
        assert env._episode
        assert env._episode.seed == seed or env._episode.seed in DEVELOPMENT
    env.close()


def test_vector_environments_are_what_lerobot_steps() -> None:
    """One suite, one task, results in rows."""
    ((vector,),) = (
        suite.values()
        for suite in VlaSimEnv(task="FetchReach", image_size=32).create_envs(2).values()
    )
    observation, _ = vector.reset(seed=[SEED, SEED + 1])
    assert observation["pixels"]["front"].shape == (2, 32, 32, 3)
    assert all(vector.call("task_description"))
    vector.close()


@pytest.mark.render
def test_the_robot_moves_as_commanded_and_refuses_the_rest() -> None:
    """Found by LeRobot's own naming rule; a command that is not one moves nothing."""
    robot = make_robot_from_config(SimulatedRobotConfig(task="FetchReach", image_size=32))
    assert isinstance(robot, SimulatedRobot)
    with pytest.raises(ConnectionError):
        robot.get_observation()
    robot.connect()
    before = robot.get_observation()
    assert set(before) == set(robot.observation_features)
    assert before["front"].shape == robot.observation_features["front"] == (32, 32, 3)
    command = dict.fromkeys(robot.action_features, 0.0)
    for bad in ({"dx.vel": 1.0}, command | {"dx.vel": float("nan")}, command | {"dw.vel": 0.0}):
        with pytest.raises(ValueError, match=r"the robot takes|not finite"):
            robot.send_action(bad)
    assert robot.get_observation()["gripper_x.pos"] == before["gripper_x.pos"]
    sent = robot.send_action(command | {"dx.vel": 5.0})
    assert sent["dx.vel"] == 1.0, "cut to the limits"
    assert robot.get_observation()["gripper_x.pos"] > before["gripper_x.pos"]
    robot.disconnect()
    assert not robot.is_connected
