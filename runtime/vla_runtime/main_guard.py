"""Spawned processes import the script that runs; without a main guard they would run it again."""

from __future__ import annotations

import multiprocessing

NO_MAIN_GUARD = 99
"""Exit code of a process that was about to run its parent's script."""


def exit_without_main_guard() -> None:
    """End this process if it is a worker that only imports the script of its parent.

    To start processes at that moment would run the script again in each of them, without an end; to
    wait for a lock, for one that its parent holds.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(NO_MAIN_GUARD)
