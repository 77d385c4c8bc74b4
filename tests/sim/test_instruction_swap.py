"""Swapped instructions: the same scene, another goal, and both of them judged."""

from __future__ import annotations

import numpy as np
import pytest

from policies.evaluation.baselines import ExpertPolicy
from policies.rollout import rollout
from sim.instruction_swap import original_success, swap_instruction
from sim.tasks.registry import make_task
from sim.tasks.tabletop import Tabletop
from sim.vector import CpuVecEnv

SEEDS = range(1_000_000, 1_000_006)


@pytest.mark.parametrize("phrasing", ["train", "heldout"])
def test_another_goal_in_the_same_scene(phrasing):
    """In words of this phrasing, not reached at the beginning, the same one every time."""
    task = make_task("Tabletop")
    data = task.make_data()
    templates = [t.split("{")[0] for t in task.templates[phrasing]]
    for seed in SEEDS:
        episode = task.reset(data, seed, phrasing)
        scene = data.qpos.copy()
        swapped = swap_instruction(task, data, episode, phrasing)
        assert swapped.labels != episode.labels
        assert swapped.instruction != episode.instruction
        assert any(swapped.instruction.startswith(start) for start in templates)
        assert not task.is_success(data, swapped)
        np.testing.assert_array_equal(data.qpos, scene)
        position = task.points(data, swapped)["object"]
        np.testing.assert_array_equal(
            position, task.points(data, swapped)[swapped.labels["object"]]
        )
        again = swap_instruction(task, data, episode, phrasing)
        assert again.instruction == swapped.instruction
        np.testing.assert_array_equal(again.goal, swapped.goal)


class Sparse(Tabletop):
    """Scenes that hold no green block, whatever other seeds ask for."""

    def points(self, data, episode):
        """Without the block that is not there."""
        points = super().points(data, episode)
        return {name: point for name, point in points.items() if "green" not in name}


def test_what_the_scene_does_not_hold_is_not_asked_for():
    """The next seed that asks for what is there is taken instead."""
    task, plain = Sparse(), Tabletop()
    data = task.make_data()
    skipped = 0
    for seed in range(1_000_000, 1_000_020):
        episode = task.reset(data, seed)
        swapped = swap_instruction(task, data, episode)
        assert "green block" not in swapped.labels.values()
        skipped += "green block" in swap_instruction(plain, data, episode).labels.values()
    assert skipped > 3, "some would have been told to move it"


def test_a_task_with_one_goal_has_nothing_to_swap():
    """Its words carry no information."""
    task = make_task("FetchPush")
    data = task.make_data()
    with pytest.raises(ValueError, match="FetchPush: no other goal"):
        swap_instruction(task, data, task.reset(data, 0))
    with pytest.raises(ValueError, match="every scene has one goal"):
        task.with_goal(data, task.reset(data, 0), {"object": "red block"})


def test_the_expert_obeys_and_the_original_goal_is_judged_too():
    """In the same episodes: what was told is done, and what the scene's seed asks for is not."""
    played = {}
    for swap in (False, True):
        with CpuVecEnv("Tabletop", 3, 1, render=False, swap_instructions=swap) as env:
            expert = ExpertPolicy(env.expert_actions, env.spec)
            played[swap] = rollout(env, expert, SEEDS).episodes
    task = make_task("Tabletop")
    for episode in played[False]:
        replayed = original_success(task, episode.seed, episode.actions)
        np.testing.assert_array_equal(replayed, episode.success)
    assert sum(episode.success_at_end for episode in played[True]) >= 5
    original = [original_success(task, e.seed, e.actions)[-1] for e in played[True]]
    assert sum(original) <= 2
