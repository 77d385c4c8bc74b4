"""The replay buffer: n-step returns, ends, hindsight goals and demonstrations, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policies.reinforcement.hindsight import Hindsight
from policies.reinforcement.replay import Replay, ReplayDims
from vla.contract import GoalSpec
from vla.model.features import Features

NAMES = ("x", "goal")
GOALS = GoalSpec(("x",), ("goal",), 0.5)


def features(*states: tuple[float, float]) -> Features:
    """Of states (x, goal)."""
    return Features.of_vector(torch.tensor(states), 1)


def make(
    n_step: int = 1, episodes: int = 4, demonstrations: int = 0, share: float | None = None
) -> Replay:
    """A buffer of episodes of three macro-steps."""
    dims = ReplayDims(episodes, demonstrations, length=3, chunk_length=1, action=1)
    hindsight = None if share is None else Hindsight(GOALS, NAMES, share)
    return Replay(dims, features((0.0, 0.0)), None, n_step, hindsight)


def play(
    replay: Replay,
    rewards: list[float],
    discounts: list[float],
    x: float = 0.0,
    goal: float = 9.0,
    demonstration: bool = False,
) -> Tensor:
    """Store one episode that moves by 1 in each step; its slot."""
    slot = replay.begin_demonstrations(1) if demonstration else replay.begin(1)
    for step, (reward, discount) in enumerate(zip(rewards, discounts, strict=True)):
        at = torch.tensor([step])
        replay.observe(slot, at, features((x + step, goal)), None)
        action = torch.full((1, 1, 1), float(step))
        replay.step(slot, at, action, torch.tensor([reward]), torch.tensor([discount]))
    replay.observe(slot, torch.tensor([len(rewards)]), features((x + len(rewards), goal)), None)
    return slot


def test_a_return_of_two_steps_by_hand() -> None:
    """1 + 0.5 * 2 and a value discounted by 0.5 * 0.5; shorter where the episode ends."""
    replay = make(n_step=2)
    slot = play(replay, [1.0, 2.0, 4.0], [0.5, 0.5, 0.5])
    batch = replay.read(slot.expand(3), torch.arange(3), 2)
    assert batch.reward.tolist() == [2.0, 4.0, 4.0]
    assert batch.discount.tolist() == [0.25, 0.25, 0.5]
    assert batch.features.proprio[:, 0].tolist() == [0.0, 1.0, 2.0]
    assert batch.next_features.proprio[:, 0].tolist() == [2.0, 3.0, 3.0]
    assert batch.action.flatten().tolist() == [0.0, 1.0, 2.0]


def test_a_termination_has_no_value_behind_it_and_a_time_limit_has() -> None:
    """The discount that was stored with the last step decides, through all returns over it."""
    replay = make(n_step=3)
    slots = [play(replay, [1.0, 1.0], [0.5, last]) for last in (0.0, 0.5)]
    batch = replay.read(torch.cat(slots), torch.zeros(2, dtype=torch.int64), 3)
    assert batch.reward.tolist() == [1.5, 1.5]
    assert batch.discount.tolist() == [0.0, 0.25]


def test_a_step_can_be_sampled_once_its_following_observation_is_known() -> None:
    """Not before: half of it would be that of an older episode."""
    replay = make()
    slot = replay.begin(1)
    at = torch.tensor([0])
    replay.observe(slot, at, features((5.0, 0.0)), None)
    replay.step(slot, at, torch.zeros(1, 1, 1), torch.ones(1), torch.ones(1))
    assert len(replay) == 0
    replay.observe(slot, at + 1, features((6.0, 0.0)), None)
    assert len(replay) == 1
    (batch,) = replay.sample(1, 4, torch.Generator().manual_seed(0))
    assert batch.features.proprio[:, 0].tolist() == [5.0] * 4
    assert batch.next_features.proprio[:, 0].tolist() == [6.0] * 4


def test_every_step_is_drawn_equally_often() -> None:
    """Also from episodes of different lengths."""
    replay = make()
    play(replay, [0.0], [1.0], x=10.0)
    play(replay, [0.0] * 3, [1.0] * 3, x=20.0)
    (batch,) = replay.sample(1, 8000, torch.Generator().manual_seed(0))
    where, counts = batch.features.proprio[:, 0].unique(return_counts=True)
    assert where.tolist() == [10.0, 20.0, 21.0, 22.0]
    assert (counts - 2000).abs().max() < 200


def test_the_oldest_episode_is_overwritten_and_demonstrations_stay() -> None:
    """Half of every batch is theirs."""
    replay = make(episodes=2, demonstrations=1)
    play(replay, [0.0] * 3, [1.0] * 3, x=100.0, demonstration=True)
    for x in (10.0, 20.0, 30.0):
        play(replay, [0.0], [1.0], x=x)
    assert len(replay) == 2
    for batch in replay.sample(3, 40, torch.Generator().manual_seed(0)):
        x = batch.features.proprio[:, 0]
        assert int((x >= 100).sum()) == 20
        assert set(x[x < 100].tolist()) == {20.0, 30.0}
    episode, at = replay.newest(1)
    assert replay.read(episode, at, 1).features.proprio[:, 0].tolist() == [30.0]
    with pytest.raises(ValueError, match="room for 1 demonstrations only"):
        replay.begin_demonstrations(1)


def test_hindsight_goals_were_reached_later_in_the_same_episode() -> None:
    """Goal and reward change together, in what was seen before and after, and nothing else."""
    replay = make(share=1.0)
    play(replay, [0.0] * 3, [0.5] * 3, x=0.0)
    play(replay, [0.0] * 3, [0.5] * 3, x=100.0)
    (batch,) = replay.sample(1, 2000, torch.Generator().manual_seed(0))
    x, goal = batch.features.proprio.unbind(1)
    after, same_goal = batch.next_features.proprio.unbind(1)
    assert torch.equal(goal, same_goal)
    assert torch.equal(after, x + 1)
    # After the step, at the latest at the end of its own episode.
    last = torch.where(x < 50, 3.0, 103.0)
    assert bool(((goal >= after) & (goal <= last)).all())
    # From the first step each of the three later states is as likely.
    counts = goal[x == 0].unique(return_counts=True)[1]
    assert len(counts) == 3
    assert float(counts.max() / counts.min()) < 1.4
    assert torch.equal(batch.reward, (goal == after).float())
    assert (batch.discount == 0.5).all()
    # What is stored is as it was.
    assert (replay.read(*replay.newest(2), 1).features.proprio[:, 1] == 9.0).all()


def test_a_share_of_goals_is_kept_with_its_reward() -> None:
    """A quarter is new; a reward of 7 is none that hindsight gives."""
    replay = make(share=0.25)
    play(replay, [7.0] * 3, [0.5] * 3)
    (batch,) = replay.sample(1, 4000, torch.Generator().manual_seed(0))
    kept = batch.features.proprio[:, 1] == 9.0
    assert abs(float(kept.float().mean()) - 0.75) < 0.03
    assert (batch.reward[kept] == 7.0).all()
    assert batch.reward[~kept].max() <= 1.0


def test_hindsight_reaches_through_returns_of_several_steps() -> None:
    """Every reward on the way is that of the new goal: 0, 1 or 1 with a step later."""
    replay = make(n_step=2, share=1.0)
    slot = play(replay, [0.0] * 3, [0.5] * 3)
    first = torch.zeros(300, dtype=torch.int64)
    batch = replay.read(slot.expand(300), first, 2, torch.Generator().manual_seed(0))
    goal = batch.features.proprio[:, 1]
    by_goal = {1.0: 1.0, 2.0: 0.5, 3.0: 0.0}  # reached in the first step, the second, neither
    assert batch.reward.tolist() == [by_goal[g] for g in goal.tolist()]


def test_what_was_stored_survives_a_checkpoint() -> None:
    """Batches of equal generators are equal, also after the ring has turned."""
    ours, theirs = make(episodes=2, demonstrations=1), make(episodes=2, demonstrations=1)
    play(ours, [1.0], [0.5], x=50.0, demonstration=True)
    for x in (10.0, 20.0, 30.0):
        play(ours, [1.0, 2.0], [0.5, 0.5], x=x)
    theirs.load_state_dict(ours.state_dict())
    for replay in (ours, theirs):
        play(replay, [3.0], [0.5], x=40.0)
    one, other = (r.sample(1, 50, torch.Generator().manual_seed(0))[0] for r in (ours, theirs))
    assert torch.equal(one.features.proprio, other.features.proprio)
    assert torch.equal(one.reward, other.reward)
    assert 40.0 in one.features.proprio[:, 0].tolist()


@pytest.mark.parametrize(
    ("achieved", "goal", "tolerance"), [((), (), 0.1), (("x",), (), 0.1), (("x",), ("goal",), 0.0)]
)
def test_goals_that_cannot_be_reached_are_refused(
    achieved: tuple[str, ...], goal: tuple[str, ...], tolerance: float
) -> None:
    """None, unequal numbers, no distance."""
    with pytest.raises(ValueError, match="as many achieved as goal dimensions"):
        GoalSpec(achieved, goal, tolerance)


def test_goals_of_another_state_are_refused() -> None:
    """With the dimensions there are."""
    with pytest.raises(ValueError, match=r"no dimensions \['goal'\] in the state; it has x, y"):
        Hindsight(GOALS, ("x", "y"), 0.8)
