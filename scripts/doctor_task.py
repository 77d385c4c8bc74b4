"""`vla doctor --task`: is this task fit to be recorded, learned and evaluated?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.doctor import Check
from sim.render import NoRendererError
from sim.tasks.base import Episode, Renderer, Task, TaskDeclarationError
from sim.tasks.declaration import require_action
from sim.tasks.registry import make_task

_SEEDS = (0, 1, 2)
_STEPS = 10
_EXPERT_EPISODES = 10
_IMAGE_SIZE = 96
_MAKE_ONE = "define it as docs/tasks/gymnasium.md shows"


@dataclass(frozen=True)
class Seen:
    """What a few steps from one seed led to: name → numbers, images included."""

    arrays: Mapping[str, np.ndarray]

    def differences(self, other: Seen) -> list[str]:
        """Names of what is not equal to the last bit."""
        return [n for n, one in self.arrays.items() if not np.array_equal(one, other.arrays[n])]


def check_task(name: str) -> Iterator[Check]:
    """All checks of one task, each made when it is asked for.

    Raises:
        ValueError: the task cannot be built; the message names the mend.
    """
    began = time.perf_counter()
    task = make_task(name, _IMAGE_SIZE)
    data = task.make_data()
    yield Check("task", f"{name}, built in {time.perf_counter() - began:.1f} s")
    yield from _check_contract(task)
    cameras = [camera.name for camera in task.spec.cameras]
    try:
        renderer = task.make_renderer(cameras, _IMAGE_SIZE)
    except NoRendererError as error:
        yield Check("images", str(error), "see vla doctor")
        renderer = None
    yield from _check_seeds(task, data, renderer)
    yield from _check_limits(task, data)
    yield _check_end(task, data)
    if renderer is not None:
        yield from _check_images(task, data, renderer)
        renderer.close()
    yield from _check_success(task, data)
    task.close(data)


def _check_contract(task: Task) -> Iterator[Check]:
    spec = task.spec
    actions = ", ".join(
        f"{name} {low:g} to {high:g}" + (f" ({unit})" if unit else "")
        for name, unit, low, high in zip(
            spec.action.names, spec.action.units, spec.action.low, spec.action.high, strict=True
        )
    )
    yield Check("actions", f"{spec.action.dim}: {actions}")
    yield Check("proprioception", f"{spec.proprio.dim}: {', '.join(spec.proprio.names)}")
    yield Check("cameras", ", ".join(camera.name for camera in spec.cameras) or "none")
    length_s = task.episode_length / spec.control_rate_hz
    yield Check(
        "episode", f"{task.episode_length} steps at {spec.control_rate_hz:g} Hz, {length_s:.1f} s"
    )
    count = len(task.privileged_names)
    yield Check("privileged state", f"{count} numbers, for critics alone")


def _check_seeds(task: Task, data: Any, renderer: Renderer | None) -> Iterator[Check]:
    first = {seed: _play(task, data, seed, renderer) for seed in _SEEDS}
    again = {seed: _play(task, data, seed, renderer) for seed in reversed(_SEEDS)}
    another = task.make_data()
    other = _play(task, another, _SEEDS[0], renderer)
    task.close(another)
    differing = {name for seed in _SEEDS for name in first[seed].differences(again[seed])}
    differing |= set(first[_SEEDS[0]].differences(other))
    fix = (
        "make reset(seed=...) set all that an episode depends on: every random number from "
        "self.np_random, and nothing kept from the episode before"
    )
    finding = "an equal seed is an equal episode, to the last bit"
    if differing:
        yield Check("seeding", f"an equal seed gives other {sorted(differing)}", fix)
    else:
        yield Check("seeding", finding)
    starts = [_start(task, data, seed) for seed in range(10)]
    if all(np.array_equal(start, starts[0]) for start in starts):
        yield Check(
            "initial states",
            "ten seeds begin alike",
            "draw the initial state or the goal in reset(seed=...), or a policy can learn the one "
            "sequence of actions by heart",
            essential=False,
        )
    else:
        yield Check("initial states", "differ between seeds")


def _start(task: Task, data: Any, seed: int) -> np.ndarray:
    episode = task.reset(data, seed)
    return np.concatenate([task.proprio(data), task.privileged(data, episode)])


def _play(task: Task, data: Any, seed: int, renderer: Renderer | None) -> Seen:
    episode = task.reset(data, seed)
    limits = task.spec.action
    rng = np.random.default_rng(seed)
    images: list[dict[str, np.ndarray]] = []
    for _ in range(_STEPS):
        images.append(_draw(task, data, episode, renderer))
        task.step(data, episode, rng.uniform(limits.low, limits.high).astype(np.float32))
        if task.is_terminated(data, episode):
            break
    images.append(_draw(task, data, episode, renderer))
    state = {"proprioception": task.proprio(data), "privileged": task.privileged(data, episode)}
    return Seen(
        state | {f"image {name}": np.stack([i[name] for i in images]) for name in images[0]}
    )


def _draw(
    task: Task, data: Any, episode: Episode, renderer: Renderer | None
) -> dict[str, np.ndarray]:
    if renderer is None:
        return {}
    task.place_markers(data, episode)
    return renderer.images(data)


def _check_limits(task: Task, data: Any) -> Iterator[Check]:
    for label, ends in (("lowest", task.spec.action.low), ("highest", task.spec.action.high)):
        episode = task.reset(data, _SEEDS[0])
        action = np.array(ends, np.float32)
        for _ in range(min(_STEPS, task.episode_length)):
            task.step(data, episode, action)
            if task.is_terminated(data, episode):
                break
        numbers = np.concatenate([task.proprio(data), task.privileged(data, episode)])
        if not np.isfinite(numbers).all():
            names = (*task.spec.proprio.names, *task.privileged_names)
            bad = [n for n, number in zip(names, numbers, strict=True) if not np.isfinite(number)]
            yield Check(
                "limits",
                f"{_STEPS} times the {label} action leads to {bad} that are not finite",
                "declare narrower action_limits, or mend the simulation",
            )
            return
    yield Check("limits", "the lowest and the highest action are survived")


def _check_end(task: Task, data: Any) -> Check:
    """Play to the end: an environment may end an episode earlier than was declared.

    Raises:
        ValueError: it truncates one; the message names the mend.
    """
    episode, limits = task.reset(data, _SEEDS[0]), task.spec.action
    rng = np.random.default_rng(_SEEDS[0])
    while episode.steps < task.episode_length and not task.is_terminated(data, episode):
        task.step(data, episode, rng.uniform(limits.low, limits.high).astype(np.float32))
    how = "terminated" if task.is_terminated(data, episode) else "played to its end"
    return Check("random actions", f"an episode is {how} after {episode.steps} steps")


def _check_images(task: Task, data: Any, renderer: Renderer) -> Iterator[Check]:
    seen = _play(task, data, _SEEDS[0], renderer)
    moved = False
    for camera in task.spec.cameras:
        images = seen.arrays[f"image {camera.name}"]
        spread = float(images[0].std())
        moved |= not np.array_equal(images[0], images[-1])
        if spread < 1.0:
            fix = "another view, or a light: the image is of one colour"
            yield Check(f"camera {camera.name}", f"shows nothing (spread {spread:.1f})", fix)
        else:
            yield Check(f"camera {camera.name}", f"spread of its pixels {spread:.0f} of 255")
    if not moved:
        fix = "point a camera at the robot, or render() the present state"
        yield Check("cameras", "no image changes while the robot moves", fix)
    episode, count = task.reset(data, _SEEDS[0]), 20
    began = time.perf_counter()
    for _ in range(count):
        _draw(task, data, episode, renderer)
    each_ms = 1000 * (time.perf_counter() - began) / count
    yield Check("drawing", f"{each_ms:.1f} ms a step for all cameras")


def _check_success(task: Task, data: Any) -> Iterator[Check]:
    solved = [s for s in range(10) if task.is_success(data, task.reset(data, s))]
    if solved:
        yield Check(
            "success at the start",
            f"holds before the first action for seeds {solved}",
            "draw other initial states, or a policy that stands still succeeds",
            essential=False,
        )
    # Raises where success is nowhere, before an expert is asked for.
    episode = task.reset(data, _SEEDS[0])
    task.step(data, episode, np.array(task.spec.action.low, np.float32))
    task.is_success(data, episode)
    if not task.has_expert():
        finding = "there is no expert, so nobody knows whether it can be reached"
        fix = f"an expert_action, if you can write one ({_MAKE_ONE}); else bring demonstrations"
        yield Check("success", finding, fix, essential=False)
        return
    began, steps, first, at_end = time.perf_counter(), 0, [], 0
    for seed in range(_EXPERT_EPISODES):
        try:
            reached, held, played = _expert_episode(task, data, seed)
        except TaskDeclarationError as error:
            yield Check("success", f"{error}, in the episode of seed {seed}", "mend expert_action")
            return
        steps += played
        at_end += held
        first += [reached] if reached else []
    rate = steps / (time.perf_counter() - began)
    finding = f"the expert reaches it in {len(first)} of {_EXPERT_EPISODES} episodes"
    if not first:
        fix = (
            "mend expert_action, or is_success, or give an episode more than "
            f"{task.episode_length} steps (episode_length)"
        )
        yield Check("success", finding, fix)
        return
    finding += f" after {np.median(first):.0f} steps (median), and holds it to the end in {at_end}"
    few = len(first) < _EXPERT_EPISODES // 2
    fix = "an expert that succeeds more often: vla collect drops its failures" if few else ""
    yield Check("success", finding, fix, essential=False)
    yield Check("speed", f"{rate:.0f} control steps a second on one core, without images")


def _expert_episode(task: Task, data: Any, seed: int) -> tuple[int | None, bool, int]:
    """The step after which success first held, whether it held at the end, and all steps."""
    episode = task.reset(data, seed)
    limits, first, holds = task.spec.action, None, False
    while episode.steps < task.episode_length and not task.is_terminated(data, episode):
        action = require_action(task, task.expert_action(data, episode))
        action = np.clip(action, limits.low, limits.high)
        task.step(data, episode, action.astype(np.float32))
        holds = task.is_success(data, episode)
        if holds and first is None:
            first = episode.steps
    return first, holds, episode.steps
