"""The published table of Meta-World's suites, by hand, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.metaworld import TableConfig, main, outcomes, table


def episode(first: int | None, at_end: bool, length: int = 500) -> dict[str, Any]:
    """As a report has it."""
    return {"first_success_step": first, "success_at_end": at_end, "length": length}


def test_the_table_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two easy tasks and a hard one: success by horizon, group and task."""
    goals = ["reach, easy", "push, hard", "reach, easy", "drawer-open, easy"]
    played = [episode(100, True), episode(101, False), episode(None, False), episode(401, True)]
    file = tmp_path / "report.json"
    file.write_text(
        json.dumps({"policies": [{"name": "clone", "episodes": played}], "goals": goals})
    )
    assert main(TableConfig(file)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("clone:")
    assert "once within 100 | once within 400 | once within 500 | at the end" in printed
    assert "| reach | easy | 50.0 | 50.0 | 50.0 | 50.0 |" in printed
    assert "| push | hard | 0.0 | 100.0 | 100.0 | 0.0 |" in printed
    assert "| mean of the group | easy | 25.0 | 25.0 | 75.0 | 75.0 |" in printed
    assert "very hard" not in printed
    assert "| macro | all | 12.5 | 62.5 | 87.5 | 37.5 |" in printed
    assert "| tasks | all | 16.7 | 50.0 | 83.3 | 50.0 |" in printed
    assert "4 episodes of 3 tasks" in printed


def test_other_reports_are_refused() -> None:
    """Of other tasks, of a shorter horizon, of nothing."""
    with pytest.raises(ValueError, match="not of a suite of Meta-World: an episode is 'red block'"):
        outcomes([episode(1, True)], ["red block"])
    with pytest.raises(ValueError, match="reach has 400 control steps: evaluate without @STEPS"):
        outcomes([episode(1, True, length=400)], ["reach, easy"])
    with pytest.raises(ValueError, match="no episodes"):
        table(outcomes([], []))
