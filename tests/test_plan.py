"""`vla plan` from its configuration to its printed figures."""

from __future__ import annotations

import pytest

from policies.planning.cem import Cem, CemConfig
from policies.planning.mppi import MppiConfig
from scripts.plan import PlanConfig, main


@pytest.mark.parametrize("planner", ["cem", "mppi"])
def test_plan_reaches_and_prints_success_rate_and_ledger(
    planner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small search solves FetchReach and says what it took."""
    config = PlanConfig(
        task="FetchReach",
        planner=planner,  # pyright: ignore[reportArgumentType]
        episodes=1,
        threads=1,
        cem=CemConfig(planning_horizon=8, samples=12, iterations=2, elites=4),
        mppi=MppiConfig(planning_horizon=8, samples=12, iterations=2),
    )
    assert main(config) == 0
    printed = capsys.readouterr().out
    assert "success ever  1.000" in printed
    assert "simulator     192 control steps a decision" in printed  # 8 x 12 x 2
    assert "Hz, 5 steps executed" in printed


def test_what_was_planned_before_an_interrupt_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its interval, and how many episodes it is of."""
    plan_once, planned = Cem.plan, []

    def plan(*args: object) -> object:
        planned.append(args)
        if len(planned) > 12:  # an episode has ten decisions
            raise KeyboardInterrupt
        return plan_once(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Cem, "plan", plan)
    small = CemConfig(planning_horizon=8, samples=12, iterations=2, elites=4)
    with pytest.raises(KeyboardInterrupt):
        main(PlanConfig(task="FetchReach", episodes=3, threads=1, cem=small))
    printed = capsys.readouterr().out
    assert "stopped after 1 of 3 episodes" in printed
    assert "success ever  1.000" in printed


def test_an_unknown_task_is_refused_with_the_valid_names() -> None:
    """Before any process starts."""
    with pytest.raises(ValueError, match=r"valid names: .*FetchPush"):
        main(PlanConfig(task="FetchFly"))
