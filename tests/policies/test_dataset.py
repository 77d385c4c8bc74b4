"""The demonstrations' cache and the batches drawn from it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_folder import made_up_episode, write_folder
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from policies.imitation import frame_cache
from policies.imitation.dataset import DemoBatch, DemoDataset
from policies.imitation.demonstrations import Demonstrations
from policies.imitation.frame_cache import open_frames
from scripts.bench import data as bench_data
from scripts.bench.data import BenchDataConfig
from sim.tasks.base import Task
from vla.contract import ContractMismatchError

LENGTHS = [5, 7, 4, 6]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Task]:
    """Four episodes; tests that change the folder take a copy."""
    root = tmp_path_factory.mktemp("data") / "FetchReach"
    return root, write_folder(root, LENGTHS)


@pytest.fixture
def copied(recorded: tuple[Path, Task], tmp_path: Path) -> Path:
    """A copy without cache."""
    ignore = shutil.ignore_patterns(".cache")
    return shutil.copytree(recorded[0], tmp_path / "FetchReach", ignore=ignore)


def test_every_frame_equals_what_lerobot_decodes(recorded: tuple[Path, Task]) -> None:
    """Pixels, proprioception, action, instruction and time."""
    root, _ = recorded
    dataset = DemoDataset(root, chunk_length=1)
    lerobot = LeRobotDataset("local/x", root=root, video_backend="pyav")
    batch = dataset.batch(np.arange(len(dataset)))
    assert len(batch) == len(lerobot) == sum(LENGTHS)
    observation = batch.observation()
    for row in range(len(lerobot)):
        frame = lerobot[row]
        for camera in dataset.spec.cameras:
            image = frame[f"observation.images.{camera.name}"].permute(1, 2, 0)
            decoded = (image * 255).round().to(torch.uint8)
            assert torch.equal(observation.images[camera.name][row], decoded)
        assert torch.equal(batch.proprio[row], frame["observation.state"])
        assert torch.equal(batch.actions[row, 0], frame["action"])
        assert batch.instructions[row] == frame["task"]
        assert batch.time_s[row].item() == pytest.approx(frame["timestamp"].item())


def test_chunks_repeat_the_last_action_at_the_end(recorded: tuple[Path, Task]) -> None:
    """By hand: the first entry of an action counts the steps of its episode."""
    dataset = DemoDataset(recorded[0], chunk_length=4)
    batch = dataset.batch(np.array([0, 2, 4, 5, 11]))  # episodes of 5 and 7 frames
    counted = batch.actions[:, :, 0].int().tolist()
    assert counted == [[0, 1, 2, 3], [2, 3, 4, 4], [4, 4, 4, 4], [0, 1, 2, 3], [6, 6, 6, 6]]
    assert batch.is_pad.int().tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 1, 1, 1],
        [0, 0, 0, 0],
        [0, 1, 1, 1],
    ]
    assert batch.time_s.tolist() == pytest.approx([0.0, 0.08, 0.16, 0.0, 0.24])


def test_episodes_are_held_out_whole(recorded: tuple[Path, Task]) -> None:
    """And the same ones for the same seed."""
    dataset = DemoDataset(recorded[0], chunk_length=2, heldout_fraction=0.5, seed=3)
    train, heldout = dataset.rows("train"), dataset.rows("heldout")
    assert sorted([*train, *heldout]) == list(range(sum(LENGTHS)))
    lengths = [len(rows) for split in ("train", "heldout") for rows in dataset.episodes(split)]
    assert sorted(lengths) == sorted(LENGTHS)
    assert len(dataset.episodes("heldout")) == 2
    again = DemoDataset(recorded[0], chunk_length=2, heldout_fraction=0.5, seed=3)
    np.testing.assert_array_equal(again.rows("heldout"), heldout)
    splits = {tuple(DemoDataset(recorded[0], 2, 0.5, seed).rows("heldout")) for seed in range(10)}
    assert len(splits) > 1
    drawn = dataset.sample(np.random.default_rng(0), 200)
    assert set(drawn.proprio[:, 0].tolist()) == set(dataset.batch(train).proprio[:, 0].tolist())
    found = torch.cat([dataset.batch(rows).proprio for rows in dataset.episodes("heldout")])
    assert torch.equal(found, dataset.batch(heldout).proprio)


@pytest.mark.parametrize(("count", "expected"), [(1, 0), (2, 1), (4, 1), (14, 1), (15, 2)])
def test_at_least_one_of_two_episodes_is_held_out(count: int, expected: int) -> None:
    """A tenth of them, but never none of several, so that a loss can choose a checkpoint."""
    data = DemoDataset.__new__(DemoDataset)
    data._first_episodes = np.array([0, count])
    data._episode = np.arange(count)
    rows = data._split(np.ones(count, bool), fraction=0.1, seed=0)
    assert (len(rows["train"]), len(rows["heldout"])) == (count - expected, expected)


def test_the_first_episodes_alone_are_held_out_too(recorded: tuple[Path, Task]) -> None:
    """Whatever else lies in the folder."""
    for seed in range(8):
        data = DemoDataset(recorded[0], 2, 0.1, seed, episodes=2)
        assert [len(data.episodes(split)) for split in ("train", "heldout")] == [1, 1]
    assert len(DemoDataset(recorded[0], 2, 0.99).episodes("train")) == 1


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_saved_generator_resumes_exactly(recorded: tuple[Path, Task], kind: str) -> None:
    """The batches after a restore are those that would have come."""
    dataset = DemoDataset(recorded[0], chunk_length=2)
    if kind == "numpy":
        generator = np.random.default_rng(5)
        dataset.sample(generator, 8)
        state = json.loads(json.dumps(generator.bit_generator.state))
        restored = np.random.default_rng()
        restored.bit_generator.state = state
    else:
        generator = torch.Generator().manual_seed(5)
        dataset.sample(generator, 8)
        restored = torch.Generator()
        restored.set_state(generator.get_state())
    first, second = dataset.sample(generator, 8), dataset.sample(restored, 8)
    assert _same(first, second)
    assert not _same(first, dataset.sample(generator, 8))


def _same(first: DemoBatch, second: DemoBatch) -> bool:
    pairs = zip(first.images.values(), second.images.values(), strict=True)
    return torch.equal(first.actions, second.actions) and all(torch.equal(a, b) for a, b in pairs)


def test_statistics_are_those_of_the_training_episodes(recorded: tuple[Path, Task]) -> None:
    """Against numpy on the episodes as they were made up."""
    root, task = recorded
    dataset = DemoDataset(root, chunk_length=3, heldout_fraction=0.25)
    heldout = {len(rows) for rows in dataset.episodes("heldout")}
    episodes = [
        made_up_episode(task, seed, length)
        for seed, length in enumerate(LENGTHS)
        if length not in heldout
    ]
    for name in ("action", "proprio"):
        values = np.concatenate([episode[name] for episode in episodes]).astype(np.float64)
        ours = getattr(dataset.statistics(), name)
        np.testing.assert_allclose(ours.mean, values.mean(0), rtol=1e-5)
        np.testing.assert_allclose(ours.std, values.std(0), rtol=1e-5)
        np.testing.assert_allclose(ours.q99, np.quantile(values, 0.99, axis=0), rtol=1e-5)
        np.testing.assert_array_equal(ours.max, values.max(0).astype(np.float32))


def test_folders_are_concatenated(recorded: tuple[Path, Task], tmp_path: Path) -> None:
    """Each keeps its images and instructions."""
    push = tmp_path / "FetchPush"
    write_folder(push, [3, 8], "FetchPush")
    both = DemoDataset([recorded[0], push], chunk_length=4, heldout_fraction=0.5)
    first, second = DemoDataset(recorded[0], 4), DemoDataset(push, 4)
    rows = np.array([25, 3, 22, 21])  # frames 3, ., 0 of Push, and the last of Reach
    mixed = both.batch(rows)
    apart = [second.batch(rows[[0, 2]] - 22), first.batch(rows[[1, 3]])]
    for camera, images in mixed.images.items():
        assert torch.equal(images[[0, 2]], apart[0].images[camera])
        assert torch.equal(images[[1, 3]], apart[1].images[camera])
    assert torch.equal(mixed.actions[[1, 3]], apart[1].actions)
    assert mixed.is_pad[3].tolist() == [False, True, True, True]
    assert [len(rows) in (3, 8) for rows in both.episodes("heldout")] == [False, False, True]


def test_folders_of_other_contracts_are_refused(
    recorded: tuple[Path, Task], tmp_path: Path
) -> None:
    """The message names both folders and the leaf; none of them has been decoded."""
    for name, size in (("large", 24), ("larger", 32)):
        write_folder(tmp_path / name, [3], image_size=size)
    with pytest.raises(ContractMismatchError, match=r"(?s)large.*FetchReach.*cameras"):
        DemoDataset([tmp_path / "large", recorded[0]], chunk_length=2)
    # As robots of their own, of which another folder's words are missing.
    folders, words = [tmp_path / "large", tmp_path / "larger"], tmp_path / "words.json"
    with pytest.raises(FileNotFoundError, match=r"words\.json"):
        Demonstrations(folders, 2, names=("a", "b"), paraphrases=words)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Demonstrations([folders[0], tmp_path / "nowhere"], 2, names=("a", "b"))
    assert not (folders[0] / ".cache").exists()


def test_bench_prints_a_table(recorded: tuple[Path, Task], capsys: pytest.CaptureFixture) -> None:
    """The benchmark against LeRobot's loader, in miniature."""
    config = BenchDataConfig(recorded[0], 8, 3, rounds=2, round_s=0.1, worker_counts=(0,))
    bench_data.main(config)
    lines = capsys.readouterr().out.splitlines()
    ratio = next(line for line in lines if line.startswith("| ratio"))
    assert float(ratio.split("|")[2]) > 1


# --- the cache


def test_cache_is_built_once(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second opening decodes nothing."""
    open_frames(copied)
    monkeypatch.setattr(frame_cache, "_build", None)
    assert len(open_frames(copied)) == sum(LENGTHS)
    assert all(isinstance(p, np.memmap) for p in open_frames(copied).images.values())


def test_cache_is_rebuilt_when_the_source_changed(copied: Path) -> None:
    """And the old one is removed."""
    open_frames(copied)
    (old,) = (path.name for path in (copied / ".cache").iterdir() if path.is_dir())
    other = copied.parent / "other"
    write_folder(other, LENGTHS[::-1])
    for part in ("data", "meta"):  # lengths of episodes stand in both
        shutil.rmtree(copied / part)
        shutil.copytree(other / part, copied / part)
    assert open_frames(copied).action[:7, 0].tolist() == [0, 1, 2, 3, 4, 5, 0]
    (new,) = (path.name for path in (copied / ".cache").iterdir() if path.is_dir())
    assert new != old


def test_interrupted_build_leaves_no_cache(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an exception nor the remains of a killed process are taken for one."""
    (copied / ".cache" / "0123.tmp").mkdir(parents=True)
    write = Path.write_text

    def fail(path: Path, text: str) -> int:
        if path.name == "manifest.json":
            raise OSError(28, "No space left on device")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match=r"No space left.*free space"):
        open_frames(copied)
    assert [path.name for path in (copied / ".cache").iterdir()] == ["lock"]
    monkeypatch.undo()
    assert len(open_frames(copied)) == sum(LENGTHS)


def test_full_disk_is_refused_first(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the space that is needed; to write to a mapped file would end the process."""

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match=r"needs 0 MB, \d+ MB are free.*free space there"):
            open_frames(copied)
    assert [path.name for path in (copied / ".cache").iterdir()] == ["lock"]
    assert len(open_frames(copied)) == sum(LENGTHS)


def test_two_processes_may_open_at_once(copied: Path) -> None:
    """One builds, the other waits for it, both read the same."""
    command = (
        "import sys; from pathlib import Path; from policies.imitation.frame_cache import *\n"
        "print(sum(p.sum() for p in open_frames(Path(sys.argv[1])).images.values()))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", command, str(copied)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    sums = [int(process.communicate(timeout=120)[0].split()[-1]) for process in started]
    here = sum(images.sum() for images in open_frames(copied).images.values())
    assert sums[0] == sums[1] == here
    assert len([path for path in (copied / ".cache").iterdir() if path.is_dir()]) == 1


def test_weights_share_the_samples_between_folders(
    recorded: tuple[Path, Task], tmp_path: Path
) -> None:
    """Whatever their lengths; without weights by length, and the same draws as ever."""
    other = tmp_path / "other"
    write_folder(other, [2, 2])
    roots = [recorded[0], other]
    for generator in (np.random.default_rng(0), torch.Generator().manual_seed(0)):
        weighted = DemoDataset(roots, chunk_length=2, heldout_fraction=0.0, weights=(1, 3))
        rows = weighted.rows()[weighted.draw(generator, 4000)]
        assert abs((rows >= sum(LENGTHS)).mean() - 0.75) < 0.03
        assert set(rows) == set(range(len(weighted)))
    plain = DemoDataset(roots, chunk_length=2, heldout_fraction=0.0)
    drawn = plain.draw(torch.Generator().manual_seed(5), 9)
    same = torch.randint(len(plain), (9,), generator=torch.Generator().manual_seed(5))
    assert drawn.tolist() == same.tolist()
    for bad in ((1,), (1, 0), (1, 2, 3), (1, float("nan")), (1, float("inf"))):
        with pytest.raises(ValueError, match="one weight > 0 a folder"):
            DemoDataset(roots, chunk_length=2, weights=bad)


# --- refusals


def test_episodes_and_instructions_are_left_out(recorded: tuple[Path, Task]) -> None:
    """The first episodes alone, and none whose words name every part."""
    root, _ = recorded
    every = DemoDataset(root, 2, 0.0)
    first = DemoDataset(root, 2, 0.0, episodes=2)
    assert first.rows().tolist() == np.concatenate(every.episodes()[:2]).tolist()
    some = DemoDataset(root, 2, 0.0, without=("do+thing 1", "do+thing 7"))
    assert set(some.batch(some.rows()).instructions) == {"do thing 0"}
    with pytest.raises(ValueError, match="nothing is left"):
        DemoDataset(root, 2, 0.0, without=("do",))


def test_missing_folder_names_the_command_and_the_neighbours(
    recorded: tuple[Path, Task], tmp_path: Path
) -> None:
    """What a person who mistyped needs."""
    wrong = recorded[0].with_name("FetchPush")
    with pytest.raises(FileNotFoundError, match=r"FetchReach.*vla collect --task FetchPush"):
        DemoDataset(wrong, chunk_length=2)
    with pytest.raises(FileNotFoundError, match="none nearby"):
        DemoDataset(tmp_path / "nowhere" / "x", chunk_length=2)
    assert not wrong.exists()


def test_folder_without_contract_says_what_it_can_of_itself(copied: Path) -> None:
    """A LeRobot data set from elsewhere, for instance: the same frames, limits as recorded."""
    own = DemoDataset(copied, chunk_length=2)
    (copied / "meta" / "contract.json").unlink()
    derived = DemoDataset(copied, chunk_length=2)
    assert derived.spec.action.names == own.spec.action.names
    assert derived.spec.action.high[0] == max(LENGTHS) - 1
    assert _same(derived.batch(np.arange(5)), own.batch(np.arange(5)))


def test_damaged_or_half_moved_files_are_refused(copied: Path) -> None:
    """Both messages name the way out."""
    (file,) = (copied / "data").rglob("*.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"data/.*parquet cannot be read .*an intact copy"):
        DemoDataset(copied, chunk_length=2)
    file.write_bytes(whole)
    info = copied / "meta" / "info.json"
    info.write_text(info.read_text().replace('"total_frames": 22', '"total_frames": 20'))
    with pytest.raises(ValueError, match=r"lists 20 frames but holds 22.*vla collect"):
        DemoDataset(copied, chunk_length=2)


def test_refuses_arguments_and_empty_splits(recorded: tuple[Path, Task]) -> None:
    """Before anything is drawn."""
    for bad in ({"chunk_length": 0}, {"heldout_fraction": 1.0}):
        with pytest.raises(ValueError, match="chunk_length >= 1"):
            DemoDataset(recorded[0], **({"chunk_length": 2} | bad))  # pyright: ignore[reportArgumentType]
    dataset = DemoDataset(recorded[0], chunk_length=2, heldout_fraction=0.0)
    with pytest.raises(ValueError, match="heldout split is empty"):
        dataset.sample(np.random.default_rng(0), 4, "heldout")
