"""One process at a time writes a run or a report."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import TextIO

from vla_runtime.main_guard import exit_without_main_guard


class FolderInUseError(OSError):
    """Another process writes this folder; nothing was changed."""


def lock_folder(folder: Path) -> TextIO:
    """Keep other processes from writing a folder, until the returned file is closed.

    The system frees the lock when this process ends, however it ends: none is ever left behind.
    The lock is this process's own, which may take it again, after an interrupted run in a notebook.

    Args:
        folder: exists; a file `.lock` is kept in it.

    Raises:
        FolderInUseError: another process has it; names that process.
        OSError: the folder cannot be written.
    """
    # In a worker that imports its parent's script the parent has the lock, and says what is wrong.
    exit_without_main_guard()
    file = (folder / ".lock").open("a+", encoding="utf-8")
    try:
        # A record lock: it belongs to the process and not, as flock's, to the open file.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return file  # a file system without locks
        with file:
            file.seek(0)
            owner = file.read().strip() or "unknown"
        raise FolderInUseError(
            f"another process writes {folder} (process id {owner}): wait until it has ended, or "
            "choose another folder"
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
