"""Recording: what is recorded, and that no interruption damages it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from multiprocessing.synchronize import SemLock
from pathlib import Path

import numpy as np
import pytest
from demo_folder import SETTINGS, die, made_up_episode, spool, write_folder
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from line_task import changed
from vla_runtime import dataset_files

from scripts import collect
from sim import record as record_module
from sim.demonstrate import RecordConfig
from sim.record import record
from sim.recording_store import RecordingStore
from sim.tasks.base import TaskDeclarationError
from sim.tasks.registry import make_task
from vla.contract import RobotSpec

TINY = {"image_size": 16, "workers": 1}


def open_lerobot(root: Path) -> LeRobotDataset:
    """The folder as LeRobot itself opens it."""
    return LeRobotDataset(f"local/{root.name}", root=root, video_backend="pyav")


def test_unknown_task_lists_the_valid_ones(tmp_path: Path) -> None:
    """And no folder is made for it."""
    with pytest.raises(ValueError, match="FetchPush"):
        record(RecordConfig(task=("FetchPull",), root=tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_lerobot_reads_what_was_written(tmp_path: Path) -> None:
    """Every number, pixel and word."""
    root = tmp_path / "demos"
    task = write_folder(root, [5, 7])
    dataset = open_lerobot(root)
    assert dataset.fps == task.spec.control_rate_hz
    assert dataset.meta.total_episodes == 2
    wanted = made_up_episode(task, seed=1, length=7)
    for step in range(7):
        frame = dataset[5 + step]
        for name, key in {
            "observation.state": "proprio",
            "action": "action",
            "executed.action": "executed",
            "privileged.state": "privileged",
        }.items():
            np.testing.assert_array_equal(frame[name].numpy(), wanted[key][step])
        assert bool(frame["next.success"]) == wanted["success"][step]
        assert frame["task"] == "do thing 1"
        for camera in task.spec.cameras:
            image = frame[f"observation.images.{camera.name}"].permute(1, 2, 0).numpy()
            decoded = (image * 255).round().astype(np.uint8)
            np.testing.assert_array_equal(decoded, wanted[f"image.{camera.name}"][step])


def test_contract_lies_beside_the_metadata(tmp_path: Path) -> None:
    """The units travel with the numbers."""
    task = write_folder(tmp_path / "demos", [3])
    stored = json.loads((tmp_path / "demos" / "meta" / "contract.json").read_text())
    assert RobotSpec.from_dict(stored) == task.spec


def test_a_rate_that_is_no_whole_number_is_kept(tmp_path: Path) -> None:
    """Kitchen has 12.5 control steps a second; its data were recorded as of 12."""
    task = make_task("FetchReach", 16)
    task.spec = replace(task.spec, control_rate_hz=12.5)
    root = tmp_path / "demos"
    for seed in (0, 1):  # the second time LeRobot reads its own metadata
        with RecordingStore.open(root, SETTINGS, [task]) as store:
            store.write([spool(store, task, seed, 4)])
    steps = {"action": [0.0, 0.08]}
    dataset = LeRobotDataset("local/demos", root=root, delta_timestamps=steps, video_backend="pyav")
    assert dataset.fps == 12.5
    assert [float(dataset[row]["timestamp"]) for row in (0, 1, 3)] == pytest.approx([0, 0.08, 0.24])
    assert [float(x) for x in dataset[1]["action"][:, 0]] == [1, 2]


def test_a_lerobot_policy_is_not_offered_what_is_privileged(tmp_path: Path) -> None:
    """LeRobot picks features by their names."""
    from lerobot.utils.feature_utils import dataset_to_policy_features

    write_folder(tmp_path / "demos", [3])
    offered = dataset_to_policy_features(open_lerobot(tmp_path / "demos").features)
    cameras = {f"observation.images.{name}" for name in ("front", "side", "wrist")}
    assert set(offered) == cameras | {"observation.state", "action"}


@pytest.mark.parametrize("moment", ["while writing", "before moving", "while moving", "at the end"])
def test_interrupted_write_is_undone_or_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """No episode is lost, doubled or mixed up, wherever the write stops."""
    root = tmp_path / "demos"
    task = make_task("FetchReach", 16)
    with RecordingStore.open(root, SETTINGS, [task]) as store:
        store.write([spool(store, task, seed, 4) for seed in (0, 1)])
        keys = [spool(store, task, seed, 4) for seed in (2, 3)]
        _break(monkeypatch, moment)
        with pytest.raises(InterruptedError):
            store.write(keys)
    monkeypatch.undo()
    if moment == "while writing":  # an exception cleans up, a kill does not
        (root / ".recording" / "staging" / "meta").mkdir(parents=True, exist_ok=True)
    if moment != "while moving":
        assert open_lerobot(root).meta.total_episodes in (2, 4)
    with RecordingStore.open(root, SETTINGS, [task]) as store:
        store.write([key for key in sorted(store.succeeded) if key not in store.episodes])
        assert store.episodes == [(task.name, seed) for seed in range(4)]
        assert not list(store.spool.iterdir())
    dataset = open_lerobot(root)
    assert len(dataset) == 16
    for seed in range(4):
        episode = made_up_episode(task, seed, 4)
        recorded = np.stack([dataset[4 * seed + step]["action"].numpy() for step in range(4)])
        np.testing.assert_array_equal(recorded, episode["action"])


def _break(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Make the next write stop as if it had been killed at that moment."""

    def stop(*_: object, **__: object) -> None:
        raise InterruptedError

    move = shutil.move

    def move_some(path: Path, target: Path) -> str:
        if Path(path).name == "info.json":
            raise InterruptedError
        return move(path, target)

    match moment:
        case "while writing":
            monkeypatch.setattr(LeRobotDataset, "finalize", stop)
        case "before moving":
            monkeypatch.setattr(dataset_files, "finish_interrupted", stop)
        case "while moving":
            monkeypatch.setattr(shutil, "move", move_some)
        case "at the end":
            monkeypatch.setattr(RecordingStore, "_clean_spool", stop)


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    """And nothing in the folder is touched."""
    root = tmp_path / "demos"
    write_folder(root, [3])
    before = sorted(path.stat().st_mtime_ns for path in root.rglob("*.*"))
    others = make_task("FetchReach", 24)
    with (
        pytest.raises(ValueError, match=r"(?s)noise: 0.2 recorded, 0.3 asked for.*cameras"),
        RecordingStore.open(root, {"noise": 0.3}, [others]),
    ):
        pass
    assert sorted(path.stat().st_mtime_ns for path in root.rglob("*.*")) == before


def test_positions_of_things_are_columns(tmp_path: Path) -> None:
    """As many numbers as a point has, the same in every episode; other columns are refused."""
    root, task = tmp_path / "demos", make_task("FetchReach", 16)
    with RecordingStore.open(root, SETTINGS, [task], ("gripper",)) as store:
        store.write([spool(store, task, seed, 3) for seed in (0, 1)])
    dataset = open_lerobot(root)
    assert dataset.features["points.gripper"]["shape"] == (3,)
    wanted = made_up_episode(task, seed=1, length=3)["points.gripper"]
    np.testing.assert_array_equal(dataset[4]["points.gripper"].numpy(), wanted[1])
    with (
        pytest.raises(ValueError, match=r"points: \['gripper'\] recorded, \['target'\] now"),
        RecordingStore.open(root, SETTINGS, [task], ("target",)),
    ):
        pass


def test_a_recording_from_before_there_were_positions_goes_on_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All of it has one layout, and who records is told."""
    root = tmp_path / "demos"
    task = write_folder(root, [3])
    stamp = root / ".recording" / "settings.json"
    kept = json.loads(stamp.read_text())
    assert kept.pop("points") == []
    stamp.write_text(json.dumps(kept))
    with RecordingStore.open(root, SETTINGS, [task], ("gripper",)) as store:
        store.write([spool(store, task, 1, 4)])
    assert "goes on without them; with another --root they are recorded" in caplog.text
    dataset = open_lerobot(root)
    assert len(dataset) == 7
    assert "points.gripper" not in dataset.features


def test_settings_may_change_while_nothing_is_recorded(tmp_path: Path) -> None:
    """After a refusal for want of space, say; the last ones then hold."""
    task = make_task("FetchReach", 16)
    for noise in (0.2, 0.3):
        with RecordingStore.open(tmp_path / "demos", {"noise": noise}, [task]) as store:
            pass
    with RecordingStore.open(tmp_path / "demos", {"noise": 0.3}, [task]) as store:
        spool(store, task, seed=0, length=3)
    with (
        pytest.raises(ValueError, match=r"noise: 0\.3 recorded, 0\.2 asked for"),
        RecordingStore.open(tmp_path / "demos", SETTINGS, [task]),
    ):
        pass


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    """Nobody's files are mixed with ours."""
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="no recording of ours"):
        record(RecordConfig(task=("FetchReach",), root=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_second_recorder_is_refused(tmp_path: Path) -> None:
    """Two writers would spoil each other's files."""
    task = make_task("FetchReach", 16)
    config = RecordConfig(task=("FetchReach",), root=tmp_path / "demos", **TINY)
    with (
        RecordingStore.open(config.folder, config.settings, [task]),
        pytest.raises(OSError, match=f"^.*another process records into {config.folder}$"),
    ):
        record(config)


def test_tasks_with_other_privileged_state_go_into_other_folders(tmp_path: Path) -> None:
    """One data set has one layout."""
    config = RecordConfig(task=("FetchReach", "FetchPush"), root=tmp_path / "demos")
    with pytest.raises(ValueError, match="separate folders"):
        record(config)
    assert not config.folder.exists()


def test_full_disk_is_refused_before_anything_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the fix in the message."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(OSError, match=r"MB are free.*another --root") as caught:
        record(RecordConfig(task=("FetchReach",), root=tmp_path / "demos"))
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "demos" / "meta").exists()


def test_a_task_without_a_camera_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written."""
    monkeypatch.setattr(record_module, "make_task", lambda *_: changed(camera_list=())(16))
    with pytest.raises(TaskDeclarationError, match="has no camera, and demonstrations are images"):
        record(RecordConfig(("FetchReach",), 1, tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_a_linked_folder_is_recorded_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever keeps data/ on a larger disk, into which nothing can be renamed."""
    root = tmp_path / "demos"
    task = write_folder(root, [3])
    (root / "data").rename(tmp_path / "disk")
    (root / "data").symlink_to(tmp_path / "disk")
    rename = os.rename

    def refuse_disk(source: Path, target: Path) -> None:
        if "disk" in str(Path(target).resolve()):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_disk)
    with RecordingStore.open(root, SETTINGS, [task]) as store:
        store.write([spool(store, task, seed=1, length=4)])
    assert (root / "data").is_symlink()
    assert len(open_lerobot(root)) == 7


def test_a_killed_worker_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as a script without guard; and nothing of it stays in shared memory."""
    monkeypatch.setattr(record_module, "play_into", die)
    config = RecordConfig(task=("FetchReach",), root=tmp_path / "demos", **TINY)
    with pytest.raises(OSError, match=r"worker 0 .*command continues"):
        record(config)


def test_recording_leaves_no_names_in_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill of all its processes at once would leave them there for ever."""
    for name in ("_drive", "import_lerobot"):
        monkeypatch.setattr(record_module, name, lambda *_: None)
    monkeypatch.setattr(SemLock, "__init__", None)  # what would have such a name
    record(RecordConfig(task=("FetchReach",), root=tmp_path / "demos", **TINY))


def test_an_episode_that_a_worker_is_writing_is_left_alone(tmp_path: Path) -> None:
    """Clearing the spool after a group took the file from under a worker."""
    task = make_task("FetchReach", 16)
    with RecordingStore.open(tmp_path / "demos", SETTINGS, [task]) as store:
        unfinished = store.spool / "FetchReach-7.tmp"
        unfinished.touch()
        store.write([spool(store, task, 0, 4)])
        assert [*store.spool.iterdir()] == [unfinished]
    # A killed worker's is removed when the folder is opened again, where nobody writes.
    with RecordingStore.open(tmp_path / "demos", SETTINGS, [task]) as store:
        assert not any(store.spool.iterdir())


def test_unwritable_root_is_explained(tmp_path: Path) -> None:
    """A file lies where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="another --root"):
        record(RecordConfig(task=("FetchReach",), root=tmp_path / "file" / "demos"))


# --- the whole, with images


@pytest.mark.render
def test_kill_and_continue_equals_an_uninterrupted_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """SIGKILL in the middle, then the same command."""
    asked, whole = (
        RecordConfig(task=("FetchReach",), episodes=6, root=tmp_path / name, **TINY)
        for name in ("killed", "whole")
    )
    _kill_a_recording(asked.folder, after_episodes=2)
    assert open_lerobot(asked.folder).meta.total_episodes >= 2
    monkeypatch.setattr(record_module, "_GROUP", 2)
    summary = record(asked)
    assert summary.episodes == 6
    assert 0 < summary.added <= 4
    assert collect.main(asked) == 0
    assert "6 episodes, " in (said := capsys.readouterr().out)
    assert "(0 episodes added" in said
    record(whole)
    assert _frames(asked.folder) == _frames(whole.folder)


def _frames(root: Path) -> list[tuple[object, ...]]:
    """Everything in the data set's files, with which two recordings are compared."""
    import pyarrow.parquet as pq

    tables = [
        pq.read_table(file).to_pylist() for file in sorted((root / "data").rglob("*.parquet"))
    ]
    return [tuple(map(str, row.values())) for table in tables for row in table]


def _kill_a_recording(root: Path, after_episodes: int) -> None:
    """Start a recording of five episodes, SIGKILL it, and see its workers go too."""
    command = (
        "import sys, sim.record as r; from pathlib import Path; r._GROUP = 2\n"
        "if __name__ == '__main__':\n"
        " r.record(r.RecordConfig(('FetchReach',), 5, Path(sys.argv[1]), image_size=16, workers=1))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command, str(root)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline_s = time.monotonic() + 120
    journal = root / "meta" / "recording.json"
    # LeRobot reads what is there without a repair once `info.json` is, which comes last.
    while not (journal.exists() and (root / "meta" / "info.json").exists()):
        assert process.poll() is None, "the recording ended before it could be killed"
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(json.loads(journal.read_text())["episodes"]) >= after_episodes
    while _group_lives(process.pid):
        assert time.monotonic() < deadline_s, "workers outlived their parent"
        time.sleep(0.05)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
