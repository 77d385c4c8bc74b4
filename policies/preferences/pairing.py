"""Which segments are compared, and which comparisons are held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from policies.preferences.comparisons import Comparison, ComparisonError, Pair, Segment


def make_pairs(
    trajectories: Mapping[str, tuple[int, int]],
    segment_chunks: int | None,
    count: int | None,
    seed: int,
) -> list[Pair]:
    """Pairs of segments of episodes from the same initial state, in a random order.

    From the same state, so that what differs is what was done; and so that all comparisons of a
    state can be held out together.

    Args:
        trajectories: seed and number of chunks, by name.
        segment_chunks: chunks of a segment, drawn from anywhere in the episode; None compares
            whole episodes.
        count: the most pairs; None is one of every two episodes. More than that are only of
            segments.
        seed: of the order and of the segments.
    """
    by_seed: dict[int, list[str]] = {}
    for name in sorted(trajectories):
        by_seed.setdefault(trajectories[name][0], []).append(name)
    couples = [couple for names in by_seed.values() for couple in combinations(names, 2)]
    rng = np.random.default_rng(seed)
    pairs: dict[Pair, None] = {}  # a set that keeps the order
    # Segments may be drawn twice; a bound, since short episodes have few of them.
    rounds = 1
    if count is not None and segment_chunks is not None and couples:
        rounds += 4 * count // len(couples)
    for _ in range(rounds):
        for index in rng.permutation(len(couples)):
            # Either may be shown first: a person prefers one side.
            names = rng.permutation(couples[index]).tolist()
            pair = Pair(*(_segment(n, trajectories[n][1], segment_chunks, rng) for n in names))
            pairs[pair] = None
            if len(pairs) == count:
                return list(pairs)
    return list(pairs)


def _segment(name: str, chunks: int, length: int | None, rng: np.random.Generator) -> Segment:
    if length is None or length >= chunks:
        return Segment(name, 0, chunks)
    start = int(rng.integers(chunks - length + 1))
    return Segment(name, start, start + length)


def split_by_state(
    comparisons: Sequence[Comparison], seeds: Mapping[str, int], fraction: float, seed: int
) -> tuple[list[Comparison], list[Comparison]]:
    """Comparisons to learn from, and those of initial states that are held out.

    Args:
        comparisons: of trajectories from equal initial states.
        seeds: initial state of each trajectory.
        fraction: share of the states that are held out.
        seed: decides which.

    Raises:
        ComparisonError: nothing is left to learn from, or nothing to measure with.
    """
    states = sorted({seeds[c.pair.first.trajectory] for c in comparisons})
    order = np.random.default_rng(seed).permutation(len(states))
    # By state: two segments of one episode are nearly equal, and would leak.
    heldout = {states[i] for i in order[: max(1, round(fraction * len(states)))]}
    parts: tuple[list[Comparison], list[Comparison]] = ([], [])
    for comparison in comparisons:
        parts[seeds[comparison.pair.first.trajectory] in heldout].append(comparison)
    if not parts[0] or not parts[1]:
        raise ComparisonError(
            f"{len(comparisons)} comparisons of {len(states)} initial states leave "
            f"{len(parts[0])} to learn from and {len(parts[1])} held out: both are needed; compare "
            "more states"
        )
    return parts
