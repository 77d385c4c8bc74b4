"""Which seeds are recorded, and in which order."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from rich.progress import Progress

from sim import record as record_module
from sim.demonstrate import RecordConfig
from sim.record import _SeedPlan


class Outcomes:
    """The part of a store that a seed plan reads."""

    def __init__(self) -> None:
        self.succeeded: set[tuple[str, int]] = set()
        self.failed: set[tuple[str, int]] = set()
        self.episodes: list[tuple[str, int]] = []


def make_plan(outcomes: Outcomes, episodes: int = 3) -> _SeedPlan:
    """For task A, whose seeds begin at 10."""
    config = RecordConfig(task=("A",), episodes=episodes, first_seed=10)
    return _SeedPlan("A", config, outcomes)  # pyright: ignore[reportArgumentType]


def test_plan_keeps_the_first_successes_in_seed_order() -> None:
    """Whatever order the workers finish in."""
    outcomes = Outcomes()
    plan = make_plan(outcomes)
    assert [plan.next_seed() for _ in range(4)] == [10, 11, 12, None]
    outcomes.succeeded |= {("A", 10), ("A", 12)}
    assert plan.ready() == [("A", 10)]  # 11 is still being played
    outcomes.failed |= {("A", 11)}
    assert plan.ready() == [("A", 10), ("A", 12)]
    assert [plan.next_seed(), plan.next_seed()] == [13, None]
    outcomes.succeeded |= {("A", 13)}
    outcomes.episodes = [("A", 10)]
    assert plan.ready() == [("A", 12), ("A", 13)]


def test_plan_fills_the_gap_that_a_kill_left() -> None:
    """Seeds after the gap do not stand in for it."""
    outcomes = Outcomes()
    outcomes.succeeded |= {("A", 10), ("A", 12), ("A", 15)}
    plan = make_plan(outcomes)
    assert [plan.next_seed(), plan.next_seed()] == [11, None]


def test_plan_gives_up_on_an_unfit_expert() -> None:
    """Rather than play for ever."""
    outcomes = Outcomes()
    outcomes.failed |= {("A", seed) for seed in range(10, 30)}
    with pytest.raises(ValueError, match="lower --noise"):
        make_plan(outcomes).next_seed()


def test_the_next_task_is_played_while_a_group_is_written() -> None:
    """Workers idled at the end of every task, which was half the time of a suite."""
    config = RecordConfig(task=("A", "B"), episodes=2, first_seed=10, workers=2)
    played: list[tuple[str, int]] = []
    written: list[tuple[list[tuple[str, int]], int]] = []

    class Pool:
        def submit(self, _work: Any, _config: Any, name: str, seed: int, _spool: Any):
            played.append((name, seed))
            future: Future[bool] = Future()
            future.set_result(True)
            return future

    class Store(Outcomes):
        spool = None

        def register(self, key: tuple[str, int], succeeded: bool) -> None:
            assert succeeded
            self.succeeded.add(key)

        def write(self, keys: list[tuple[str, int]]) -> None:
            written.append((keys, len(played)))
            self.episodes += keys

    store = Store()
    plans = [_SeedPlan(name, config, store) for name in ("A", "B")]  # pyright: ignore[reportArgumentType]
    with Progress(disable=True) as bar:
        record_module._drive(config, store, plans, Pool(), bar)  # pyright: ignore[reportArgumentType]
    first, second = [("A", 10), ("A", 11)], [("B", 10), ("B", 11)]
    assert played == first + second
    assert written == [(first, 4), (second, 4)]
