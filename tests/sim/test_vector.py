"""The vector environment: the contract's protocol, reproducible, and loud when something breaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sim.tasks.mujoco_task import pack_state
from sim.tasks.registry import make_task
from sim.vector import CpuVecEnv
from sim.worker_process import WorkerError
from vla.contract import VecEnv


@pytest.fixture(scope="module")
def env():
    """Three pushing environments on two workers, without images."""
    with CpuVecEnv("FetchPush", 3, num_workers=2, render=False) as vec:
        yield vec


def _chunks(n: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((n, k, 4), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_implements_the_protocol(env):
    """Structurally, and with the documented shapes and types."""
    assert isinstance(env, VecEnv)
    env.reset(range(3), [0, 1, 2])
    observation, privileged = env.observe()
    assert observation.proprio.device == privileged.device == env.device == torch.device("cpu")
    assert observation.images == {}
    assert observation.proprio.shape == (3, 5)
    assert privileged.shape == (3, len(env.privileged_names))
    batch = env.step(_chunks(3, 4))
    assert batch.rewards.shape == batch.success.shape == batch.valid.shape == (3, 4)
    assert batch.rewards.dtype == torch.float32
    assert batch.valid.all()
    assert not batch.terminated.any()
    assert not batch.truncated.any()
    np.testing.assert_allclose(batch.observation.time_s, 0.16)


def test_equals_the_task_run_by_hand(env):
    """Shared memory and chunking add nothing to the physics."""
    env.reset(range(3), [10, 11, 12])
    chunks = _chunks(3, 5)
    env.step(chunks)
    task = make_task("FetchPush")
    for index, seed in enumerate((10, 11, 12)):
        data = task.make_data()
        episode = task.reset(data, seed)
        for action in chunks[index].numpy():
            task.step(data, episode, action)
        np.testing.assert_array_equal(env.export_state()[index], pack_state(task, data, episode))
        np.testing.assert_array_equal(env.observe()[1][index], task.privileged(data, episode))
        np.testing.assert_array_equal(env.points()[index]["object"], task.achieved(data))
        np.testing.assert_array_equal(
            env.expert_actions()[index], task.expert_action(data, episode)
        )


def test_ended_environments_stay_as_they_are_until_reset(env):
    """The time limit falls inside a chunk; then nothing moves; then one environment restarts."""
    env.reset(range(3), [0, 1, 2])
    env.step(_chunks(3, 47))
    batch = env.step(_chunks(3, 5))
    assert batch.valid.tolist() == [[True] * 3 + [False] * 2] * 3
    assert batch.truncated.all()
    assert not batch.terminated.any()
    frozen = env.export_state()
    batch = env.step(_chunks(3, 2))
    assert not batch.valid.any()
    assert not batch.rewards.any()
    assert batch.truncated.all()
    np.testing.assert_array_equal(env.export_state(), frozen)
    env.reset([1], [7])
    batch = env.step(_chunks(3, 2))
    assert batch.valid.tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert batch.truncated.tolist() == [True, False, True]


def test_reward_is_one_where_success_holds(env):
    """The expert ends every one of these episodes on the goal."""
    env.reset(range(3), [0, 1, 2])
    for _ in range(env.episode_length):
        batch = env.step(env.expert_actions()[:, None])
    assert batch.success.all()
    assert batch.rewards.tolist() == [[1.0]] * 3


def test_returned_batches_are_the_callers_own(env):
    """A rollout may keep them while the environment goes on."""
    env.reset(range(3), [0, 1, 2])
    first = env.step(_chunks(3, 2))
    kept = (first.observation.proprio.clone(), first.privileged.clone())
    env.step(_chunks(3, 2, seed=1))
    torch.testing.assert_close(first.observation.proprio, kept[0], rtol=0, atol=0)
    torch.testing.assert_close(first.privileged, kept[1], rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_actions_that_are_not_finite_are_named(env, bad):
    """MuJoCo would reset the world without a word."""
    env.reset(range(3), [0, 1, 2])
    before = env.export_state()
    chunks = _chunks(3, 2)
    chunks[1, 0, 2] = bad
    with pytest.raises(ValueError, match=r"environment 1, chunk step 0, dimension 'dz'"):
        env.step(chunks)
    np.testing.assert_array_equal(env.export_state(), before)


@pytest.mark.parametrize("shape", [(3, 4), (2, 1, 4), (3, 1, 5), (3, 0, 4), (3, 51, 4)])
def test_wrong_shapes_are_refused(env, shape):
    """Nothing is broadcast or cut in silence."""
    env.reset(range(3), [0, 1, 2])
    with pytest.raises(ValueError, match="chunk"):
        env.step(torch.zeros(shape))


def test_wrong_use_is_refused():
    """Each error says what to do instead."""
    with pytest.raises(ValueError, match="valid names"):
        CpuVecEnv("FetchNothing", 1)
    with pytest.raises(ValueError, match=r"no camera \['top'\].*front"):
        CpuVecEnv("FetchReach", 1, cameras=("top",))
    for wrong in ({"num_envs": 0}, {"num_workers": 0}, {"num_workers": -1}, {"image_size": 0}):
        (name, value), *_ = wrong.items()
        with pytest.raises(ValueError, match=f"{name} (is )?{value}.*at least 1"):
            CpuVecEnv("FetchReach", **({"num_envs": 1} | wrong))
    with CpuVecEnv("FetchReach", 1, num_workers=1, render=False) as env:
        with pytest.raises(ValueError, match=r"not be negative, got \[-1\]"):
            env.reset([0], [-1])
        with pytest.raises(RuntimeError, match="reset first"):
            env.observe()
        with pytest.raises(ValueError, match="2 seeds"):
            env.reset([0], [1, 2])
        with pytest.raises(ValueError, match=r"no environments \[1\]"):
            env.reset([1], [1])


def test_a_failing_worker_reports_its_traceback():
    """And the environment is closed, not hanging."""
    env = CpuVecEnv("FetchReach", 2, num_workers=2, render=False)
    with pytest.raises(WorkerError, match=r"worker 1 failed: [\s\S]*KeyError"):
        env._ask("reset", {1: {0: 5}})  # environment 0 lives in worker 0
    with pytest.raises(RuntimeError, match="closed"):
        env.observe()


def test_a_killed_worker_is_noticed_and_memory_is_freed():
    """As after running out of memory."""
    env = CpuVecEnv("FetchReach", 2, num_workers=2, render=False)
    env.reset([0, 1], [0, 1])
    env._workers[1].process.kill()
    with pytest.raises(WorkerError, match=r"worker 1 was ended by SIGKILL .*out of memory"):
        env.step(_chunks(2, 50))
    assert not any(worker.process.is_alive() for worker in env._workers)
    env.close()


@pytest.mark.render
def test_results_do_not_depend_on_the_number_of_workers():
    """Bit for bit, images included, and with the held-out words."""
    runs = []
    for workers in (1, 3):
        with CpuVecEnv("FetchPickAndPlace", 3, workers, image_size=48, phrasing="heldout") as env:
            env.reset([2, 0, 1], [5, 3, 4])
            first, _ = env.observe()
            batch = env.step(_chunks(3, 6))
            runs.append((first, batch, env.export_state()))
    (first, batch, state), (other_first, other_batch, other_state) = runs
    np.testing.assert_array_equal(state, other_state)
    assert first.instructions == other_first.instructions
    assert set(first.instructions) <= set(make_task("FetchPickAndPlace").templates["heldout"])
    for name in ("front", "side", "wrist"):
        assert first.images[name].shape == (3, 48, 48, 3)
        assert first.images[name].float().std() > 10
        assert (first.images[name] != batch.observation.images[name]).any()
        torch.testing.assert_close(first.images[name], other_first.images[name])
        torch.testing.assert_close(
            batch.observation.images[name], other_batch.observation.images[name]
        )


@pytest.mark.render
def test_contract_lists_exactly_the_cameras_that_are_drawn():
    """In the order that was asked for."""
    with CpuVecEnv("FetchReach", 1, 1, image_size=32, cameras=("wrist", "front")) as env:
        env.reset([0], [0])
        observation, _ = env.observe()
        assert [camera.name for camera in env.spec.cameras] == ["wrist", "front"]
        assert list(observation.images) == ["wrist", "front"]
        assert observation.images["front"].shape == (1, 32, 32, 3)
        assert observation.images["front"].dtype == torch.uint8
