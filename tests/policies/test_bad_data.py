"""Data sets that lack something or contradict themselves are refused, and the place is named."""

from __future__ import annotations

import contextlib
import io
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.scripts import convert_dataset_v21_to_v30, lerobot_edit_dataset
from lerobot_commands import TINY_ACT, training_flags
from lerobot_folder import (
    TOP,
    counted_episodes,
    counted_features,
    edit_column,
    edit_json,
    edit_tables,
    write_episodes,
)
from PIL import Image

from policies.imitation.dataset import DemoDataset
from policies.imitation.demonstrations import Demonstrations
from policies.imitation.images import VideoImages
from policies.lerobot.decoded_dataset import DecodedDataset
from scripts import cli
from vla.data.dataset_contract import read_contract
from vla.data.recorded_actions import read_chunks
from vla.data.recorded_frames import read_frames


def refuse(root: Path, *parts: str, **options: Any) -> str:
    """The message with which the data set is refused; it holds these parts, and nothing is left."""
    with pytest.raises(ValueError, match=f"data set {root}") as caught:
        DemoDataset(root, chunk_length=2, **options)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert not re.search("delete|remove", message, re.IGNORECASE)
    assert not [path for path in (root / ".cache").glob("*") if path.is_dir()]
    return message


# --- what is missing


def test_an_episode_that_the_metadata_lack_is_named(video: Path) -> None:
    """Its frames would be black."""
    edit_tables(video, "meta/episodes/*/*.parquet", lambda table: table.slice(0, 2))
    refuse(video, "meta/episodes does not say where", "episodes [2] is", "2 of 3")


@pytest.mark.parametrize("hole", [None, math.nan])
def test_an_episode_without_its_place_in_a_video_is_named(hole: float | None, video: Path) -> None:
    """A null in the metadata, and what NaN would make of every comparison."""

    def dig(values: list[Any]) -> list[Any]:
        return [values[0], hole, values[2]]

    edit_column(video, f"videos/{TOP}/from_timestamp", dig, "meta/episodes/*/*.parquet")
    refuse(video, "episodes [1]" if hole is None else "episode 1, frame 0 is nan ms")


def test_a_column_of_places_that_is_missing_is_refused(video: Path) -> None:
    """As that of every episode."""
    key = f"videos/{TOP}/file_index"
    edit_tables(video, "meta/episodes/*/*.parquet", lambda table: table.drop_columns([key]))
    refuse(video, "episodes [0, 1, 2] is")


@pytest.mark.parametrize("template", [None, "videos/{camera}.mp4"])
def test_a_template_that_leads_to_no_video_is_named(template: str | None, video: Path) -> None:
    """It is part of `meta/info.json`, which tools of others write too."""
    edit_json(video / "meta" / "info.json", lambda info: info.update(video_path=template))
    refuse(video, f"has the video_path {template!r}")


def test_tables_that_lack_an_episode_name_it(image: Path) -> None:
    """Whoever copied only some of the files."""
    edit_tables(image, "data/*/*.parquet", lambda table: table.slice(0, 6))
    refuse(
        image, "lists 9 frames but holds 6", "episodes [1, 2] lack frames", "are missing in data/"
    )
    (image / ".recording").mkdir()
    refuse(image, "an interrupted recording: run the same `vla collect` again")


def test_a_frame_in_another_episode_than_the_metadata_say_is_refused(image: Path) -> None:
    """The sum is right, so that the number of frames alone would not tell."""
    edit_column(image, "episode_index", lambda _: [0] * 3 + [1] * 4 + [2] * 2)
    edit_column(image, "frame_index", lambda _: [0, 1, 2, 0, 1, 2, 3, 0, 1])
    refuse(image, "episodes have other lengths than meta/episodes says", "episode 0 has 3 of 4")


def test_limits_of_older_data_are_refused(image: Path) -> None:
    """Commands are clipped to them: what was demonstrated since could never be commanded."""

    def narrow(statistics: dict[str, Any]) -> None:
        statistics["action"]["max"] = [1.5, 0]

    edit_json(image / "meta" / "stats.json", narrow)
    refuse(image, "action reaches 3.5 at episode 0, frame 3, dimension 'a'", "to 1.5", "uploads no")


def test_a_data_set_without_tables_is_refused(image: Path) -> None:
    """Rather than trained on nothing."""
    shutil.rmtree(image / "data")
    refuse(image, "lists 9 frames but holds 0", "episodes [0, 1, 2] lack frames")


def test_frames_that_occur_twice_are_named(image: Path) -> None:
    """Two recordings whose files were put into one folder."""
    (file,) = image.glob("data/*/*.parquet")
    shutil.copy(file, file.with_name("file-001.parquet"))
    edit_json(image / "meta" / "info.json", lambda info: info.update(total_frames=18))
    names = [f"data/chunk-000/file-00{number}.parquet" for number in (0, 1)]
    refuse(image, "episode 0, frame 0 occurs twice", *names, "--operation.type=merge")


@pytest.mark.parametrize("key", ["frame_index", "episode_index", "action", "task_index", TOP])
def test_a_column_that_is_missing_is_named(key: str, image: Path) -> None:
    """With its file."""
    edit_tables(image, "data/*/*.parquet", lambda table: table.drop_columns([key]))
    refuse(image, f"data/chunk-000/file-000.parquet has no column '{key}'")


def test_a_video_that_is_short_is_named(video: Path) -> None:
    """By how many images and frames."""
    edit_json(video / "meta" / "info.json", lambda info: info.update(total_frames=10))

    def repeat_last(table: pa.Table) -> pa.Table:
        last = table.slice(8, 1)
        for key, value in (("frame_index", 2), ("timestamp", 2 / 30)):
            column = pa.array([value], table.schema.field(key).type)
            last = last.set_column(table.schema.get_field_index(key), key, column)
        return pa.concat_tables([table, last])

    edit_tables(video, "data/*/*.parquet", repeat_last)
    edit_column(video, "length", lambda _: [4, 3, 3], "meta/episodes/*/*.parquet")
    refuse(video, "holds 9 images for 10 frames, it is cut short: episode 2, frame 2 is 33.3 ms")


def test_an_image_file_that_is_missing_is_named(image: Path) -> None:
    """With its path and its frame."""
    edit_column(image, TOP, lambda cells: pa.array(["images/gone.png"] * len(cells)))
    refuse(image, f"{TOP} of episode 0, frame 0 cannot be read: images/gone.png is neither")
    edit_column(image, TOP, lambda cells: pa.array([None] * len(cells), pa.string()))
    refuse(image, f"{TOP} of episode 0, frame 0", "neither an image nor the path of one")


# --- time


def test_a_frame_off_the_grid_is_named_with_what_accepts_it(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """4 ms: data set, video, episode, frame and by how much; the flag that it names works."""
    shift = np.zeros(9)
    shift[[5, 6]] = 0.004, -0.003
    edit_column(video, "timestamp", lambda v: [t + d for t, d in zip(v, shift, strict=True)])
    message = refuse(
        video,
        f"video videos/{TOP}/chunk-000/file-000.mp4 does not fit the recorded timestamps",
        "episode 1, frame 1 is 4 ms from its nearest image, 0.1 ms are allowed (2 of 9 frames",
    )
    assert "cut short" not in message
    (flag,) = re.findall(r"--tolerance_s=[\d.]+", message)
    tolerance_s = float(flag.partition("=")[2])
    assert tolerance_s == pytest.approx(0.0041)
    data = DemoDataset(video, chunk_length=2, heldout_fraction=0.0, tolerance_s=tolerance_s)
    levels = data.batch(data.rows()).images["top"].float().mean(dim=(1, 2, 3))
    np.testing.assert_allclose(levels, 16 * np.arange(9), atol=3)
    assert len(Demonstrations([video], 2, tolerance_s=tolerance_s).robots["so101"]) == 9
    flags = training_flags(video, tmp_path / "out", *TINY_ACT, steps=1)
    assert cli.main(["lerobot-train", *flags]) == 2
    assert "episode 1, frame 1 is 4 ms" in capsys.readouterr().err
    assert cli.main(["lerobot-train", *flags, flag]) == 0


def test_two_frames_with_one_image_are_named(video: Path) -> None:
    """An episode that begins in the video where another does would be trained on its images."""
    start = f"videos/{TOP}/from_timestamp"
    edit_column(video, start, lambda times: [times[0], *times[:-1]], "meta/episodes/*/*.parquet")
    refuse(video, "one image for two frames, episode 0, frame 0 and episode 1, frame 0")
    # Wide enough for videos that have fewer images than there are frames.
    assert len(DemoDataset(video, chunk_length=2, tolerance_s=0.5)) == 9


def test_frames_further_off_are_not_taken_for_a_short_video(video: Path) -> None:
    """Half a frame and more belongs to another frame: no flag accepts it."""
    edit_column(video, "timestamp", lambda values: [t + 0.02 for t in values])
    message = refuse(video, "episode 0, frame 0 is 13.3 ms", "timestamps in data/ or in meta/")
    assert "--tolerance_s" not in message


@pytest.mark.parametrize(("off_s", "is_near"), [(0.00008, True), (0.00012, False)])
def test_time_is_matched_in_double_precision(
    off_s: float, is_near: bool, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours into a video float32 is coarser than the tolerance."""
    hours_s = 7200.0
    read_index = VideoImages._read_index

    def read_late(images: VideoImages, path: Path) -> tuple[np.ndarray, float]:
        pts, unit_s = read_index(images, path)
        return pts + round(hours_s / unit_s), unit_s

    monkeypatch.setattr(VideoImages, "_read_index", read_late)
    key = f"videos/{TOP}/from_timestamp"
    shift = hours_s + off_s
    edit_column(video, key, lambda v: [t + shift for t in v], "meta/episodes/*/*.parquet")
    frames = read_frames(video)
    if is_near:
        VideoImages(frames, TOP)
    else:
        with pytest.raises(ValueError, match=r"episode 0, frame 0 is 0\.12 ms from"):
            VideoImages(frames, TOP)


# --- numbers


BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "null": None}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("key", ["observation.state", "action"])
def test_a_number_that_is_none_is_named(key: str, bad: str, image: Path) -> None:
    """Data set, feature, episode, frame and dimension; also where the statistics have it."""

    def spoil(rows: list[list[float | None]]) -> list[list[float | None]]:
        rows[5][1] = BAD[bad]
        return rows

    edit_column(image, key, spoil)
    what = "null or NaN" if bad in ("nan", "null") else bad
    place = f"{key} is {what} at episode 1, frame 1, dimension 'b'; 1 of 9 frames"
    refuse(image, place)
    with pytest.raises(ValueError, match=re.escape(place)):
        read_chunks(image, key, 2)
    if BAD[bad] is not None:  # LeRobot itself cannot read a null
        with pytest.raises(ValueError, match=re.escape(place)):
            DecodedDataset(LeRobotDataset("local/x", root=image))

    def spoil_statistics(statistics: dict[str, Any]) -> None:
        statistics[key]["max"][1] = BAD[bad]

    edit_json(image / "meta" / "stats.json", spoil_statistics)
    with pytest.raises(ValueError, match=re.escape(place)):
        read_contract(image)


@pytest.mark.parametrize("key", ["observation.state", "action"])
def test_a_whole_vector_that_is_null_is_named(key: str, image: Path) -> None:
    """A null shifts every later row of a list that is merely flattened."""

    def spoil(rows: list[Any]) -> pa.Array:
        rows[4] = None
        return pa.array(rows, pa.list_(pa.float32()))

    edit_column(image, key, spoil)
    refuse(image, f"{key} is null or NaN at episode 1, frame 0, dimension 'a'")


def test_a_vector_of_another_length_is_named(image: Path) -> None:
    """Even where all numbers together would fit."""

    def spoil(rows: list[Any]) -> pa.Array:
        rows[7], rows[8] = [1.0], [1.0, 2.0, 3.0]
        return pa.array(rows, pa.list_(pa.float32()))

    edit_column(image, "action", spoil)
    refuse(image, "action has 1 numbers at episode 2, frame 0, meta/info.json says 2")
    edit_column(image, "action", lambda rows: pa.array([str(row) for row in rows]))
    refuse(image, "action has 1 numbers at episode 0, frame 0")


def test_words_instead_of_numbers_are_named(image: Path) -> None:
    """The type is told."""
    edit_column(image, "action", lambda rows: pa.array([["a", "b"] for _ in rows]))
    refuse(image, "action holds string, numbers are needed")


@pytest.mark.parametrize("bad", ["null", "unknown", "null text"])
def test_a_frame_without_instruction_is_named(bad: str, image: Path) -> None:
    """No task, a task that is not listed, and one without words."""
    column, last = pa.int64(), {"null": None, "unknown": 7, "null text": 1}[bad]
    edit_column(image, "task_index", lambda v: pa.array([*v[:8], last], column))
    if bad == "null text":
        edit_column(image, "task", lambda texts: [texts[0], None], "meta/tasks.parquet")
        refuse(image, "episode 1, frame 0 has no instruction", "tasks.parquet is null there")
    elif bad == "unknown":
        refuse(image, "episode 2, frame 1 has no instruction", "7", "is none of [0, 1]")
    else:
        refuse(image, "task_index is null or NaN at episode 2, frame 1")


def test_two_instructions_of_one_task_are_refused(image: Path) -> None:
    """Which one is meant cannot be known."""
    edit_column(image, "task_index", lambda _: [1, 1], "meta/tasks.parquet")
    refuse(image, "two instructions for task_index 1", "green", "red")
    (image / "meta" / "tasks.parquet").unlink()
    refuse(image, "has no meta/tasks.parquet")


def test_one_instruction_of_two_tasks_is_refused(image: Path) -> None:
    """As Meta-World's push and push-back have; a policy could not tell them apart."""
    edit_column(image, "task", lambda texts: [texts[0]] * 2, "meta/tasks.parquet")
    refuse(image, "one instruction for several tasks", "[0, 1]", "give each words of its own")


@pytest.mark.parametrize("key", ["episode_index", "frame_index"])
@pytest.mark.parametrize(("bad", "what"), [(None, "is null in row 3"), (0.5, "whole numbers")])
def test_a_key_that_is_no_number_is_named(
    key: str, bad: float | None, what: str, image: Path
) -> None:
    """With its file and row."""
    edit_column(image, key, lambda v: pa.array([*map(float, v[:3]), bad, *map(float, v[4:])]))
    refuse(image, f"{key} in data/chunk-000/file-000.parquet", what)


def test_other_observations_have_to_be_finite_for_lerobot_too(tmp_path: Path) -> None:
    """A feature that only LeRobot's policies read."""
    features = counted_features(video=False)
    features["observation.environment_state"] = features["action"]
    episodes = counted_episodes((4, 3), features)
    for episode in episodes:
        for step, frame in enumerate(episode):
            frame["observation.environment_state"] = np.float32([0, np.nan if step == 2 else 1])
    root = write_episodes(tmp_path / "so101", features, episodes)
    with pytest.raises(ValueError, match=r"environment_state is not finite at episode 0, frame 2"):
        DecodedDataset(LeRobotDataset("local/x", root=root))


# --- images of more than 8 bits


def test_an_image_of_16_bits_is_not_clipped(image: Path) -> None:
    """A depth camera that is declared as RGB would come out white."""
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(file, "png")

    def spoil(cells: list[Any]) -> list[Any]:
        return [*cells[:2], {"bytes": file.getvalue(), "path": None}, *cells[3:]]

    edit_column(image, TOP, spoil)
    refuse(image, f"{TOP} of episode 0, frame 2 has pixels of more than 8 bits", "--cameras")


# --- LeRobot's commands


def test_lerobot_names_gaps_in_the_episodes(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would ask the hub for the episodes that its counting misses."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for pattern in ("data/*/*.parquet", "meta/episodes/*/*.parquet"):
        edit_column(video, "episode_index", lambda v: [n + (n > 0) for n in v], pattern)
    flags = training_flags(video, tmp_path / "out", *TINY_ACT, steps=1)
    assert cli.main(["lerobot-train", *flags]) == 2
    assert (
        "counts episodes from 0 without a gap, here they are [0, 2, 3]" in capsys.readouterr().err
    )


@pytest.mark.parametrize("lacking", ["action", "all"])
def test_the_command_that_measures_statistics_works_and_uploads_nothing(
    lacking: str, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the message gives it, word for word."""
    monkeypatch.setattr(LeRobotDataset, "push_to_hub", None)
    file = image / "meta" / "stats.json"
    if lacking == "all":
        file.unlink()
    else:
        edit_json(file, lambda statistics: statistics.pop("action"))
    with pytest.raises(ValueError, match="has no") as caught:
        read_contract(image)
    command = shlex.split(str(caught.value).rpartition("with: ")[2])
    assert command[0] == "lerobot-edit-dataset"
    monkeypatch.setattr("sys.argv", command)
    lerobot_edit_dataset.edit_dataset()
    assert read_contract(image).action.high == (3.5, 0.0)


def test_commands_in_messages_can_be_pasted(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a shell, whatever the folder is called; `.` is called as the folder it stands for."""
    odd = image.with_name("my data #1")
    image.rename(odd)
    (odd / "meta" / "stats.json").unlink()
    with pytest.raises(ValueError, match="has no") as caught:
        read_contract(odd)
    words = shlex.split(str(caught.value).rpartition("with: ")[2])
    assert {f"--root={odd}", f"--new_root={odd}"} < {*words}
    with pytest.raises(FileNotFoundError) as missing:
        read_contract(odd.with_name("my data"))
    recording = shlex.split(str(missing.value).rpartition("it: ")[2])
    assert recording[-1] == str(odd.with_name("my data"))
    monkeypatch.chdir(odd)
    with pytest.raises(ValueError, match="has no") as caught:
        read_contract(Path())
    assert "--repo_id=local/my data #1" in shlex.split(str(caught.value).rpartition("with: ")[2])


def test_the_command_that_converts_uploads_nothing(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its flags are those of LeRobot's script, and none asks for the hub."""
    edit_json(image / "meta" / "info.json", lambda info: info.update(codebase_version="v2.1"))
    with pytest.raises(ValueError, match=r"has format v2\.1") as caught:
        read_contract(image)
    words = shlex.split(str(caught.value).rpartition("by: ")[2])
    assert words[:3] == ["python", "-m", convert_dataset_v21_to_v30.__name__]
    source = Path(convert_dataset_v21_to_v30.__file__).read_text()
    given: dict[str, Any] = {}
    namespace = {"__name__": "__main__", "convert_dataset": None}
    monkeypatch.setattr("sys.argv", words[2:])
    main = source[source.index('if __name__ == "__main__"') :]
    scope = vars(convert_dataset_v21_to_v30) | namespace
    scope["convert_dataset"] = lambda **options: given.update(options)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(main, scope)
    assert given["push_to_hub"] is False
    assert (given["repo_id"], given["root"]) == (f"local/{image.name}", str(image))
