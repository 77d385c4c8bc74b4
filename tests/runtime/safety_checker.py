"""Recomputes from the written commands whether limits were kept; shares no code with the gate.

Commands are taken one nominal period apart, as the safety page promises. Before the first command
of a segment the robot stood still where it was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

TOLERANCE = 1e-9


def tip(positions: np.ndarray, displacements: np.ndarray) -> np.ndarray:
    """End of a planar arm of links of 1 m, raised by the sum of the displacements, [..., 3]."""
    angles = positions.cumsum(axis=-1)
    return np.stack(
        [np.cos(angles).sum(axis=-1), np.sin(angles).sum(axis=-1), displacements.sum(axis=-1)],
        axis=-1,
    )


@dataclass
class Segment:
    """What was written from one start or reset to the next.

    Attributes:
        start: measured position, [dim]; 0 for displacements.
        times: when each command was written.
        commands: each [dim].
        clock_jumped: backwards or to no number: then nothing is known of the pace.
    """

    start: np.ndarray
    times: list[float] = field(default_factory=list)
    commands: list[np.ndarray] = field(default_factory=list)
    clock_jumped: bool = False


@dataclass
class Checker:
    """Limits as plain arrays, and the largest use of each that was seen (1 is the limit).

    Attributes:
        low: smallest command, [dim].
        high: largest command, [dim].
        velocity: [dim].
        acceleration: [dim].
        jerk: [dim] or None.
        displaces: which dimensions are displacements, [dim].
        period_s: nominal control period.
        box: low and high corner for the tip, [2, 3]; None without a workspace.
    """

    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray | None
    displaces: np.ndarray
    period_s: float
    box: np.ndarray | None = None
    used: dict[str, float] = field(default_factory=dict)
    writes: int = 0
    pauses: int = 0

    def check(self, segment: Segment) -> None:
        """Assert that a segment keeps all limits."""
        if not segment.commands:
            return
        # Long doubles: differences of float64 numbers are then exact enough to judge the last bit.
        x = np.array(segment.commands, np.longdouble)
        assert np.isfinite(x).all(), "a command that is no number"
        start = np.where(self.displaces, 0, segment.start).astype(np.longdouble)
        self.writes += len(x)
        self._check_range(np.vstack([start, x]))
        self._check_workspace(np.vstack([start, x]))
        with np.errstate(invalid="ignore"):  # times that are no numbers
            gaps = np.diff(segment.times, prepend=segment.times[0])
        if not segment.clock_jumped:
            self._check_pace(np.array(segment.times))
        broken = self._first_broken(start, x, gaps)
        assert broken is None, f"command {broken} breaks a limit"

    def _first_broken(self, start: np.ndarray, x: np.ndarray, gaps: np.ndarray) -> int | None:
        """Index of the first command that no pause excuses; None where all is well."""
        kept = self._derivatives_kept(start, x)
        if kept.all():
            return None
        k = int(np.argmin(kept))
        # Only a pause in which the command could have stopped may begin again from rest. A
        # difference of commands looks back by three.
        for p in range(k, max(k - 3, 0), -1):
            before = x[p - 1] - (x[p - 2] if p > 1 else start)
            speed = np.abs(np.where(self.displaces, x[p - 1], before)) / self.period_s
            can_stop = speed <= self.acceleration * gaps[p] * (1 + TOLERANCE)
            if gaps[p] > 1.5 * self.period_s and can_stop.all():
                rest = np.where(self.displaces, 0, x[p - 1])
                later = self._first_broken(rest, x[p:], gaps[p:])
                if later is None:
                    self.pauses += 1
                    return None
                k = max(k, p + later)
        return k

    def _check_range(self, x: np.ndarray) -> None:
        out = np.maximum(np.maximum(self.low - x, x - self.high), 0)
        # Not by a bit beyond the range, unless the robot stood there: then never further out.
        assert (out[1:] <= out[:-1]).all(), "a command outside its range"

    def _check_workspace(self, x: np.ndarray) -> None:
        if self.box is None:
            return
        travelled = x[:, self.displaces].cumsum(axis=0)
        place = tip(x[:, ~self.displaces], travelled)
        out = np.maximum(np.maximum(self.box[0] - place, place - self.box[1]), 0)
        assert (out[1:] <= out[0] + 1e-12).all(), "the tip is out of its workspace"

    def _check_pace(self, times: np.ndarray) -> None:
        ahead = times - np.arange(len(times)) * self.period_s
        burst = (np.maximum.accumulate(ahead) - ahead).max() / self.period_s
        assert burst <= 0.5 + 1e-6, f"writes come {burst} periods too early"

    def _derivatives_kept(self, start: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Which commands keep velocity, acceleration and jerk, [command]."""
        dt = np.longdouble(self.period_s)
        rest = np.zeros_like(start)[None]
        velocity = np.where(self.displaces, x, np.diff(x, axis=0, prepend=start[None])) / dt
        acceleration = np.diff(velocity, axis=0, prepend=rest) / dt
        jerk = np.diff(acceleration, axis=0, prepend=rest) / dt
        kept = np.ones(len(x), bool)
        for label, values, limit in (
            ("velocity", velocity, self.velocity),
            ("acceleration", acceleration, self.acceleration),
            ("jerk", jerk, self.jerk),
        ):
            if limit is None:
                continue
            use = (np.abs(values) / limit).max(axis=1)
            good = use <= 1 + TOLERANCE
            kept &= good
            # What follows a pause is judged again from there.
            until = len(x) if good.all() else int(np.argmin(good))
            self.used[label] = max(self.used.get(label, 0.0), float(use[:until].max(initial=0)))
        return kept
