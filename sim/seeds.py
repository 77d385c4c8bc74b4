"""Which initial states are for what: named ranges of episode seeds that cannot overlap.

An equal seed is an equal episode, so a policy has to be evaluated on seeds other than those that it
was trained, selected or tuned on. These ranges keep them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class SeedRange:
    """The seeds `start` to `stop - 1`.

    Attributes:
        name: what they are for.
        start: the first one.
        stop: the first one that no longer belongs to it.

    Raises:
        ValueError: it is empty, or begins below 0.
    """

    name: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a seed range needs 0 <= start < stop: {self}")

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, seed: int) -> bool:
        return self.start <= seed < self.stop

    def seeds(self, count: int, offset: int = 0) -> range:
        """`count` consecutive seeds, the first of them `offset` after the range's own first.

        Raises:
            ValueError: a negative number, or seeds beyond the range.
        """
        if count < 0 or offset < 0:
            raise ValueError(f"count and offset must not be negative: {count}, {offset}")
        # Refused rather than wrapped around: the seeds beyond belong to another purpose.
        if offset + count > len(self):
            raise ValueError(
                f"{count} seeds from {self.start + offset} on leave the {self.name} range "
                f"{self.start} to {self.stop - 1}: take fewer episodes or begin earlier"
            )
        return range(self.start + offset, self.start + offset + count)

    def block(self, index: int, size: int, count: int) -> range:
        """The first `count` seeds of block `index`, where the range is cut into blocks of `size`.

        Runs that differ in `index` share no seed.

        Raises:
            ValueError: more seeds than a block has, or a block beyond the range.
        """
        if count > size:
            raise ValueError(f"{count} seeds asked for, the {self.name} range gives {size} a run")
        # Whole blocks only; the rest of the range stays unused.
        if not 0 <= index < len(self) // size:
            raise ValueError(
                f"seed {index} is none of the {len(self) // size} runs for which the {self.name} "
                f"range {self.start} to {self.stop - 1} has {size} episodes each, from 0"
            )
        return self.seeds(count, index * size)


# Fixed for good: a range that moved would let a trained policy meet its own training states in a
# test.
DEMONSTRATIONS = SeedRange("demonstrations", 0, 500_000)
"""Recorded with the scripted experts."""
GROUNDING = SeedRange("grounding", 500_000, 900_000)
"""Scenes for training the vision-language model to point."""
SELECTION = SeedRange("selection", 900_000, 1_000_000)
"""Choose the best checkpoint of a run."""
DEVELOPMENT = SeedRange("development", 1_000_000, 1_900_000)
"""Evaluation while something is being built. Failures on them may be inspected and mended, so a
success rate on them may be too high."""
FINAL = SeedRange("final", 1_900_000, 2_000_000)
"""Played once a release, for the table that is published; nothing else uses them."""
TRAINING = SeedRange("training", 2_000_000, 2**53)
"""Collected by reinforcement learning; the last range, since thousands of environments need many
seeds. Below 2^53, so that no reader of a JSON file rounds them."""


def by_name(ranges: Iterable[SeedRange]) -> dict[str, SeedRange]:
    """Name → range.

    Raises:
        ValueError: a name repeats, or two ranges share a seed.
    """
    # Sorted, two ranges overlap exactly where a neighbour does.
    ordered = sorted(ranges, key=lambda one: one.start)
    for one, other in pairwise(ordered):
        if one.stop > other.start:
            raise ValueError(f"seed ranges overlap: {one} and {other}")
    named = {one.name: one for one in ordered}
    if len(named) != len(ordered):
        raise ValueError(f"two seed ranges have one name: {[one.name for one in ordered]}")
    return named


# At import, so that an overlap cannot reach a run.
RANGES = by_name((DEMONSTRATIONS, GROUNDING, SELECTION, DEVELOPMENT, FINAL, TRAINING))

MOST_ITERATIONS = 100_000
"""Of one reinforcement learning run."""
GROUNDING_EPISODES = 20_000
"""Most scenes of one task that one grounding seed draws."""


def training_seeds(seed: int, iteration: int, episodes: int) -> range:
    """What one iteration of reinforcement learning collects; no other one of any run has them.

    Args:
        seed: of the run.
        iteration: from 0.
        episodes: an iteration, the same throughout the run.

    Raises:
        ValueError: the run's seed or the iteration is too large (or negative) for the range.
    """
    if not 0 <= iteration < MOST_ITERATIONS:
        raise ValueError(f"iteration {iteration} is not within 0 to {MOST_ITERATIONS - 1}")
    # A run has a block with room for all iterations, so that a longer run stays within it.
    return TRAINING.block(seed, MOST_ITERATIONS * episodes, MOST_ITERATIONS * episodes)[
        iteration * episodes : (iteration + 1) * episodes
    ]


def grounding_seeds(seed: int, episodes: int) -> range:
    """The scenes of one grounding seed, the same ones for every task.

    Raises:
        ValueError: too many episodes, or a seed beyond the range.
    """
    # A block of the full size whatever `episodes` is: more frames of one seed extend it without
    # touching the next seed's.
    return GROUNDING.block(seed, GROUNDING_EPISODES, episodes)
