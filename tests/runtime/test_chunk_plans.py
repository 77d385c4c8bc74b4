"""Which step of which chunk is executed: late chunks, blended chunks, chunks that join."""

from __future__ import annotations

import numpy as np
import pytest
from vla_runtime.execution import (
    ChunkPlan,
    ChunkTiming,
    RecedingPlan,
    TemporalEnsemble,
    make_plan,
    soft_mask,
)

LENGTH, PERIOD_S = 8, 0.02
TIMING = ChunkTiming(LENGTH, PERIOD_S, grace_s=0.2)


def chunk(number: int) -> np.ndarray:
    """[8, 2]: step i of chunk n is 100 n + i."""
    return np.repeat(100.0 * number + np.arange(LENGTH, dtype=np.float32)[:, None], 2, axis=1)


def play(plan: ChunkPlan, ticks: int, delay: int) -> list[float | None]:
    """What is executed when every chunk is there `delay` ticks after its observation."""
    executed, ready_at, number = [], None, 0
    for tick in range(ticks):
        if ready_at == tick:
            plan.accept(chunk(number), tick * PERIOD_S)
            ready_at, number = None, number + 1
        if ready_at is None and plan.due():
            plan.ask()
            ready_at = tick + delay
            if delay == 0:
                plan.accept(chunk(number), tick * PERIOD_S)
                ready_at, number = None, number + 1
        step = plan.step()
        executed.append(None if step is None else float(step.command[0]))
    return executed


def test_whole_chunks_skip_nothing_while_the_robot_waits() -> None:
    """The robot stands still during a decision, so the chunk still begins where the robot is."""
    plan = RecedingPlan(TIMING, LENGTH)
    assert play(plan, 22, delay=2) == [
        *(None, None, 0, 1, 2, 3, 4, 5, 6, 7),
        *(None, None, 100, 101, 102, 103, 104, 105, 106, 107),
        *(None, None),
    ]
    assert plan.skipped == 0


def test_a_late_chunk_skips_the_steps_that_were_executed_meanwhile() -> None:
    """Decided after 4 steps, there 2 ticks later: step 2 of it follows step 5 of the old one."""
    plan = RecedingPlan(TIMING, 4)
    assert play(plan, 12, delay=2) == [None, None, 0, 1, 2, 3, 4, 5, 102, 103, 104, 105]
    assert plan.skipped == 2


def test_a_chunk_that_comes_at_once_replaces_the_old_one() -> None:
    """Without a delay this is receding horizon as in simulation."""
    plan = RecedingPlan(TIMING, 3)
    assert play(plan, 8, delay=0) == [0, 1, 2, 100, 101, 102, 200, 201]


def test_a_chunk_that_comes_after_the_old_one_has_ended() -> None:
    """The 4 steps that were executed since its observation are skipped, the wait is not."""
    plan = RecedingPlan(TIMING, 4)
    executed = play(plan, 16, delay=6)
    assert executed[6:] == [0, 1, 2, 3, 4, 5, 6, 7, None, None]
    assert play(RecedingPlan(TIMING, 4), 20, delay=6)[16:] == [104, 105, 106, 107]


def test_expiry_counts_from_when_the_chunk_came() -> None:
    """8 steps, 2 of them skipped, take 6 periods; a delay of 0.2 s is forgiven."""
    plan = RecedingPlan(TIMING, 4)
    plan.ask()
    plan.accept(chunk(0), 10.0)
    step = plan.step()
    assert step is not None
    assert step.expires_s == pytest.approx(10.0 + 8 * PERIOD_S + 0.2)
    for _ in range(3):
        plan.step()
    plan.ask()
    plan.step(), plan.step()
    plan.accept(chunk(1), 11.0)
    step = plan.step()
    assert step is not None
    assert step.command[0] == 102
    assert step.expires_s == pytest.approx(11.0 + 6 * PERIOD_S + 0.2)


def test_ensemble_is_the_weighted_mean_by_hand() -> None:
    """Three chunks predict step 2: 2 (oldest), 101 and 200, with weights 1, e^-d, e^-2d."""
    decay = 0.5
    plan = TemporalEnsemble(TIMING, decay)
    executed = play(plan, 3, delay=0)
    weights = np.exp(-decay * np.arange(3))
    assert executed[2] == pytest.approx(weights @ [2, 101, 200] / weights.sum(), rel=1e-6)


def test_ensemble_aligns_late_chunks() -> None:
    """A chunk that came one tick late takes part with its second step."""
    plan = TemporalEnsemble(TIMING, 100.0)  # the oldest chunk alone
    assert play(plan, 6, delay=1) == pytest.approx([None, 0, 1, 2, 3, 4], nan_ok=True)
    newest = TemporalEnsemble(TIMING, -100.0)
    # Chunk 1 is observed at tick 1, before step 0 is executed, and comes at tick 2: step 1 of it.
    assert play(newest, 5, delay=1) == [None, 0, 101, 201, 301]


def test_ensemble_forgets_chunks_that_have_ended() -> None:
    """After the only chunk is played there is nothing, instead of an index out of range."""
    plan = TemporalEnsemble(TIMING)
    plan.ask()
    plan.accept(chunk(0), 0.0)
    assert all(plan.step() is not None for _ in range(LENGTH))
    assert plan.step() is None


def test_soft_mask_by_hand() -> None:
    """H = 8, s = 3, d = 2: two steps fixed, c = 3/4, 2/4, 1/4 between, the last three free."""
    between = [0.75 * (np.exp(0.75) - 1), 0.5 * (np.exp(0.5) - 1), 0.25 * (np.exp(0.25) - 1)]
    expected = [1.0, 1.0, *(np.array(between) / (np.e - 1)), 0.0, 0.0, 0.0]
    np.testing.assert_allclose(soft_mask(LENGTH, 3, 2), expected, atol=1e-6)


def test_real_time_chunks_keep_what_runs_meanwhile() -> None:
    """The measured delay decides which steps of the old chunk are fixed, and they stay exactly."""
    plan = RecedingPlan(TIMING, 3, inpaint=True)
    assert plan.ask() is None, "the first chunk is free"
    plan.accept(chunk(0), 0.0)
    for _ in range(3):
        plan.step()
    free = plan.ask()
    assert free is not None
    np.testing.assert_array_equal(free.target[:5], chunk(0)[3:])
    np.testing.assert_array_equal(free.target[5:], 0)
    assert not (free.weight == 1).any(), "no delay was measured yet"
    plan.step(), plan.step()  # two steps pass until it is there
    plan.accept(chunk(1), 0.0)
    plan.step()
    joined = plan.ask()
    assert joined is not None
    assert (joined.weight == 1).sum() == 2, "the longest delay so far"
    np.testing.assert_array_equal(joined.target[:2], chunk(1)[3:5])
    plan.accept(chunk(2), 0.0)
    executed = [step.command[0] for _ in range(3) if (step := plan.step()) is not None]
    assert executed == [103, 104, 202]


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        ("receding:0", "from 1 to 8, got 0"),
        ("receding:9", "from 1 to 8, got 9"),
        ("receding", "is none of chunk"),
        ("ensemble:nan", "from -100.0 to 100.0, got nan"),
        ("realtime:8", "from 1 to 7, got 8"),
        ("realtime:x", "no whole number"),
        ("chunk:3", "is none of chunk"),
        ("fast", "is none of chunk"),
    ],
)
def test_unusable_executions_are_refused(execution: str, message: str) -> None:
    """With what is valid."""
    with pytest.raises(ValueError, match=f"execution '{execution}'.*{message}"):
        make_plan(execution, TIMING, can_inpaint=True)


def test_real_time_needs_a_policy_that_inpaints() -> None:
    """And the message has the way that works without."""
    with pytest.raises(ValueError, match="cannot inpaint; receding:STEPS"):
        make_plan("realtime:3", TIMING, can_inpaint=False)


@pytest.mark.parametrize(
    "execution", ["chunk", "receding:2", "ensemble", "ensemble:0", "realtime:2"]
)
def test_every_execution_plays(execution: str) -> None:
    """Each of them executes something once a chunk is there."""
    plan = make_plan(execution, TIMING, can_inpaint=True)
    assert None not in play(plan, 5, delay=0)
