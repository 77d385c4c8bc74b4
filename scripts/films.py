"""Films of evaluated episodes for the report, drawn after the fact from their actions."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from policies.evaluation.report.data import Film, PolicyResult
from policies.evaluation.report.selection import choose_episodes
from policies.rollout import Episode
from sim.film import replay, write_mp4
from sim.tasks.registry import make_task


def film(task: str, episode: Episode, size_px: int) -> Film:
    """Replay an episode's actions and draw them, each camera `size_px` a side."""
    return Film(episode, film_mp4(task, episode.seed, episode.actions, size_px))


def try_film(task: str, seed: int, size_px: int) -> None:
    """Draw and encode one frame: what would fail after an evaluation fails before it.

    Raises:
        OSError: no temporary file can be written.
        NoRendererError: nothing can be drawn on this machine.
        ValueError: films cannot have this size.
    """
    dim = make_task(task).spec.action.dim
    # No action: the initial state alone, through the same renderer and encoder.
    film_mp4(task, seed, np.zeros((0, dim), np.float32), size_px)


def add_films(
    results: Sequence[PolicyResult],
    task: str,
    per_outcome: int,
    size_px: int,
    advance: Callable[[], None],
) -> list[PolicyResult]:
    """The results with films of so many successes, and failures, of each; see `choose_episodes`."""
    chosen = choose_episodes({result.name: result.episodes for result in results}, per_outcome)
    filmed = []
    for result in results:
        films = []
        for position in chosen[result.name]:
            films.append(film(task, result.episodes.episodes[position], size_px))
            advance()
        # Results are frozen: a copy with films, the rest shared.
        filmed.append(dataclasses.replace(result, films=tuple(films)))
    return filmed


def film_mp4(task: str, seed: int, actions: np.ndarray, size_px: int, first: int = 0) -> bytes:
    """The episode `seed` under these actions, from control step `first` on, as an .mp4 file."""
    frames = replay(task, seed, actions, size_px)[first:]
    with tempfile.TemporaryDirectory() as folder:
        # The encoder writes to a path, the report embeds the bytes.
        path = Path(folder) / "film.mp4"
        write_mp4(path, frames, fps=round(make_task(task).spec.control_rate_hz))
        return path.read_bytes()
