"""A GPU that is not there is refused by every command before it reads, draws or plays anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts import cli

COMMANDS = {
    "pretrain": ("--data", "nowhere"),
    "refine": ("--clone", "nowhere"),
    "ground": ("--scenes", "nowhere"),
    "dagger": ("--data", "nowhere"),
    "compare": ("--policies", "nowhere"),
    "dpo": ("--comparisons", "nowhere"),
    "learners": ("--clones", "nowhere"),
    "evaluate": ("--policies", "nowhere"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_gpu_is_said_first(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line, and before data that are missing too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert cli.main([name, *COMMANDS[name], "--device", "cuda"]) == cli.USAGE_EXIT
    assert "torch finds no CUDA device" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
