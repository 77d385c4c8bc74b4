"""The task that docs/tasks/gymnasium.md works through, by the commands that it names."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "tasks" / "gymnasium.md"


@pytest.fixture
def worked_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file of the documentation in the folder that a command is called from."""
    [text] = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "my_reacher.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    # Restored afterwards: `find_task` adds the present folder.
    monkeypatch.setattr(sys, "path", [*sys.path])
    return "my_reacher:MyReacher"


@pytest.mark.render
def test_the_worked_example_is_sound_and_collected(
    worked_example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the commands that the documentation names."""
    from scripts import cli

    assert cli.main(["doctor", "--task", worked_example]) == 0
    said = capsys.readouterr().out
    assert re.search(r"expert reaches it in (8|9|10) of 10 episodes", said)
    assert "an equal seed is an equal episode" in said
    words = ["collect", "--task", worked_example, "--episodes", "2", "--image-size", "32"]
    assert cli.main([*words, "--workers", "1"]) == 0
    assert Path("data/MyReacher/meta/info.json").is_file()


@pytest.mark.slow
@pytest.mark.render
def test_the_worked_example_is_cloned_refined_and_evaluated(worked_example: str) -> None:
    """The rest of the way, small: nothing on it knows the task but by its name."""
    from scripts import cli

    few = ["--task", worked_example]
    assert cli.main(["collect", *few, "--episodes", "4", "--workers", "1"]) == 0
    small = ["--updates", "4", "--batch", "8", "--evaluate-every", "4", "--perception", "trained"]
    # A head with a likelihood, which refining needs.
    chosen = ["--head", "gaussian", "--selection-episodes", "2"]
    assert cli.main(["pretrain", *few, *small, *chosen]) == 0
    little = ["--iterations", "1", "--episodes", "4", "--selection-episodes", "2"]
    assert cli.main(["refine", *few, *little, "--num-envs", "2"]) == 0
    refined = "refined=runs/MyReacher/refined/best"
    words = ["evaluate", *few, "--policies", "expert", refined, "--episodes", "2"]
    assert cli.main([*words, "--films", "1", "--num-workers", "1"]) == 0
    assert (Path("runs") / "report" / "report.html").is_file()
