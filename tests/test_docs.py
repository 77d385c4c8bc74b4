"""Every code block of the documents: Python runs, shell lines parse with the real parsers."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from demo_folder import write_folder
from docs_blocks import DOCUMENTS, LANGUAGES, ROOT, Block, blocks, check, commands, parse_vla
from tiny_models import make

from vla.checkpoint.initialisation import GROUNDED

SHELL = [block for block in blocks() if block.language == "bash"]
PYTHON = [block for block in blocks() if block.language == "python"]


def test_every_block_says_what_it_is() -> None:
    """One of three languages, so that none escapes the tests below."""
    assert {
        block.place: block.language for block in blocks() if block.language not in LANGUAGES
    } == {}
    assert len(SHELL) > 10
    assert len(PYTHON) > 2


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.place)
def test_shell_blocks_parse(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell reads the block, and each program the flags of its lines."""
    monkeypatch.setattr(sys, "argv", ["docs"])  # where LeRobot looks for a checkpoint's path
    syntax = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert syntax.returncode == 0, syntax.stderr
    for words in commands(block.text):
        check(words, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "vla colect",
        "vla evaluate --episode 3",
        "vla pretrain --head glow",
        "vla evaluate --episodes 0",
        "python -m scripts.bench.heads --tusk FetchPush",
        "bash scripts/missing.sh",
        "lerobot-train --policy.type=vla --dataset.repoid=a",
        "rm -r runs",
    ],
)
@pytest.mark.usefixtures("capsys")
def test_wrong_shell_lines_are_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above are not vacuous: commands, flags, values, files and programs."""
    monkeypatch.setattr(sys, "argv", ["docs"])
    [words] = commands(line)
    with pytest.raises((AssertionError, SystemExit, ValueError)):
        check(words, monkeypatch)


def test_flags_are_read_as_the_shell_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Continued lines are one command, comments none, placeholders a choice."""
    text = "vla plan --task FetchPush \\\n    --seed SEED  # a comment\n# another\n"
    [words] = commands(text)
    assert words == ["vla", "plan", "--task", "FetchPush", "--seed", "0"]
    assert parse_vla(words[1:], monkeypatch).task == "FetchPush"


@pytest.fixture
def workplace(tmp_path: Path, exported_grounded: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a reader has it: data, a clone of it, its export, a pretrained model; offline."""
    write_folder(tmp_path / "data" / "FetchPush", [12, 12], "FetchPush", image_size=96)
    clone = tmp_path / "runs" / "FetchPush" / "clone" / "best"
    clone.parent.mkdir(parents=True)
    clone.symlink_to(GROUNDED)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "push").symlink_to(exported_grounded)
    make("smolvlm", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.render
@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_blocks_run(block: Block, workplace: Path) -> None:
    """As scripts, from top to bottom, on the reader's files."""
    script = workplace / "block.py"
    script.write_text(block.text)
    if "__main__" not in block.text:
        runpy.run_path(str(script))
        return
    # What starts processes needs to be the main module of one.
    run = subprocess.run(
        [sys.executable, "block.py"],
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'runtime'}", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Files, and headings in them, as a forge makes anchors of headings."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = Path(os.path.normpath(path.parent / name)) if name else path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    assert not broken


def anchors(text: str) -> set[str]:
    """Anchors of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
