"""Folders that are written all or not at all: by one process, and past what a crash has left."""

from __future__ import annotations

from pathlib import Path

import pytest
from vla_runtime.atomic_folder import hidden, new_folder, partial_folder


def test_one_process_writes_a_folder(tmp_path: Path) -> None:
    """A second writer is refused and changes nothing; the first one ends as it would have."""
    folder = tmp_path / "exported"
    with new_folder(folder) as partial:
        (partial / "graph").write_text("first")
        with pytest.raises(OSError, match="another process is writing"), new_folder(folder):
            pytest.fail("it was given the other's folder")
        assert (partial / "graph").read_text() == "first"
    assert [path.name for path in folder.iterdir()] == ["graph"]
    assert not hidden(folder, "partial").exists()


def test_who_waited_for_a_lock_does_not_empty_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process finishes between this one's look at the folder and its lock."""
    folder = tmp_path / "exported"
    hidden(folder, "partial").mkdir()
    (hidden(folder, "partial") / "graph").write_text("finished")

    def finish_first(held: int, operation: int) -> None:
        hidden(folder, "partial").rename(folder)

    monkeypatch.setattr("fcntl.flock", finish_first)
    with pytest.raises(OSError, match="another process"), partial_folder(folder):
        pytest.fail("it was given a finished folder")
    assert (folder / "graph").read_text() == "finished"


def test_what_a_crash_left_is_no_part_of_the_next_folder(tmp_path: Path) -> None:
    """Files, folders and links; what a link leads to stays."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    left = hidden(tmp_path / "exported", "partial")
    (left / "part").mkdir(parents=True)
    (left / "file").touch()
    (left / "link").symlink_to(elsewhere)
    with new_folder(tmp_path / "exported") as partial:
        assert not any(partial.iterdir())
    assert (elsewhere / "kept").exists()
    hidden(tmp_path / "other", "partial").symlink_to(elsewhere)
    with pytest.raises(OSError, match="cannot write"), new_folder(tmp_path / "other"):
        pytest.fail("it was given what the link leads to")
    assert (elsewhere / "kept").exists()
