"""The emulated arm's camera: images that pass from one process to another."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from so101_process import EmulatedArm
from vla_runtime.contract import Reading
from vla_runtime.robots.config_emulated_camera import EmulatedCameraConfig
from vla_runtime.robots.emulated_camera import EmulatedCamera
from vla_runtime.robots.frame_file import FrameFile
from vla_runtime.robots.lerobot_robot import LeRobotRobot


def test_an_image_is_whole_whenever_it_is_read(tmp_path: Path) -> None:
    """While another thread goes on writing; its time belongs to it."""
    path, end = tmp_path / "frames", threading.Event()
    writer = FrameFile(path, 40, 30, create=True)
    reader = FrameFile(path, 40, 30)
    with pytest.raises(ConnectionError, match="no image yet"):
        reader.read()
    writer.write(np.zeros((40, 30, 3), np.uint8), 0.0)

    def write() -> None:
        for number in range(1, 3000):
            writer.write(np.full((40, 30, 3), number % 256, np.uint8), float(number))
        end.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not end.is_set():
        try:
            image, taken_s = reader.read()
        except ConnectionError:  # the writer was interrupted in the middle of one
            continue
        assert (image == taken_s % 256).all()
    thread.join()
    assert reader.read()[1] == 2999.0


def test_files_that_hold_no_such_images_are_refused(tmp_path: Path) -> None:
    """Not there, empty, or of another size."""
    with pytest.raises(ConnectionError, match="no images in"):
        FrameFile(tmp_path / "none", 4, 4)
    (tmp_path / "empty").touch()
    with pytest.raises(ConnectionError, match="no images in"):
        FrameFile(tmp_path / "empty", 4, 4)
    FrameFile(tmp_path / "frames", 4, 4, create=True)
    with pytest.raises(ConnectionError, match="another size than 4 x 5"):
        FrameFile(tmp_path / "frames", 4, 5)


def test_lerobots_camera_says_how_old_its_image_is(tmp_path: Path) -> None:
    """And refuses one that is too old."""
    path = tmp_path / "frames"
    camera = EmulatedCamera(EmulatedCameraConfig(path=path, width=6, height=4, fps=30))
    with pytest.raises(ConnectionError, match="no images in"):
        camera.connect()
    file = FrameFile(path, 4, 6, create=True)
    with pytest.raises(ConnectionError, match="no image yet"):
        camera.connect(warmup=False)
    assert not camera.is_connected
    assert camera.latest_timestamp is None
    taken_s = time.perf_counter() - 2.0
    file.write(np.full((4, 6, 3), 7, np.uint8), taken_s)
    camera.connect()
    assert camera.is_connected
    assert camera.latest_timestamp == taken_s
    assert (camera.read() == 7).all()
    assert (camera.async_read() == 7).all()
    with pytest.raises(TimeoutError, match="ms old"):
        camera.read_latest()
    assert (camera.read_latest(max_age_ms=600_000) == 7).all()
    camera.disconnect()
    with pytest.raises(ConnectionError, match="not connected"):
        camera.read()


def until_read(robot: LeRobotRobot) -> Reading:
    """A reading whose image is no older than LeRobot's half a second, on a busy machine, too."""
    for _ in range(100):
        try:
            return robot.read()
        except ConnectionError as error:
            trouble = error
            time.sleep(0.1)
    raise trouble


@pytest.mark.render
def test_the_arm_is_seen_moving(tmp_path: Path) -> None:
    """Through the real driver, as on an arm with a camera."""
    frames = tmp_path / "frames"
    arm = EmulatedArm(tmp_path, f"--frames {frames} --width 32 --height 24")
    camera = f"{{front: {{type: emulated, path: {frames}, width: 32, height: 24, fps: 30}}}}"
    robot = arm.robot(more=f"--cameras='{camera}'")
    [view] = robot.spec.cameras
    assert (view.name, view.height, view.width) == ("front", 24, 32)
    robot.connect()
    before = until_read(robot)
    assert before.images["front"].any()
    robot.write(np.array([60.0, 0.0, 0.0, 0.0, 0.0, 50.0]))
    end_s = time.monotonic() + 60
    while ((after := until_read(robot)).images["front"] == before.images["front"]).all():
        assert time.monotonic() < end_s
        time.sleep(0.05)
    assert after.time_s > before.time_s
    robot.disconnect()
    arm.close()
