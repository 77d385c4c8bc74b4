"""A run's checkpoints: resume what is the same run, save everything, keep the best.

A run is resumed by calling its command again. Before anything is written, the settings it was
started with are compared with those of now, so that weights never meet another head, other
statistics or another schedule in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from policies.optimisation import NotFiniteError
from policies.run_folder import RunFolder, plain
from vla.checkpoint.folder import latest_complete, load_training_state
from vla.checkpoint.ledger import Ledger


class ResumeError(ValueError):
    """A run folder holds a run with other settings; nothing was written."""


class DivergedError(ArithmeticError):
    """A training computed NaN or infinity; the message names the step and the last checkpoint."""


class Checkpointed(Protocol):
    """What is saved: weights, and all that decides what they mean."""

    ledger: Ledger
    """What was spent on these weights."""

    def describe(self) -> dict[str, Any]:
        """Architecture, contracts and statistics, as plain data."""
        ...

    def save(
        self,
        folder: Path,
        training_state: dict[str, Any] | None = None,
        command: str | None = None,
    ) -> Path:
        """Write a checkpoint."""
        ...

    def load_weights(self, folder: Path) -> None:
        """Take the weights of a checkpoint of the same description."""
        ...


class Checkpoints:
    """Checkpoints `step_<n>`, with all that an exact resume needs, and `best` of one run.

    Args:
        folder: where they are written.
        policy: what is trained.

    Attributes:
        best_score: highest score that was offered so far.
    """

    def __init__(self, folder: RunFolder, policy: Checkpointed):
        self._folder, self._policy = folder, policy
        self._settings: dict[str, Any] = {}
        self.best_score = -math.inf

    @property
    def best(self) -> Path:
        """Where the best checkpoint is written."""
        return self._folder.path / "best"

    def resume(self, settings: Mapping[str, Any], total: str) -> dict[str, Any] | None:
        """Open the run folder; take the newest complete checkpoint's weights and random states.

        Args:
            settings: what decides the result beside the policy and the folder's `origin`, in
                dataclasses or plain data.
            total: which setting says how long to train, by its path such as "training.updates"; the
                only one that may differ.

        Returns:
            The trainer state that `save` was given at that step; None without a checkpoint.

        Raises:
            ResumeError: the folder's run has other settings, or has trained for longer already;
                lists the differences, and nothing was written.
        """
        # Described now and not when the trainer was made: a trainer may still change the model's
        # configuration, such as which points are static.
        every = {"origin": self._folder.origin, "policy": self._policy.describe(), **settings}
        self._settings = {name: plain(part) for name, part in every.items()}
        newest = latest_complete(self._folder.path)
        # The state alone: weights are read only once it is clear that they belong to this run.
        saved = None if newest is None else load_training_state(newest)
        if newest is not None and (saved is None or "settings" not in saved):
            raise ResumeError(
                f"{newest} was written by another program or an earlier version, which did not "
                "record the settings that resuming compares; nothing was written. Train into "
                "another folder; the checkpoint can still be evaluated and started from"
            )
        # A checkpoint and its settings are one atomic folder; `run.json` speaks for runs that were
        # interrupted before their first one.
        theirs = self._folder.settings() if saved is None else saved["settings"]
        # None is a new folder: a checkpoint without settings was refused above.
        if theirs is not None:
            self._compare(theirs, total, 0 if saved is None else saved["step"])
        # From here on something is written.
        self._folder.open(self._settings)
        if newest is None or saved is None:
            return None
        # Weights first, random numbers last: whatever loading draws must not count.
        self._policy.load_weights(newest)
        self._policy.ledger.restore(saved["ledger"])
        self.best_score = saved["best_score"]
        _restore_random_state(saved["random"])
        return saved["trainer"]

    def _compare(self, theirs: Mapping[str, Any], total: str, step: int) -> None:
        lines = differences(theirs, self._settings, total)
        if (steps := _at(self._settings, total)) < step:
            lines.append(f"{total}: {step} are done in the run, {steps} now")
        if lines:
            listed = "\n  ".join(lines)
            raise ResumeError(
                f"{self._folder.path} holds a run with other settings; nothing was written. Resume "
                f"it with its own settings, or train into another folder:\n  {listed}"
            )

    def save(self, step: int, trainer: dict[str, Any]) -> Path:
        """Write `step_<n>`.

        Args:
            step: of the run.
            trainer: the trainer's own state: counters, optimizers, generators.
        """
        state = {
            # In the checkpoint itself, so that it can be compared wherever it is moved to.
            "settings": self._settings,
            "step": step,
            "best_score": self.best_score,
            "ledger": self._policy.ledger.amounts,
            "random": _random_state(),
            "trainer": trainer,
        }
        folder = self._folder.path / f"step_{step:06d}"
        return self._policy.save(folder, state, self._folder.command)

    def offer_best(self, score: float) -> bool:
        """Write `best` if nothing has scored higher; ties go to the later one.

        Raises:
            NotFiniteError: the score is NaN, which no comparison can rank.
        """
        # `score < best` is False for NaN, so that a policy of NaN would become the best one.
        if math.isnan(score):
            raise NotFiniteError("the score that chooses the best checkpoint is nan")
        if score < self.best_score:
            return False
        self.best_score = score
        # Without training state: `best` is evaluated and started from, never resumed.
        self._policy.save(self.best, None, self._folder.command)
        return True

    @contextmanager
    def stop_on_nan(self, step: int) -> Iterator[None]:
        """Turn what is not finite into an error that names the step and the last checkpoint.

        Raises:
            DivergedError: in the place of `NotFiniteError`.
        """
        try:
            yield
        except NotFiniteError as error:
            # Named in the message: hours of training before the divergence are not lost.
            newest = latest_complete(self._folder.path)
            last = "none was written yet" if newest is None else str(newest)
            raise DivergedError(
                f"training diverged at step {step}: {error}. The last good checkpoint: {last}. "
                "Try a smaller learning rate in another folder"
            ) from error


def describe_seeds(seeds: Sequence[int] | None) -> str:
    """Initial states that choose a checkpoint, for the settings of a run."""
    if seeds is None:
        return "no simulation"
    return f"{len(seeds)} states, seeds {seeds[0]} to {seeds[-1]}"


def differences(theirs: Any, ours: Any, free: str, path: str = "") -> list[str]:
    """Every leaf that differs, as `path: theirs in the run, ours now`; `free` may."""
    if path == free:
        return []
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        return [
            line
            for key in dict.fromkeys([*theirs, *ours])
            for line in differences(
                theirs.get(key, "nothing"),
                ours.get(key, "nothing"),
                free,
                f"{path}.{key}" if path else key,
            )
        ]
    return [] if theirs == ours else [f"{path}: {_short(theirs)} in the run, {_short(ours)} now"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _at(settings: Mapping[str, Any], path: str) -> Any:
    value: Any = settings
    for key in path.split("."):
        value = value[key]
    return value


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    # Dropout and heads that draw noise use the generator of the device they compute on.
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
