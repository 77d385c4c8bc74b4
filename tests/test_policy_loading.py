"""Policies by the text of a flag: names, folders, robots and how chunks are executed."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.policy_loading import PolicyText, read_policy


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        ("@ensemble", "execute chunks as they were saved, or @receding:STEPS"),
        ("@receding:x", "receding:x'.* 'x' is no whole number"),
        ("#arm", "are for one robot"),
    ],
)
def test_lerobots_policies_execute_chunks_in_two_ways(
    execution: str, message: str, tmp_path: Path
) -> None:
    """Refused before LeRobot is imported."""
    folder = tmp_path / "act"
    folder.mkdir()
    (folder / "config.json").write_text('{"type": "act"}')
    (folder / "model.safetensors").touch()
    with pytest.raises(ValueError, match=message):
        read_policy(f"act={folder}{execution}", "cpu", "FetchPush")


def test_policies_are_read_or_refused_by_name(tmp_path):
    """Built-in names, renamed ones, and an error that lists what is valid."""
    assert read_policy("expert", "cpu", "FetchPush").kind == "expert"
    renamed = read_policy("ceiling=planner:cem", "cpu", "FetchPush")
    assert (renamed.name, renamed.kind, renamed.ledger) == ("ceiling", "planner:cem", {})
    with pytest.raises(ValueError, match=r"no folder.*planner:mppi"):
        read_policy(f"clone={tmp_path / 'missing'}", "cpu", "FetchPush")


@pytest.mark.parametrize(
    ("folder", "text", "expected"),
    [
        ("runs/lr=0.001,seed=3/clone", "c={}", ("c", "", "")),
        ("runs/lr=0.001,seed=3/clone", "{}", ("clone", "", "")),
        ("runs/lr=0.001,seed=3/clone", "c={}@receding:3", ("c", "", "receding:3")),
        ("me@home/c#1", "c={}", ("c", "", "")),
        ("me@home/c#1", "{}", ("c#1", "", "")),
        ("me@home/c#1", "c={}#arm@ensemble", ("c", "arm", "ensemble")),
        ("me@home/c#1", "c={}@ensemble", ("c", "", "ensemble")),
        ("a=b", "a=b", ("a=b", "", "")),
        ("a=b", "c=a=b#arm", ("c", "arm", "")),
        ("c@1", "c@1@receding:2", ("c@1", "", "receding:2")),
    ],
)
def test_a_folder_that_exists_is_a_folder(folder, text, expected, tmp_path, monkeypatch):
    """Whatever signs its name holds; the name ends at the first "="."""
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir(parents=True)
    words = PolicyText.parse(text.format(folder))
    assert (words.name, words.embodiment, words.execution) == expected
    assert words.kind == folder


def test_the_longest_folder_is_meant(tmp_path, monkeypatch):
    """`c@receding:2` may be a folder beside `c`; and "." has the name of where one is."""
    monkeypatch.chdir(tmp_path)
    for name in ("c", "c@receding:2"):
        Path(name).mkdir()
    assert PolicyText.parse("c@receding:2").kind == "c@receding:2"
    assert PolicyText.parse("c@receding:3").kind == "c"
    assert PolicyText.parse(".").name == tmp_path.name
    with pytest.raises(ValueError, match="'d@1' is no folder"):
        PolicyText.parse("c=d@1")
