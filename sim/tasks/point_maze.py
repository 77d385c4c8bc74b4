"""PointMaze: a ball that is pushed through a maze to a mark.

The environment is gymnasium-robotics' own (v3). What differs: the mark stays where it is once it is
reached, and nothing terminates. The expert is ours: the shortest way through the cells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sim.camera import Camera, View
from sim.tasks.base import Episode, Task
from sim.tasks.gymnasium_task import GymnasiumState, Part
from sim.tasks.robotics_family import RoboticsFamily, Words
from vla.contract import GoalSpec

if TYPE_CHECKING:
    import gymnasium

_WORDS: Words = {
    "train": ("bring the ball to the red mark", "push the ball through the maze to the red mark"),
    "heldout": ("bring the ball through the maze to the red mark",),
}
# gymnasium-robotics' own lengths.
_LENGTHS = {"UMaze": 300, "Open": 300, "Medium": 600, "Large": 800}
_WALL = 1
Cell = tuple[int, int]


class PointMaze(RoboticsFamily):
    """One maze. An action is a force on the ball; it sees where it is and how fast it moves."""

    name = "PointMaze"
    robot = "point"
    success_key = "success"
    # Of the physics; the environment states 50 images a second.
    control_rate_hz = 100.0
    env_ids: ClassVar[Mapping[str, str]] = {name: f"PointMaze_{name}-v3" for name in _LENGTHS}
    words_of: ClassVar[Mapping[str, Words]] = dict.fromkeys(_LENGTHS, _WORDS)
    action_names = ("force_x", "force_y")
    action_units = ("100 N", "100 N")
    # A force does not say where to go, so the speed belongs to what has to be known.
    proprio_parts = (
        Part(("x", "y", "velocity_x", "velocity_y"), ("m", "m", "m/s", "m/s"), "observation"),
    )
    privileged_parts = (*proprio_parts, Part(("goal_x", "goal_y"), ("m", "m"), "desired_goal"))
    goals = GoalSpec(("x", "y"), ("goal_x", "goal_y"), 0.45)

    def __init__(self, image_size: int = 96, variant: str = ""):
        self.episode_length = _LENGTHS[variant]
        super().__init__(image_size, variant)

    def make_env(self) -> gymnasium.Env:
        """The maze, with a mark that stays."""
        import gymnasium

        return gymnasium.make(
            self.env_id,
            max_episode_steps=-1,
            disable_env_checker=True,
            continuing_task=True,
            reset_target=False,
        )

    def declare(self, state: GymnasiumState) -> None:
        """A view from above that holds the whole maze."""
        maze = state.env.unwrapped.maze  # pyright: ignore[reportAttributeAccessIssue]
        half_m = max(maze.map_length, maze.map_width) / 2 * maze.maze_size_scaling
        distance_m = 1.05 * half_m / np.tan(np.radians(state.model.vis.global_.fovy / 2))
        self.camera_list = (Camera("top", view=View((0.0, 0.0, 0.0), distance_m, 90.0, -90.0)),)

    def expert_action(self, data: GymnasiumState, episode: Episode) -> np.ndarray:
        """Towards the middle of the next cell on the shortest way, then to the mark."""
        maze = data.env.unwrapped.maze  # pyright: ignore[reportAttributeAccessIssue]
        position, velocity = np.split(data.observation["observation"], 2)
        goal = data.observation["desired_goal"]
        here, there = (tuple(maze.cell_xy_to_rowcol(xy).tolist()) for xy in (position, goal))
        way = shortest_way(maze.maze_map, here, there)
        target = maze.cell_rowcol_to_xy(np.array(way[1])) if len(way) > 1 else goal
        force = 10.0 * (target - position) - 1.0 * velocity
        return np.clip(force, -1.0, 1.0).astype(np.float32)


def shortest_way(maze: list[list[int | str]], start: Cell, end: Cell) -> list[Cell]:
    """Cells from `start` to `end`, both included; `start` alone where there is no way."""
    before: dict[Cell, Cell | None] = {start: None}
    waiting = deque([start])
    while waiting and end not in before:
        row, column = waiting.popleft()
        for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if near not in before and maze[near[0]][near[1]] != _WALL:
                before[near] = (row, column)
                waiting.append(near)
    way: list[Cell] = []
    cell: Cell | None = end if end in before else start
    while cell is not None:
        way.append(cell)
        cell = before[cell]
    return way[::-1]


TASKS: tuple[type[Task], ...] = (PointMaze,)
