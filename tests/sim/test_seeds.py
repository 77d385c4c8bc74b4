"""The seed ranges: apart from each other, never left, and where the published figures had them."""

from __future__ import annotations

import pytest

from sim import seeds
from sim.seeds import RANGES, SeedRange, by_name, grounding_seeds, training_seeds


def test_no_two_ranges_share_a_seed() -> None:
    """Each end lies in its own range alone."""
    assert set(RANGES) == {
        *("demonstrations", "grounding", "selection", "development", "training", "final")
    }
    for one in RANGES.values():
        for end in (one.start, one.stop - 1):
            assert [other.name for other in RANGES.values() if end in other] == [one.name]


def test_seed_zero_plays_what_the_published_figures_were_played_on() -> None:
    """Moving a range would silently change every figure."""
    assert seeds.DEMONSTRATIONS.start == 0
    assert grounding_seeds(0, 2000) == range(500_000, 502_000)
    assert seeds.SELECTION.seeds(200) == range(900_000, 900_200)
    assert seeds.DEVELOPMENT.seeds(200) == range(1_000_000, 1_000_200)
    assert training_seeds(0, 0, 100) == range(2_000_000, 2_000_100)
    assert training_seeds(2, 3, 100) == range(22_000_300, 22_000_400)
    assert seeds.FINAL.seeds(2) == range(1_900_000, 1_900_002)


def test_a_range_is_never_left() -> None:
    """The last seed is given, the one after it is refused with the range's name and numbers."""
    block = SeedRange("block", 10, 20)
    assert block.seeds(3, offset=7) == range(17, 20)
    with pytest.raises(ValueError, match=r"4 seeds from 17 on leave the block range 10 to 19"):
        block.seeds(4, offset=7)
    for count, offset in ((-1, 0), (1, -1)):
        with pytest.raises(ValueError, match="negative"):
            block.seeds(count, offset)


@pytest.mark.parametrize("seed", [-1, 20, 1000])
def test_a_grounding_seed_beyond_the_range_is_refused(seed: int) -> None:
    """Seed 1 once drew its scenes from the states that policies are judged on."""
    assert set(grounding_seeds(1, 20_000)).isdisjoint(grounding_seeds(0, 20_000))
    assert grounding_seeds(19, 20_000)[-1] in seeds.GROUNDING
    with pytest.raises(ValueError, match=f"seed {seed} is none of the 20 runs"):
        grounding_seeds(seed, 10)
    with pytest.raises(ValueError, match="20001 seeds asked for"):
        grounding_seeds(0, 20_001)


def test_no_two_iterations_of_any_run_collect_the_same_episode() -> None:
    """The last iteration of a run ends before the first one of the next."""
    last = training_seeds(0, seeds.MOST_ITERATIONS - 1, 100)
    assert last.stop == training_seeds(1, 0, 100).start
    with pytest.raises(ValueError, match="iteration 100000"):
        training_seeds(0, seeds.MOST_ITERATIONS, 100)
    assert training_seeds(1000, 0, 4096)[0] in seeds.TRAINING
    for seed in (-1, 10**12):
        with pytest.raises(ValueError, match=f"seed {seed} is none of the .* runs"):
            training_seeds(seed, 0, 100)


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ((SeedRange("a", 0, 10), SeedRange("b", 9, 20)), "overlap"),
        ((SeedRange("b", 5, 7), SeedRange("a", 0, 10)), "overlap"),
        ((SeedRange("a", 0, 10), SeedRange("a", 10, 20)), "one name"),
    ],
)
def test_ranges_that_share_a_seed_or_a_name_are_refused(
    ranges: tuple[SeedRange, ...], words: str
) -> None:
    """The check that runs on import is not vacuous."""
    with pytest.raises(ValueError, match=words):
        by_name(ranges)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (6, 5)])
def test_an_empty_or_negative_range_is_refused(start: int, stop: int) -> None:
    """Numpy takes no negative seed."""
    with pytest.raises(ValueError, match="0 <= start < stop"):
        SeedRange("block", start, stop)
