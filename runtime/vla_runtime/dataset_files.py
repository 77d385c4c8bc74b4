"""Episodes into a LeRobotDataset v3 that is readable at any moment, whatever is killed when.

LeRobot's own writer fills a staging folder, which is renamed once it is whole; its files are then
moved into the data set, and those of an interrupted move at the next start.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vla_runtime.contract import RobotSpec

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

# Two threads that import one package at once may each see it half made.
_IMPORT_LOCK = threading.Lock()


@contextmanager
def recording_lock(root: Path, work: Path) -> Iterator[None]:
    """Keep other processes from recording into a data set; a crash leaves no stale lock.

    Args:
        root: of the data set, for the message.
        work: folder for what is not finished; it exists.

    Raises:
        BlockingIOError: another process records there.
    """
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, f"another process records into {root}") from error
        yield


def add_episodes(
    root: Path,
    work: Path,
    spec: RobotSpec,
    features: dict[str, dict[str, Any]],
    write: Callable[[LeRobotDataset, Path], None],
) -> None:
    """Append a group of episodes, all or none of them.

    Args:
        root: of the data set, which is created where there is none.
        work: folder for what is not finished, on the same disk.
        spec: gives the rate and the robot's name.
        features: LeRobot's description of a frame.
        write: adds the episodes to the writer, and what else belongs beside LeRobot's metadata to
            the `meta` folder it is given.
    """
    staging = work / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        writer = _writer(root, staging, spec, features)
        _silence_progress_bars()
        write(writer, staging / "meta")
        writer.finalize()
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)  # on a full disk, its room is needed
        raise
    staging.rename(work / "ready")  # from here on the group counts, whatever happens
    finish_interrupted(root, work)


def finish_interrupted(root: Path, work: Path) -> None:
    """Move a complete group in, undo an incomplete one; may be repeated after a kill."""
    shutil.rmtree(work / "staging", ignore_errors=True)
    ready = work / "ready"
    if not ready.is_dir():
        return
    files = [path for part in ("data", "meta") for path in (ready / part).rglob("*.*")]
    # info.json last: it is what makes LeRobot see the new episodes
    for path in sorted(files, key=lambda path: (path.name == "info.json", path)):
        target = root / path.relative_to(ready)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)  # also where data/ is a link to another disk
    shutil.rmtree(ready)


def robot_features(spec: RobotSpec) -> dict[str, dict[str, Any]]:
    """LeRobot's description of images, proprioception and action."""
    # PNG rather than video: on Fetch at 96 px it took 1.8 kB an image where H.264 (GOP 2, CRF 18)
    # took 0.5, gave 788 random frames/s where that gave 276, and changes no pixel.
    images = {
        f"observation.images.{camera.name}": {
            "dtype": "image",
            "shape": (camera.height, camera.width, 3),
            "names": ["height", "width", "channels"],
        }
        for camera in spec.cameras
    }
    return images | {
        "observation.state": vector_feature(spec.proprio.names),
        "action": vector_feature(spec.action.names),
    }


def vector_feature(names: Sequence[str]) -> dict[str, Any]:
    """LeRobot's description of a float32 vector."""
    return {"dtype": "float32", "shape": (len(names),), "names": list(names)}


def import_lerobot() -> type[LeRobotDataset]:
    """LeRobot's data set class, quiet; imported late, since a refusal should not wait for it."""
    with _IMPORT_LOCK:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
    logging.getLogger("lerobot").setLevel(logging.WARNING)
    return LeRobotDataset


def _writer(
    root: Path, staging: Path, spec: RobotSpec, features: dict[str, dict[str, Any]]
) -> LeRobotDataset:
    writer = import_lerobot()
    repo_id, rate = f"local/{root.name}", spec.control_rate_hz
    if not (root / "meta" / "info.json").exists():
        return writer.create(
            repo_id,
            # LeRobot declares a whole number, and computes times with any: rounded, 12.5 steps a
            # second would be recorded as 12.
            cast("int", int(rate) if rate.is_integer() else rate),
            features,
            root=staging,
            robot_type=spec.robot,
            use_videos=False,
            video_backend="pyav",
        )
    # The writer reads the metadata only, and always begins new files.
    shutil.copytree(root / "meta", staging / "meta")
    return writer.resume(repo_id, root=staging, video_backend="pyav")


def _silence_progress_bars() -> None:
    # Before each group, since LeRobot switches them on again when it has read its metadata.
    import datasets

    datasets.disable_progress_bars()
