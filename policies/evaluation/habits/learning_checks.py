"""How the policy learns: KL, entropy, gradients, advantages, spread of its actions.

Thresholds are far outside what healthy runs of this repository log (docs/learners/habits.md), so
that green is the rule and red is worth stopping a run for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from policies.evaluation.habits.run_metrics import RunMetrics
from policies.evaluation.habits.verdict import Finding, graded

_FROZEN_KL = 1e-9  # nats a control step; a step of 1e-4 standard deviations gives 5e-9


def kl(run: RunMetrics) -> Iterator[Finding]:
    """Distance from the policy that collected, each iteration, and from the start."""
    moved = run.values("policy/kl")
    if moved:
        target = run.setting("algorithm.target_kl")
        # Without a target of its own a method is held to PPO's default, 0.05.
        most, limit = _largest(moved), 0.05 if target is None else target
        state = graded(most, max(0.3, 3 * limit), max(1.0, 10 * limit))
        advice = "a smaller learning_rate, fewer epochs, or a target_kl that ends them earlier"
        yield Finding(
            state,
            f"an iteration moved the policy by up to {most:.2g} nats a control step",
            "" if state == "green" else advice,
        )
    yield from _frozen(run)


def _frozen(run: RunMetrics) -> Iterator[Finding]:
    """Whether gradient steps move the means at all."""
    steps, distance = (
        run.series.get(n, {}) for n in ("policy/gradient_steps", "policy/reference_kl")
    )
    first = min((step for step, count in steps.items() if count > 0), default=None)
    # It is measured before the update of its iteration, so it shows the updates before.
    later = [value for step, value in distance.items() if first is not None and step > first]
    if len(later) < 2:
        return
    if not math.isfinite(later[-1]):
        yield Finding("red", "its distance from where it started is not finite", _NEARER)
    elif max(map(abs, later)) < _FROZEN_KL:
        yield Finding(
            "red",
            f"the policy is where it started after {len(later)} updates: the actor is frozen",
            "a learning_rate above 0; check that the optimizer holds the weights of this actor",
        )
    else:
        yield Finding("green", f"{later[-1]:.2g} nats from where it started")


_NEARER = "a smaller learning_rate, or a penalty on the KL to the start (reference_kl)"


def entropy(run: RunMetrics) -> Iterator[Finding]:
    """Exploration over time: against its schedule, or against its start for heads of tokens."""
    spread = run.series.get("policy/std", {})
    if spread:
        yield _against_schedule(run, spread)
        return
    values = run.values("policy/entropy")
    if not values:
        return
    if run.is_off_policy:
        yield from _against_target(run, values[-1])
        return
    # A head of tokens draws from a discrete distribution, whose entropy is 0 at least.
    first, last = values[0], values[-1]
    reason = f"entropy {first:.2g} at first, {last:.2g} now, in nats a control step"
    left = last / first if first > 0 else 0.0
    # Written so that NaN, which fails every comparison, is red.
    kept = last >= 0.01 and left >= 0.05
    state = "red" if not kept else "green" if left >= 0.3 else "amber"
    yield Finding(state, reason, "" if state == "green" else _MORE_ENTROPY)


def _against_target(run: RunMetrics, last: float) -> Iterator[Finding]:
    """A soft actor-critic drives its entropy to a target of its own, which may be below 0."""
    if (target := run.last("policy/target_entropy")) is None:
        return
    state = graded((target - last) / max(1.0, abs(target)), 0.5, 1.5)
    yield Finding(
        state,
        f"entropy {last:.2g} nats a chunk, its target is {target:.2g}",
        "" if state == "green" else "a larger temperature_start, a smaller learning_rate",
    )


_MORE_ENTROPY = "an entropy bonus (entropy=0.003), a smaller learning_rate or log_std_learning_rate"


def _against_schedule(run: RunMetrics, spread: Mapping[int, float]) -> Finding:
    step, std = max(spread.items())
    ceiling = math.exp(_ceiling(run, step))
    # Freely learned below the ceiling: a factor of 3 below is amber, one of 10 red.
    ratio = ceiling / std if std > 0 else math.inf
    state = graded(ratio, 3, 10)
    reason = f"standard deviation {std:.2g} where the schedule allows {ceiling:.2g}"
    return Finding(state, reason, "" if state == "green" else _MORE_ENTROPY)


def _ceiling(run: RunMetrics, step: int) -> float:
    """The log standard deviation that exploration is kept below in an iteration."""
    names = ("log_std_start", "log_std_end", "iterations")
    settings = [run.setting(f"training.{name}") for name in names]
    if None in settings:
        # Another trainer, without this schedule: compared with its own start.
        return math.log(max(run.values("policy/std")[0], 1e-12))
    start, end, iterations = settings
    # Steps are counted from 1, the schedule from 0.
    return start + (step - 1) / max(1, iterations) * (end - start)


def gradient(run: RunMetrics) -> Iterator[Finding]:
    """Norms of actor and critic against the norm that they are clipped to."""
    for part, limit in (
        ("policy", run.setting("algorithm.max_grad_norm")),
        ("critic", run.setting("training.max_grad_norm")),
    ):
        norm, clipped = run.late(f"{part}/grad_norm"), run.late(f"{part}/grad_clipped")
        if norm is None:
            continue
        share = "" if clipped is None else f", {clipped:.0%} of steps clipped"
        reason = f"{part}: norm {norm:.2g}{share}"
        if norm == 0:
            yield Finding("red", f"{reason}: nothing is learned", "check the loss: it is constant")
            continue
        # Clipping often is normal with Adam; far beyond it the loss has another scale than meant.
        state = graded(norm / limit, 20, 100) if limit else "green"
        advice = "rewards or advantages of order 1, or a larger max_grad_norm"
        yield Finding(state, reason, "" if state == "green" else advice)


def advantage(run: RunMetrics) -> Iterator[Finding]:
    """Scale and bias of the advantages that weigh the gradient, and whether there is a signal."""
    used, raw = run.late("advantage/used_std"), run.late("advantage/std")
    if used is not None:
        # Where few episodes succeed they are small of themselves, and Adam does not mind.
        off = max(used, 0.03 / used) if used > 0 else math.inf
        state = graded(off, 30, 300)
        yield Finding(
            state,
            f"the gradient is weighed by advantages of standard deviation {used:.2g}",
            "" if state == "green" else "standardise them, or scale the rewards to order 1",
        )
        mean = run.late("advantage/used_mean")
        if mean is not None and used > 0:
            state = graded(abs(mean) / used, 1, 3)
            yield Finding(
                state,
                f"their mean is {mean:.2g}",
                ""
                if state == "green"
                else "a better baseline: more warmup_epochs or critic_epochs",
            )
    if raw is not None and raw < 1e-6:
        what, advice = (
            (
                "the critics tell no action from another",
                "check that they see the action; a larger critic_learning_rate, another reward",
            )
            if run.is_off_policy
            else (
                "all episodes are worth the same",
                "easier start states (--curriculum), more exploration, or another reward",
            )
        )
        yield Finding("red", f"{what} (standard deviation {raw:.2g})", advice)
    elif used is None and raw is not None:
        yield Finding("green", f"standard deviation {raw:.2g} as estimated")


def mode_collapse(run: RunMetrics) -> Iterator[Finding]:
    """Spread of sampled actions at one state, and of mean actions over states."""
    within, between = run.values("policy/sample_spread"), run.values("policy/state_spread")
    if within:
        planned = _planned(run)
        yield _kept("samples at one state", within, planned, (0.3, 0.1))
    if between:
        yield _kept("mean actions of different states", between, 1.0, (0.3, 0.1))


def _planned(run: RunMetrics) -> float:
    """The share of the spread that exploration's own schedule leaves: what it takes is no collapse.

    The spread of tokens grows with the square root of their temperature.
    """
    spread, temperatures = run.series.get("policy/std", {}), run.values("policy/temperature")
    if spread:
        return math.exp(_ceiling(run, max(spread)) - _ceiling(run, min(spread)))
    if not temperatures or run.is_off_policy:
        return 1.0
    return math.sqrt(temperatures[-1] / temperatures[0])


def _kept(what: str, values: list[float], planned: float, shares: tuple[float, float]) -> Finding:
    first, last = values[0], values[-1]
    reason = f"{what} spread by {first:.2g} at first and {last:.2g} now"
    amber, red = shares
    left = last / (first * planned) if first > 1e-6 else 0.0
    # Written so that NaN, which fails every comparison, is red.
    kept = left >= red and last >= 1e-4
    state = "red" if not kept else "green" if left >= amber else "amber"
    advice = (
        "more exploration or sampling at a higher temperature, a smaller learning_rate, a penalty "
        "on the KL to the start (reference_kl)"
    )
    return Finding(state, reason, "" if state == "green" else advice)


def _largest(values: list[float]) -> float:
    """The largest, infinite where one was not finite."""
    return max(v if math.isfinite(v) else math.inf for v in values)
