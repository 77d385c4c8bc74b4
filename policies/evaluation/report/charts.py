"""Small charts as inline SVG, coloured by the page's style sheet, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from policies.evaluation.report.data import Curve, Distribution
from policies.evaluation.report.formatting import number
from policies.evaluation.statistics import Interval

COLOURS = 8  # in page.css
WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24  # margins
SMOOTH_FROM = 40  # points from which a smoothed line is drawn over the raw one
MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One curve of a chart; `colour` counts through the page's palette."""

    name: str
    curve: Curve
    colour: int
    dashed: bool = False


def line_chart(
    lines: Sequence[Line],
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Curves over a shared step axis; values that are not finite leave a gap and are counted.

    Axes are as long as the curves, unless their ranges are given.
    """
    # Of each line its steps and values, float64 [points].
    drawn = [(line, *_arrays(line.curve)) for line in lines]
    finite = [(x[good], y[good]) for _, x, y in drawn if (good := np.isfinite(y)).any()]
    if not finite:
        return '<p class="none">no finite value</p>'
    xs, ys = (np.concatenate(parts) for parts in zip(*finite, strict=True))
    x_range = x_range or _padded(xs.min(), xs.max(), 0)
    y_range = y_range or _padded(ys.min(), ys.max(), 0.06)
    parts = _axes(x_range, y_range)
    for line, x, y in drawn:
        smooth = len(y) >= SMOOTH_FROM
        style = f"line c{line.colour}{' dashed' if line.dashed else ''}"
        # The raw curve stays visible: smoothing alone would hide collapses.
        parts.append(_path(x, y, x_range, y_range, f"{style} raw" if smooth else style, line.name))
        if smooth:
            parts.append(_path(x, _smoothed(y), x_range, y_range, style, line.name))
    if broken := sum(int((~np.isfinite(y)).sum()) for _, _, y in drawn):
        parts.append(
            f'<text class="broken" x="{LEFT + 6}" y="{TOP + 12}">{broken} not finite</text>'
        )
    return _svg(WIDTH, HEIGHT, parts)


def distribution_chart(distribution: Distribution, colour: int) -> str:
    """A distribution over the steps: the outer and the inner quantiles as bands, and the median."""
    x = np.asarray(distribution.steps, dtype=float)
    levels = sorted(distribution.quantiles)
    # [levels, steps]
    values = np.array([distribution.quantiles[level] for level in levels], dtype=float)
    # A band needs both of its edges: steps that lack a quantile are left out.
    good = np.isfinite(values).all(axis=0)
    if not good.any():
        return '<p class="none">no finite value</p>'
    x, values = x[good], values[:, good]
    x_range = _padded(x.min(), x.max(), 0)
    y_range = _padded(values.min(), values.max(), 0.06)
    parts = _axes(x_range, y_range)
    # Outermost first, so that the inner band is drawn on top of it.
    for row in range(len(levels) // 2):
        below, above = values[row], values[-1 - row]
        # Along the lower edge and back along the upper one.
        corners = [*zip(x, below, strict=True), *zip(x[::-1], above[::-1], strict=True)]
        points = (_place(step, value, x_range, y_range) for step, value in corners)
        listed = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polygon class="band c{colour}" points="{listed}"/>')
    median = values[len(levels) // 2]
    parts.append(_path(x, median, x_range, y_range, f"line c{colour}", "median"))
    return _svg(WIDTH, HEIGHT, parts)


def rate_bar(rate: Interval, colour: int) -> str:
    """A success rate as a bar with the whisker of its interval."""
    width, height = 130, 18
    # Rates from 0 to 1 onto the track, in pixels.
    low, value, high = (4 + (width - 8) * x for x in (rate.low, rate.value, rate.high))
    return _svg(
        width,
        height,
        [
            f'<rect class="track" x="4" y="5" width="{width - 8}" height="8" rx="2"/>',
            f'<rect class="bar c{colour}" x="4" y="5" width="{value - 4:.1f}" height="8" rx="2"/>',
            f'<path class="whisker" d="M{low:.1f} 9H{high:.1f}M{low:.1f} 5v8M{high:.1f} 5v8"/>',
        ],
    )


def _arrays(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(curve.steps, dtype=float), np.asarray(curve.values, dtype=float)
    if len(x) > MOST_POINTS:
        # Means of equal blocks: a page need not carry every point of a long run.
        blocks = np.array_split(np.arange(len(x)), MOST_POINTS)
        # A block that holds NaN has a NaN mean: the gap stays visible.
        x, y = (np.array([part[block].mean() for block in blocks]) for part in (x, y))
    return x, y


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Mean of the neighbours, over a twentieth of the curve; gaps are left out."""
    # At the ends, and beside gaps, the mean is over the neighbours that exist.
    half = max(1, len(values) // 40)
    good = np.isfinite(values)
    kernel = np.ones(2 * half + 1)
    total = np.convolve(np.where(good, values, 0), kernel, mode="same")
    count = np.convolve(good.astype(float), kernel, mode="same")
    return np.divide(total, count, out=np.full_like(values, np.nan), where=count > 0)


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    if low == high:
        # A constant curve has no range, and `_place` divides by it.
        margin = abs(low) * 0.1 or 1.0
        return low - margin, high + margin
    return low - share * (high - low), high + share * (high - low)


def _place(x: float, y: float, x_range: tuple, y_range: tuple) -> tuple[float, float]:
    across = (x - x_range[0]) / (x_range[1] - x_range[0])
    up = (y - y_range[0]) / (y_range[1] - y_range[0])
    # SVG counts y from the top down.
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def _path(x: np.ndarray, y: np.ndarray, x_range: tuple, y_range: tuple, style: str, name: str):
    commands, pen_down = [], False
    for step, value in zip(x, y, strict=True):
        if not math.isfinite(value):
            # The next finite point starts a new stroke: no line across a gap.
            pen_down = False
            continue
        px, py = _place(step, value, x_range, y_range)
        commands.append(f"{'L' if pen_down else 'M'}{px:.1f} {py:.1f}")
        pen_down = True
    d = "".join(commands)
    if len(commands) == 1:
        d += "h0.01"  # a single point shows through its round cap
    return f'<path class="{style}" d="{d}"><title>{escape(name)}</title></path>'


def _axes(x_range: tuple[float, float], y_range: tuple[float, float]) -> list[str]:
    parts = []
    for value in _ticks(*y_range, 4):
        _, y = _place(x_range[0], value, x_range, y_range)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>'
        )
    for value in _ticks(*x_range, 4):
        x, _ = _place(value, y_range[0], x_range, y_range)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{number(value)}</text>'
        )
    return parts


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values between `low` and `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    # `rough` / `power` lies in [1, 10), so one of these always fits.
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
    first = math.ceil(low / step)
    # Multiples of the step, so that errors do not add up; 1e-9 keeps a tick at the end.
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
