"""The demo goes on where it stopped, and shows the policy that it ends with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import demo
from vla.checkpoint.folder import fingerprint
from vla.checkpoint.initialisation import GROUNDED


@pytest.mark.parametrize("is_same", [True, False])
def test_an_export_of_an_earlier_policy_is_made_anew(
    is_same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after more iterations; one of the same policy stays, and so does its run."""
    source = {"checkpoint": fingerprint(GROUNDED) if is_same else "that of fewer iterations"}
    described = (None, SimpleNamespace(source=source))
    monkeypatch.setattr(demo, "read_exported", lambda folder: described)
    exported, run, refined = (tmp_path / name for name in ("exported", "run", "refined"))
    demo._drop_older(exported, run, refined)  # nothing is there yet
    for folder in (exported, run, refined):
        folder.mkdir()
    (refined / "best").symlink_to(GROUNDED)
    demo._drop_older(exported, run, refined)
    assert [folder.exists() for folder in (exported, run)] == [is_same, is_same]
