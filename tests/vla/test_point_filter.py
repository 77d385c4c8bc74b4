"""A static point is the weighted mean of its sightings, until episode or instruction change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from two_robots import ARM, POINTS, WORDS, observe, tiny_policy

from policies.imitation.bc import Cloner
from policies.imitation.config import CloningConfig
from policies.run_folder import RunFolder
from vla.contract import ObservationBatch
from vla.model.features import Features
from vla.model.point_filter import PolicyState, fuse_static_points
from vla.policy import VLAPolicy, load_policy

TARGET = POINTS.names.index("target")


def remembering() -> VLAPolicy:
    """For it the target is static."""
    model = tiny_policy(ARM).model
    model.average_static_points(["target"])
    return VLAPolicy(model, tiny_policy(ARM).embodiments)


def sight(policy: VLAPolicy, observation: ObservationBatch) -> tuple[np.ndarray, np.ndarray]:
    """All points as these images alone show them, and the weight of the target among them."""
    policy.model.eval()
    with torch.no_grad():
        pointing, _ = policy.network.point(policy.processor.encode_observation(observation))
    assert pointing is not None
    std = pointing.localisation_std[:, TARGET].numpy()
    return pointing.world.numpy(), 1 / (0.02**2 + std**2)


def test_the_target_is_the_weighted_mean_and_all_else_is_now() -> None:
    """Row by row, over three decisions."""
    policy = remembering()
    observations = [observe(ARM, seed=seed) for seed in range(3)]
    alone = [sight(policy, observation) for observation in observations]
    state = policy.initial_state(3)
    for now, observation in enumerate(observations):
        features, state = policy.features(observation, state)
        points = features.points.numpy()
        np.testing.assert_allclose(points[:, :TARGET], alone[now][0][:, :TARGET], atol=1e-6)
        weights = np.stack([weight for _, weight in alone[: now + 1]])
        positions = np.stack([position[:, TARGET] for position, _ in alone[: now + 1]])
        mean = (weights[..., None] * positions).sum(0) / weights.sum(0)[:, None]
        np.testing.assert_allclose(points[:, TARGET], mean, atol=1e-5)
    assert np.abs(mean - alone[2][0][:, TARGET]).max() > 1e-3  # it is not what it sees now


def test_fusing_is_the_inverse_variance_mean() -> None:
    """By hand: a sharp sighting counts for more, and an equal one for as much."""
    first, second = torch.tensor([[[0.0, 0.0, 0.0]]]), torch.tensor([[[1.0, 2.0, 3.0]]])
    sharp, blurred = torch.tensor([[0.0]]), torch.tensor([[0.02 * 3**0.5]])  # 1 and 1/4 in weight
    _, evidence = fuse_static_points(first, sharp, torch.zeros(1, 1, 4))
    mean, _ = fuse_static_points(second, blurred, evidence)
    torch.testing.assert_close(mean, second / 5)
    mean, _ = fuse_static_points(second, sharp, evidence)
    torch.testing.assert_close(mean, second / 2)


def test_a_new_episode_and_another_instruction_forget_where_they_happen() -> None:
    """Nowhere else; looking without keeping the memory leaves no trace."""
    policy = remembering()
    first, second = observe(ARM, seed=0), observe(ARM, seed=1)
    alone = sight(policy, second)[0][:, TARGET]
    _, state = policy.features(first, policy.initial_state(3))
    blended = policy.features(second, state)[0].points[:, TARGET]
    assert ((blended - torch.from_numpy(alone)).abs().amax(1) > 1e-4).all()
    assert torch.equal(policy.features(second, state)[0].points[:, TARGET], blended)
    second.instructions[2] = WORDS[0]
    apart = sight(policy, second)[0][:, TARGET]
    points = policy.features(second, state.reset([1, 77]))[0].points[:, TARGET]
    np.testing.assert_allclose(points[1:], apart[1:], atol=1e-6)
    assert torch.equal(points[0], blended[0])


def test_a_state_is_a_value() -> None:
    """Nothing that makes a new one changes the old one; rows are added at their beginning."""
    state = PolicyState(torch.ones(2, 1, 4), ("a", "b"))
    assert state.reset([0]).instructions == (None, "b")
    assert state.follow(["a", "c"]).evidence[:, 0, 0].tolist() == [1, 0]
    assert state.follow(["a", "b"]).evidence.equal(state.evidence)
    grown = state.grow(3)
    assert grown.instructions == ("a", "b", None)
    assert grown.evidence[:, 0, 0].tolist() == [1, 1, 0]
    assert state.grow(1) is state
    assert state.evidence.equal(torch.ones(2, 1, 4))


def test_acting_is_the_forward_pass_with_a_kept_state() -> None:
    """Equal chunks; `reset` forgets; fewer robots for a moment cost the others nothing."""
    policy = remembering()
    first, second = observe(ARM, seed=0), observe(ARM, seed=1)
    chunk, state = policy.forward(first, policy.initial_state(3))
    assert torch.equal(policy.act(first), chunk)
    policy.act(first.select([0]))
    _, one = policy.forward(first.select([0]), PolicyState(state.evidence[:1], (WORDS[0],)))
    evidence = torch.cat([one.evidence, state.evidence[1:]])
    expected, _ = policy.forward(second, replace(state, evidence=evidence))
    torch.testing.assert_close(policy.act(second), expected)
    policy.reset()
    with torch.inference_mode():  # in which LeRobot plays, but does not reset
        torch.testing.assert_close(policy.act(first), chunk)
    policy.reset()
    torch.testing.assert_close(policy.act(first), chunk)


def test_observing_is_what_acting_sees() -> None:
    """Features that are decoded give the chunk of `act`."""
    acting, observing = remembering(), remembering()
    observing.model.load_state_dict(acting.model.state_dict())
    for seed in range(2):
        chunk = acting.act(observe(ARM, seed=seed))
        features = observing.observe(observe(ARM, seed=seed))
        decoded = observing.decode(observing.actor.act(features))
        torch.testing.assert_close(chunk, decoded)


def test_cloning_sees_a_frame_as_the_policy_will(tmp_path: Path) -> None:
    """Features of demonstrations equal those of a policy that decides a chunk at a time."""
    policy = remembering()
    length = policy.chunk_length
    frames = [observe(ARM, count=1, seed=seed) for seed in range(9)]
    words = [*["one"] * 4, *["two"] * 5]  # the instruction changes on the way
    config = CloningConfig()
    cloner = Cloner(policy, _NoData(), config, RunFolder(tmp_path, config))  # pyright: ignore[reportArgumentType]
    policy.model.eval()
    with torch.no_grad():
        inputs = [policy.processor.encode_observation(frame) for frame in frames]
        features = Features.concatenate([policy.network.features(i) for i in inputs])
        fused = cloner._fuse(features, words)
    for row in range(len(frames)):
        state = policy.initial_state(1)
        for at in range(row % length, row + 1, length):
            state = state.follow(words[at : at + 1])
            part = features.select(slice(at, at + 1))
            expected, evidence = policy.model.fuse_static_points(part, state.evidence)
            state = replace(state, evidence=evidence)
        torch.testing.assert_close(fused.points[row], expected.points[0])


def test_a_checkpoint_knows_what_is_static(tmp_path: Path) -> None:
    """It is part of the model."""
    policy = remembering()
    assert load_policy(policy.save(tmp_path / "a")).model.config.points.static == (TARGET,)


def test_refuses_points_that_there_are_not() -> None:
    """The message names those that there are."""
    with pytest.raises(
        ValueError, match=r"no points \['zone'\]; the model knows: gripper, object, target"
    ):
        POINTS.with_static(("zone",))


class _NoData:
    """Demonstrations of no robot."""

    robots: dict[str, object] = {}  # noqa: RUF012
