"""The scripts that draw: what they write, and what they refuse before they play."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from PIL import Image

from scripts import draw_film, draw_tasks
from scripts.draw_film import DrawFilmConfig
from scripts.draw_tasks import DrawTasksConfig

pytestmark = pytest.mark.render


def test_a_film_has_a_row_a_policy_and_a_column_a_state(tmp_path: Path) -> None:
    """Every second control step, and the last frame."""
    out = tmp_path / "new" / "film.gif"
    config = DrawFilmConfig("FetchReach", ("expert", "zero"), out, seeds=(5, 6, 7), size=48)
    draw_film.main(config)
    with Image.open(out) as film:
        assert film.size == (3 * 48, 2 * (48 + 18))
        assert getattr(film, "n_frames", 0) > 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": ()}, "need policies and seeds"),
        ({"seeds": ()}, "need policies and seeds"),
        ({"every": 0}, "at least 1"),
        ({"camera": "top"}, r"no camera 'top'; it has \['front', 'side', 'wrist'\]"),
        ({"policies": ("nobody",)}, "nobody"),
    ],
)
def test_a_film_that_cannot_be_is_refused_at_once(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    """Nothing is played and no file appears."""
    settings = {"task": "FetchReach", "out": tmp_path / "film.gif"} | change
    with pytest.raises(ValueError, match=message):
        draw_film.main(DrawFilmConfig(**settings))  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


def test_a_film_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any policy has played."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(draw_film, "make_env", None)
    with pytest.raises(OSError, match="file"):
        draw_film.main(DrawFilmConfig("FetchReach", out=tmp_path / "file" / "film.gif"))


def test_tasks_are_drawn_with_captions(tmp_path: Path) -> None:
    """A heading, and for each seed a caption and one enlarged image a camera."""
    draw_tasks.main(DrawTasksConfig(tmp_path, ("FetchReach",), seeds=(0, 1), step=1, size=32))
    image = cv2.imread(str(tmp_path / "FetchReach.png"))
    assert image is not None
    assert image.shape == (20 + 2 * (20 + 64), 3 * 64, 3)
