"""How far a command is: a bar that also prints what was measured, and the stages of a long run."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Keys of the trainers' metrics; a trainer has some of them, and all others go to its log alone.
_SHOWN = (
    "loss/train",
    "accuracy/heldout",
    "dpo/accuracy_heldout",
    "success/end",
    "success/ever",
    "success/proxy",
    "collect/success_end",
    "policy/kl",
)


class Bar:
    """Shows how far a training is; a context manager.

    Args:
        label: what runs.
        total: steps until the end.
    """

    def __init__(self, label: str, total: int):
        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns)
        self._task = self._progress.add_task(label, total=total)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Move to `step` and print the main figures."""
        self._progress.update(self._task, completed=step)
        shown = "  ".join(f"{name} {values[name]:.3g}" for name in _SHOWN if name in values)
        # Through the bar, which `print` would overwrite.
        self._progress.print(f"{step:>6}  {shown}")
        if values.get("reward/alarm"):
            self._progress.print(
                "ALARM  the reward still rises while success has fallen: it is being hacked; the "
                "best checkpoint is kept"
            )


def stages() -> Callable[[str], None]:
    """A function that prints the stage which begins, after the seconds since now."""
    started = time.perf_counter()
    return lambda stage: print(f"\n[{time.perf_counter() - started:5.0f} s] {stage}", flush=True)
