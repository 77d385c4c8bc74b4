"""What `vla pretrain` refuses before data are decoded, and where it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import cli, ground, pretrain


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--head", "gaussain"), "no action head 'gaussain'"),
        (("--vlm", "./smolvlm"), "no model './smolvlm'"),
        (("--start", "scratch", "--language", "./smollm"), "no language tower './smollm'"),
    ],
)
def test_what_there_is_not_is_refused_before_data_are_read(
    asked: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Decoding videos may take hours."""

    def begun(*_: object, **__: object) -> None:
        raise AssertionError("data are being read")

    monkeypatch.setattr(pretrain, "Demonstrations", begun)
    words = ("--data", str(tmp_path), "--out", str(tmp_path / "out"), *asked)
    assert cli.main(["pretrain", *words]) != 0
    assert said in capsys.readouterr().err
    monkeypatch.setattr(ground, "make_scenes", begun)
    if asked[-2] != "--head":
        words = ("--tasks", "FetchReach", "--out", str(tmp_path / "out"), *asked[-2:])
        assert cli.main(["ground", *words]) != 0
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(("given", "name"), [(".", "so101"), ("..", "robots"), ("a/", "a")])
def test_a_run_is_named_after_its_data(
    given: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the path has no name of its own."""
    here = tmp_path / "robots" / "so101"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    written: list[Path] = []

    def folder(path: Path, *_: object) -> None:
        written.append(path)
        raise OSError("as if it could not be written")

    monkeypatch.setattr(pretrain, "RunFolder", folder)
    with pytest.raises(OSError, match="as if"):
        pretrain.clone(pretrain.PretrainConfig(None, (Path(given),)))
    assert written == [Path("runs") / name / "clone"]
