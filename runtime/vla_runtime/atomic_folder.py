"""Files and folders that are written all or not at all, and the hashes of what is in them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def hidden(folder: Path, role: str) -> Path:
    """A hidden name beside a folder."""
    return folder.with_name(f".{folder.name}.{role}")


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or none."""
    unfinished = path.with_name(f".{path.name}.part")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty hidden folder, which gets its final name once it is on disk.

    Raises:
        FileExistsError: there is something of that name; it is never replaced.
        OSError: it cannot be written; nothing is left of it.
    """
    _refuse_existing(folder)
    with partial_folder(folder) as partial:
        yield partial
        flush(partial)
        # Again, since writing takes time: a rename would replace an empty folder in silence.
        _refuse_existing(folder)
        os.rename(partial, folder)
        # The rename itself is on disk only once the parent folder is.
        sync(folder.parent)


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty hidden folder beside `folder`, which is removed after any error.

    Raises:
        OSError: it cannot be written, or another process is writing it.
    """
    partial = hidden(folder, "partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        # No link: what it leads to is not ours to empty.
        held = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise OSError(f"cannot write {folder}: {error.strerror}") from error
    try:
        _lock(held, partial)
        try:
            # Left by a crash: it is of no use, since nothing says how far it got.
            for path in partial.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            yield partial
        # KeyboardInterrupt too: no half-written folder may stay behind.
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(held)


def _lock(held: int, partial: Path) -> None:
    """Until it is closed, which the end of a process does, too."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who had the lock may have given the folder its final name meanwhile.
        is_free = partial.exists() and os.path.samestat(os.fstat(held), partial.stat())
    except BlockingIOError:
        is_free = False
    except OSError:  # a file system without locks
        return
    if not is_free:
        raise OSError(f"cannot write {partial}: another process is writing there")


def flush(folder: Path) -> None:
    """Bring everything in a folder to the disk."""
    # Folders too: a file survives a power cut only if its directory entry does.
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync(path: Path) -> None:
    """Bring a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Path within the folder → `sha256` and `bytes` of every file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {
            "sha256": digest(path),
            "bytes": path.stat().st_size,
        }
        for path in paths
    }


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_existing(folder: Path) -> None:
    if os.path.lexists(folder):  # a link to nothing, too
        raise FileExistsError(f"{folder} exists: name a new folder")
