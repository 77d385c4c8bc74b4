"""What stands still is the mean of all its sightings, until the episode or the words are others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from two_robots import ARM, WORDS, observe, tiny_policy

from policies.imitation.bc import Cloner, CloningConfig
from policies.run_folder import RunFolder
from vla.contract import ObservationBatch
from vla.model.pointer import POINTS
from vla.model.vla import VLAConfig
from vla.policy import VLAPolicy, load_policy

TARGET = POINTS.index("target")


def remembering() -> VLAPolicy:
    """For it the target stands still."""
    model = tiny_policy(ARM).model
    model.config = replace(model.config, still=("target",))
    return VLAPolicy(model, tiny_policy(ARM).embodiments)


def sight(policy: VLAPolicy, observation: ObservationBatch) -> tuple[np.ndarray, np.ndarray]:
    """All points as these pictures alone show them, and the weight of the target among them."""
    inputs = policy.processor.encode_observation(observation)
    with torch.no_grad():
        pointing, _ = policy.model.eval().point(inputs)
    return pointing.world.numpy(), 1 / (0.02**2 + pointing.spread[:, TARGET].numpy() ** 2)


def points(policy: VLAPolicy, context: torch.Tensor) -> np.ndarray:
    """What the head is told of them."""
    return policy.model.actor.points(context).numpy()


def test_the_target_is_the_weighted_mean_and_all_else_is_now() -> None:
    """Row by row, over three decisions."""
    policy = remembering()
    seen = [observe(ARM, seed=seed) for seed in range(3)]
    alone = [sight(policy, observation) for observation in seen]
    for now, observation in enumerate(seen):
        held = points(policy, policy.encode(observation))
        np.testing.assert_allclose(held[:, :TARGET], alone[now][0][:, :TARGET], atol=1e-6)
        weights = np.stack([weight for _, weight in alone[: now + 1]])
        places = np.stack([place[:, TARGET] for place, _ in alone[: now + 1]])
        mean = (weights[..., None] * places).sum(0) / weights.sum(0)[:, None]
        np.testing.assert_allclose(held[:, TARGET], mean, atol=1e-5)
    assert np.abs(mean - alone[2][0][:, TARGET]).max() > 1e-3  # it is not what it sees now


def test_a_new_episode_other_words_and_other_robots_forget() -> None:
    """Each where it happened and nowhere else; looking without deciding leaves no trace."""
    policy = remembering()
    first, second = observe(ARM, seed=0), observe(ARM, seed=1)
    alone = sight(policy, second)[0][:, TARGET]
    policy.encode(first)
    blended = points(policy, policy.encode(second, remember=False))[:, TARGET]
    assert (np.abs(blended - alone).max(1) > 1e-4).all()
    again = points(policy, policy.encode(second, remember=False))[:, TARGET]
    np.testing.assert_array_equal(again, blended)
    policy.reset([1, 77])
    second.instructions[2] = WORDS[0]
    apart = sight(policy, second)[0][:, TARGET]
    held = points(policy, policy.encode(second))[:, TARGET]
    np.testing.assert_allclose(held[1:], apart[1:], atol=1e-6)
    np.testing.assert_array_equal(held[0], blended[0])
    fewer = observe(ARM, count=2)
    np.testing.assert_allclose(
        points(policy, policy.encode(fewer))[:, TARGET],
        sight(policy, fewer)[0][:, TARGET],
        atol=1e-6,
    )


def test_acting_remembers_as_encoding_does() -> None:
    """A chunk is decided in the context that `encode` gives, and `reset` forgets all rows."""
    acting, encoding = remembering(), remembering()
    encoding.model.load_state_dict(acting.model.state_dict())
    first = observe(ARM, seed=0)
    begun = acting.act(first)
    encoding.encode(first)
    second = observe(ARM, seed=1)
    chunk = acting.act(second)
    decided = encoding.model.actor.act(encoding.encode(second))
    torch.testing.assert_close(chunk, encoding.processor.decode_actions(decided))
    acting.reset()
    with torch.inference_mode():  # in which LeRobot plays, but does not reset
        torch.testing.assert_close(acting.act(first), begun)
    acting.reset()
    torch.testing.assert_close(acting.act(first), begun)


def test_cloning_sees_a_frame_as_the_policy_will(tmp_path: Path) -> None:
    """Contexts of demonstrations equal those of a policy that decides a chunk at a time."""
    policy = remembering()
    horizon = policy.horizon
    frames = [observe(ARM, count=1, seed=seed) for seed in range(9)]
    words = [*["one"] * 4, *["two"] * 5]  # told something else on the way
    config = CloningConfig()
    cloner = Cloner(policy, _NoData(), config, RunFolder(tmp_path, config))  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        inputs = [policy.processor.encode_observation(frame) for frame in frames]
        context = torch.cat([policy.model.eval().encode(i) for i in inputs])
        held = cloner._hold(context, words)
    for row in range(len(frames)):
        alone = policy.model.sightings(1)
        for at in range(row % horizon, row + 1, horizon):
            seen = alone.of([0], words[at : at + 1])
            expected, seen = policy.model.hold(context[at][None], seen)
            alone.keep([0], seen)
        np.testing.assert_allclose(
            points(policy, held[row][None]), points(policy, expected), atol=1e-5
        )


def test_a_checkpoint_knows_what_stands_still(tmp_path: Path) -> None:
    """It is part of the model; one of before says that nothing does."""
    policy = remembering()
    assert load_policy(policy.save(tmp_path / "a")).model.config.still == ("target",)
    described = policy.model.to_dict()
    del described["vla"]["still"]
    assert type(policy.model).from_dict(described).config.still == ()


def test_refuses_points_that_there_are_not() -> None:
    """The message names those that there are."""
    with pytest.raises(
        ValueError, match=r"no points \['zone'\]; there are gripper, object, target"
    ):
        VLAConfig(still=("zone",))


class _NoData:
    """Demonstrations of no robot."""

    robots: dict[str, object] = {}  # noqa: RUF012
