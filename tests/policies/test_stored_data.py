"""Equal data, stored in other ways, as LeRobot's tools, other tools and file systems do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.datasets.dataset_tools import merge_datasets
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot_folder import (
    LEVEL,
    TASKS,
    TOP,
    append_episodes,
    counted_episodes,
    counted_features,
    edit_column,
    edit_json,
    edit_tables,
    move_behind_link,
    write_counted,
)

from policies.imitation.dataset import DemoBatch, DemoDataset
from policies.lerobot.decoded_dataset import DecodedDataset
from vla.data.recorded_actions import read_chunks
from vla.data.video_integrity import require_intact_videos

LENGTHS = (4, 3, 2)


def read(root: Path, **options: Any) -> DemoBatch:
    """All frames."""
    data = DemoDataset(root, chunk_length=2, heldout_fraction=0.0, **options)
    return data.batch(data.rows())


def require_counted(batch: DemoBatch, lengths: tuple[int, ...] = LENGTHS) -> None:
    """What `write_counted` wrote, whatever became of its files."""
    assert batch.proprio[:, 0].tolist() == [step for n in lengths for step in range(n)]
    assert batch.proprio[:, 1].tolist() == [e for e, n in enumerate(lengths) for _ in range(n)]
    assert batch.actions[:, 0, 0].tolist() == [step + 0.5 for n in lengths for step in range(n)]
    assert batch.instructions == [TASKS[e % 2] for e, n in enumerate(lengths) for _ in range(n)]
    levels = batch.images["top"].float().mean(dim=(1, 2, 3))
    expected = LEVEL * torch.arange(sum(lengths)).float()
    torch.testing.assert_close(levels, expected, atol=3, rtol=0)


# --- types


def _as(kind: pa.DataType) -> Callable[[list[Any]], pa.Array]:
    return lambda values: pa.array(values, kind)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float32(), 2),
        pa.large_list(pa.float32()),
        pa.list_(pa.float64()),
        pa.list_(pa.float64(), 2),
        pa.list_(pa.float16()),
    ],
    ids=str,
)
def test_vectors_are_read_from_any_type(kind: pa.DataType, image: Path) -> None:
    """Lists of any length and of a fixed one, in any precision."""
    for key in ("observation.state", "action"):
        edit_column(image, key, _as(kind))
    require_counted(read(image))
    assert read_chunks(image, "action", 2).shape == (sum(LENGTHS), 2, 2)


def test_merged_and_resumed_data_are_read(tmp_path: Path) -> None:
    """LeRobot's merge and its writer store lists of variable and of fixed length side by side."""
    parts = []
    for name in ("one", "two"):
        write_counted(tmp_path / name, (2, 3))
        parts.append(LeRobotDataset(f"local/{name}", root=tmp_path / name))
    merged = tmp_path / "merged"
    merge_datasets(parts, "local/merged", merged)
    append_episodes(merged, counted_episodes((4, 2), counted_features()))
    kinds = {str(pq.read_schema(f).field("action").type) for f in merged.glob("data/*/*.parquet")}
    assert len(kinds) == 2, "this is no test of mixed types any more"
    batch = read(merged)
    steps = [step for length in (2, 3, 2, 3, 4, 2) for step in range(length)]
    assert batch.proprio[:, 0].tolist() == steps
    assert batch.actions[:, 0, 0].tolist() == [step + 0.5 for step in steps]
    assert batch.instructions[0] == batch.instructions[5] == batch.instructions[10] == TASKS[0]
    levels = batch.images["top"].float().mean(dim=(1, 2, 3)) / LEVEL
    np.testing.assert_allclose(levels, [*range(5), *range(5), *range(6)], atol=0.2)
    assert read_chunks(merged, "action", 1)[:, 0, 0].tolist() == batch.actions[:, 0, 0].tolist()


@pytest.mark.parametrize("dtype", ["float64", "int64"])
@pytest.mark.parametrize("offset", [16_777_217, 2**40 + 1])
def test_large_numbers_keep_what_tells_them_apart(dtype: str, offset: int, tmp_path: Path) -> None:
    """float32 holds whole numbers up to 16,777,216 alone; the offset is subtracted in float64."""
    root = write_counted(tmp_path / "so101", video=False, dtype=dtype, offset=offset)
    data = DemoDataset(root, chunk_length=2, heldout_fraction=0.0)
    batch = data.batch(data.rows())
    assert (batch.proprio[:, 0] - offset).tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]
    assert (data.chunks()[:4, :, 1] - offset).tolist() == [[0, -1], [-1, -2], [-2, -3], [-3, -3]]
    assert data.statistics().proprio.max[0] == offset + 3
    assert (read_chunks(root, "action", 1)[:4, 0, 1] - offset).tolist() == [0, -1, -2, -3]
    lerobot = LeRobotDataset("local/so101", root=root)
    with pytest.raises(ValueError, match=r"state dimension 'a' reaches .*varies by 3.*pretrain"):
        DecodedDataset(lerobot)


def test_small_numbers_stay_float32(image: Path) -> None:
    """No copy of a training set is twice as large as it must be."""
    assert read(image).proprio.dtype == read(image).actions.dtype == torch.float32


# --- order and keys


def test_an_index_that_begins_anew_is_no_order(video: Path) -> None:
    """Some tools count `index` through each episode."""
    edit_column(video, "index", lambda values: [0] * len(values))
    require_counted(read(video))
    data = DecodedDataset(LeRobotDataset("local/x", root=video))
    batch = data.batch(range(9))
    assert batch["observation.state"][:, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]
    assert batch["task"] == [TASKS[0]] * 4 + [TASKS[1]] * 3 + [TASKS[0]] * 2


def test_rows_in_any_order_are_sorted(image: Path) -> None:
    """By episode and frame; LeRobot's rows keep their numbers, and windows end with an episode."""
    shuffled = np.random.default_rng(0).permutation(sum(LENGTHS))
    edit_tables(image, "data/*/*.parquet", lambda table: table.take(shuffled))
    require_counted(read(image))
    windows = {"action": [0.0, 1 / 30]}
    data = DecodedDataset(LeRobotDataset("local/x", root=image, delta_timestamps=windows))
    batch = data.batch(range(9))
    sorted_batch = read(image)
    for row, frame in enumerate(shuffled):
        assert torch.equal(batch["observation.state"][row], sorted_batch.proprio[frame])
        assert torch.equal(batch["action"][row], sorted_batch.actions[frame])
        assert torch.equal(batch["action_is_pad"][row], sorted_batch.is_pad[frame])
        image_there = sorted_batch.images["top"][frame].permute(2, 0, 1)
        assert torch.equal(batch[TOP][row], image_there)


def test_task_index_is_a_key(image: Path) -> None:
    """Tasks 0, 2 and 3, stored in any order; a name of the column that pandas gives."""
    texts = {3: "three", 0: "zero", 2: "two"}
    file = image / "meta" / "tasks.parquet"
    for column in ("task", "__index_level_0__"):
        pq.write_table(pa.table({"task_index": [*texts], column: [*texts.values()]}), file)
        edit_column(image, "task_index", lambda _: [2] * 4 + [3] * 3 + [0] * 2)
        expected = ["two"] * 4 + ["three"] * 3 + ["zero"] * 2
        assert read(image).instructions == expected
        lerobot = LeRobotDataset("local/x", root=image)
        assert DecodedDataset(lerobot).batch(range(9))["task"] == expected


def test_episode_index_is_a_key(video: Path) -> None:
    """Episodes 0, 2 and 5, in the tables and in the metadata."""
    numbers = {0: 0, 1: 2, 2: 5}
    for pattern in ("data/*/*.parquet", "meta/episodes/*/*.parquet"):
        edit_column(video, "episode_index", lambda v: [numbers[n] for n in v], pattern)
    require_counted(read(video))
    assert read_chunks(video, "action", 9)[:, -1, 0].tolist() == [3.5] * 4 + [2.5] * 3 + [1.5] * 2


# --- links, and images in files


@pytest.mark.parametrize(
    "part",
    [
        "data",
        "data/chunk-000",
        "data/chunk-000/file-000.parquet",
        "meta",
        "meta/episodes",
        "meta/episodes/chunk-000",
        "videos",
        f"videos/{TOP}",
        f"videos/{TOP}/chunk-000",
    ],
)
def test_links_are_read(part: str, video: Path, tmp_path: Path) -> None:
    """As folders and files are, and a change behind them is noticed."""
    move_behind_link(video / part, tmp_path / "disk" / "moved")
    require_counted(read(video))
    require_intact_videos(video)
    assert read_chunks(video, "action", 1).shape == (9, 1, 2)
    edit_column(video, "action", lambda rows: [[4 - a, b] for a, b in rows])  # within the limits
    assert read(video).actions[0, 0].tolist() == [3.5, 0.0]


def test_videos_behind_a_link_are_checked(video: Path, tmp_path: Path) -> None:
    """A check that skips what is linked would pass."""
    move_behind_link(video / "videos" / TOP / "chunk-000", tmp_path / "disk" / "chunk-000")
    (file,) = (tmp_path / "disk" / "chunk-000").glob("*.mp4")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"videos/{TOP}/chunk-000/file-000.mp4"):
        require_intact_videos(video)


@pytest.mark.parametrize(
    ("folder", "named"),
    [
        ("images/top", "images/top/{}.png"),
        ("data/chunk-000", "{}.png"),
        ("data/chunk-000/top", "top/{}.png"),
        ("images/top", "/another/machine/set/images/top/{}.png"),
        ("images/top", "{root}/images/top/{}.png"),
    ],
)
@pytest.mark.parametrize("typed", [True, False], ids=["struct", "path"])
def test_images_beside_the_tables_are_read(
    folder: str, named: str, typed: bool, image: Path
) -> None:
    """By a path from the data set, from the table, or from where it was recorded."""
    (image / folder).mkdir(parents=True, exist_ok=True)
    count = iter(range(99))

    def take_out(cells: list[Any]) -> pa.Array:
        paths = []
        for cell in cells:
            number = next(count)
            (image / folder / f"{number}.png").write_bytes(cell["bytes"])
            paths.append(named.format(number, root=image))
        if not typed:
            return pa.array(paths)
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        return pa.array([{"bytes": None, "path": path} for path in paths], kind)

    edit_column(image, TOP, take_out)
    require_counted(read(image))


def test_a_changed_image_file_is_noticed(image: Path) -> None:
    """The cache is of the present state of the files, too."""
    folder = image / "images" / TOP / "episode-000000"
    folder.mkdir(parents=True)

    def take_out(cells: list[Any]) -> pa.Array:
        for number, cell in enumerate(cells):
            (folder / f"{number}.png").write_bytes(cell["bytes"])
        return pa.array([f"images/{TOP}/episode-000000/{n}.png" for n in range(len(cells))])

    edit_column(image, TOP, take_out)
    assert read(image).images["top"][0].max() == 0
    shutil.copy(folder / "3.png", folder / "0.png")
    assert read(image).images["top"][0].max() == 3 * LEVEL


def test_hidden_files_are_no_tables(image: Path) -> None:
    """What a Mac leaves beside every file that it copies."""
    (image / "data" / "chunk-000" / "._file-000.parquet").write_bytes(b"Mac OS X")
    require_counted(read(image))


# --- choices


def test_chosen_cameras_have_caches_of_their_own(video: Path) -> None:
    """A second choice does not take the first one's away."""
    edit_json(video / "meta" / "info.json", lambda info: _mark_as_depth(info, "observation.image"))
    with pytest.raises(
        ValueError, match=r"observation\.image is marked as a depth .*--cameras top"
    ):
        DemoDataset(video, chunk_length=2)
    assert list(read(video, cameras=["top"]).images) == ["top"]
    first = {path for path in (video / ".cache").iterdir() if path.is_dir()}
    read(video, cameras=["top"], tolerance_s=0.01)
    assert first < {path for path in (video / ".cache").iterdir() if path.is_dir()}
    with pytest.raises(ValueError, match=r"observation\.image is marked.*LeRobot's own"):
        DecodedDataset(LeRobotDataset("local/x", root=video))
    sample = DecodedDataset(LeRobotDataset("local/x", root=video), ["top"])[0]
    assert [key for key in sample if "image" in key] == [TOP]
    assert sample[TOP].shape == (3, 32, 32)


def _mark_as_depth(info: dict[str, Any], key: str) -> None:
    info["features"][key]["info"] = {"is_depth_map": True}
