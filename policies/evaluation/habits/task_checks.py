"""Whether a run learns what it should: its data, its critic, its success and its reward."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from policies.evaluation.habits.run_metrics import RunMetrics
from policies.evaluation.habits.verdict import Finding, graded
from policies.evaluation.proxy import SIGNIFICANT, difference_error, parted


def fixed_policy(run: RunMetrics) -> Iterator[Finding]:
    """What a policy that stands still must show: equal ratios, honest ends, rewards and scales."""
    if (error := run.mean("policy/ratio_error")) is not None:
        state = graded(error, 1e-2, 1e-1)
        yield Finding(
            state,
            f"samples keep their likelihood until the update to {error:.1g}",
            ""
            if state == "green"
            else "the actor differs between collecting and learning: switch dropout off, and keep "
            "its normalisation fixed in between",
        )
    yield from _ends(run)
    yield from _reward_sign(run)
    yield from _scales(run)
    yield from _warmup(run)


def _ends(run: RunMetrics) -> Iterator[Finding]:
    """Whether ends inside the task look like a time limit."""
    share, same = run.late("collect/terminated"), run.late("collect/terminated_at_longest")
    if share is None:
        return
    if share > 0.5 and same is not None and same > 0.95:
        yield Finding(
            "red",
            f"{share:.0%} of episodes terminate, all after the same number of steps: a time limit "
            "is taken for a termination",
            "report time limits as truncated, so that their last value is bootstrapped",
        )
    else:
        yield Finding("green", f"{share:.0%} of episodes terminate, the others are truncated")


def _reward_sign(run: RunMetrics) -> Iterator[Finding]:
    correlation = run.mean("collect/return_success_correlation")
    if correlation is None:
        return
    count = len(run.values("collect/return_success_correlation"))
    episodes = count * (run.setting("training.episodes") or 1)
    # Standard error of a correlation of 0 over so many episodes.
    noise = SIGNIFICANT / math.sqrt(max(episodes, 1))
    wrong = correlation < -max(0.1, noise)
    yield Finding(
        "red" if wrong else "green",
        f"an episode's return goes {'against' if wrong else 'with'} its success "
        f"(correlation {correlation:.2f})",
        "turn the sign of the reward, or drop the term that pays for failing" if wrong else "",
    )


def _scales(run: RunMetrics) -> Iterator[Finding]:
    """Whether what goes into and out of the policy has the size that it was normalised to."""
    if (size := run.last("collect/input_rms")) is not None:
        off = max(size / 5, 0.02 / size) if size > 0 else math.inf
        yield _scale(off, f"the policy's inputs have size {size:.2g} where about 1 is meant")
    if (size := run.last("collect/action_rms")) is not None:
        off = 0.01 / size if size > 0 else math.inf
        yield _scale(off, f"actions have size {size:.2g} where the limits are 1")
    if (share := run.last("collect/action_at_limit")) is not None:
        yield _scale(share / 0.9, f"{share:.0%} of action values are at a limit")


def _scale(off: float, reason: str) -> Finding:
    state = graded(off, 1, 1.05)
    advice = (
        "the statistics do not fit the environment: compare units and limits of the checkpoint's "
        "contract with the task's, and the data set the statistics came from"
    )
    return Finding(state, reason, "" if state == "green" else advice)


def _warmup(run: RunMetrics) -> Iterator[Finding]:
    """Collections of one policy must agree."""
    steps = run.series.get("policy/gradient_steps", {})
    # Off-policy methods learn while they collect: none of their collections is of one policy.
    first = min(steps, default=0)
    success = run.series.get("collect/success_end", {})
    # The iteration of the first update still collected with the policy of the start.
    fixed = [value for step, value in sorted(success.items()) if step <= first]
    episodes = run.setting("training.episodes")
    if len(fixed) < 2 or not episodes:
        return
    spread, p = max(fixed) - min(fixed), sum(fixed) / len(fixed)
    limit = 4 * difference_error(p, episodes)
    yield Finding(
        "green" if spread <= limit else "amber",
        f"{len(fixed)} collections of the unchanged policy succeed "
        f"{min(fixed):.0%} to {max(fixed):.0%} of the time",
        ""
        if spread <= limit
        else "more episodes an iteration; check that environments are reset to their seeds",
    )


def greedy_evaluation(run: RunMetrics) -> Iterator[Finding]:
    """Greedy success on states that are not learned from: against the start, the best, samples."""
    greedy = run.series.get("success/end", {})
    if len(greedy) < 2:
        return
    scores = [greedy[step] for step in sorted(greedy)]
    first, best, last, episodes = scores[0], max(scores), scores[-1], _evaluated(run)
    if episodes < 20:
        yield Finding(
            "amber",
            f"only {episodes} episodes an evaluation: the choice of a checkpoint is chance",
            "at least 50 --selection-episodes",
        )
    reason = f"greedy success {first:.0%} at the start, {best:.0%} at best, {last:.0%} now"
    if first - last > SIGNIFICANT * difference_error(first, episodes):
        yield Finding("red", f"{reason}: worse than the start", _SLOWER)
    elif best - last > SIGNIFICANT * difference_error(best, episodes):
        yield Finding("amber", f"{reason}: it has fallen; the best checkpoint is kept", _SLOWER)
    else:
        yield Finding("green", reason)
    step = max(greedy)
    sampled = run.series.get("collect/success_end", {}).get(step)
    # Start states chosen by a curriculum are easier or harder than those of evaluation.
    if sampled is not None and "curriculum/frontier" not in run.series:
        noise = SIGNIFICANT * difference_error(sampled, episodes)
        if sampled - last > max(0.15, noise):
            yield Finding(
                "amber",
                f"samples succeed {sampled:.0%} of the time, the greedy policy {last:.0%}",
                "a lower log_std_end, so that the policy does not come to need its noise",
            )


_SLOWER = "a smaller learning_rate or target_kl, more episodes an iteration, reference_kl above 0"


def _evaluated(run: RunMetrics) -> int:
    """Episodes of an evaluation."""
    if (logged := run.last("success/episodes")) is not None:
        return int(logged)
    # Runs before this was logged say it in their settings: "200 states, seeds ...".
    found = re.match(r"\d+", str(run.setting("selection")))
    return int(found[0]) if found else 100


def prediction(run: RunMetrics) -> Iterator[Finding]:
    """The critic's values against what was earned."""
    # Runs before the first was logged have the second, which holds the critic's own final values.
    names = ("critic/earned_explained", "critic/explained_variance")
    name = next((name for name in names if name in run.series), names[0])
    if (explained := run.late(name)) is None:
        return
    # Where all returns are alike there is nothing to explain. Advantages of critics of actions are
    # no returns.
    alike = run.late("calibration/std" if run.is_off_policy else "advantage/std")
    if alike is not None and alike < 1e-6 and explained <= 0:
        yield Finding("amber", "returns do not vary, so nothing can be predicted of them")
        return
    state = "red" if explained <= 0.02 else "amber" if explained < 0.2 else "green"
    # A critic that has learned from a few collections alone is young, not dead.
    if state == "red" and len(run.values(name)) < _YOUNG:
        state = "amber"
    dead = ", no more than a constant would: the critic is dead" if state == "red" else ""
    yield Finding(
        state,
        f"values explain {explained:.0%} of the variance of what was earned{dead}",
        "" if state == "green" else _BETTER_CRITIC,
    )
    groups = run.calibration()
    spread = run.last("calibration/std")
    if groups and spread:
        off = sum(predicted - actual for predicted, actual in groups) / len(groups)
        state = graded(abs(off) / spread, 0.7, 2)
        side = "above" if off > 0 else "below"
        yield Finding(
            state,
            f"values lie {abs(off):.2g} {side} it, where it varies by {spread:.2g}",
            "" if state == "green" else _BETTER_CRITIC,
        )


_YOUNG = 5  # iterations
_BETTER_CRITIC = (
    "more warmup_iterations and critic_epochs, a larger critic_learning_rate, --critic privileged"
)


def frozen_batch(run: RunMetrics) -> Iterator[Finding]:
    """Copies of actor and critic that learned one small batch again and again must fit it."""
    fitted = run.last("frozen_batch/explained_variance")
    if fitted is not None:
        state = "green" if fitted > 0.9 else "amber" if fitted > 0.5 else "red"
        yield Finding(
            state,
            f"the critic explains {fitted:.0%} of a batch that it trained on alone",
            ""
            if state == "green"
            else "a larger critic_learning_rate; check that the critic's inputs hold the goal and "
            "that its optimizer has its weights",
        )
    likelier = run.last("frozen_batch/likelier")
    if likelier is not None:
        state = "green" if likelier > 0.02 else "red"
        wrong = "nothing moves" if abs(likelier) <= 0.02 else "it learns the wrong way"
        yield Finding(
            state,
            "samples of a batch trained on alone became likelier as they were better "
            f"(correlation {likelier:.2f})" + ("" if state == "green" else f": {wrong}"),
            "" if state == "green" else "a larger learning_rate; check the sign of the loss",
        )


def curriculum(run: RunMetrics) -> Iterator[Finding]:
    """Whether episodes are begun where there is something to learn."""
    frontier = run.late("curriculum/frontier")
    if frontier is not None:
        mastered = run.last("curriculum/mastered") or 0.0
        state = "green" if frontier >= 0.2 or mastered >= 0.9 else "amber"
        yield Finding(
            state,
            f"{frontier:.0%} of episodes begin where success is between 10 and 90%; "
            f"{mastered:.0%} of the difficulties are mastered",
            "" if state == "green" else "more levels, or easier start states among the candidates",
        )
        return
    success = run.late("collect/success_end")
    if success is None:
        return
    if success < 0.02:
        yield Finding(
            "red",
            f"{success:.0%} of episodes succeed: there is nothing to learn from",
            "easier start states: --curriculum frontier, or more demonstrations",
        )
    else:
        yield Finding(
            "green" if success >= 0.1 else "amber",
            f"no curriculum; {success:.0%} of episodes succeed",
            "" if success >= 0.1 else "easier start states: --curriculum frontier",
        )


def reward_hacking(run: RunMetrics) -> Iterator[Finding]:
    """The reward that is learned from against true success, both greedy."""
    name = "success/proxy" if "success/proxy" in run.series else "success/return"
    proxy, success = run.series.get(name, {}), run.series.get("success/end", {})
    steps = sorted(proxy.keys() & success.keys())
    if len(steps) < 2:
        return
    found = parted([proxy[s] for s in steps], [success[s] for s in steps], _evaluated(run))
    alarms = run.series.get("reward/alarm", {})
    if not found and (raised := [step for step, alarm in sorted(alarms.items()) if alarm]):
        yield Finding(
            "amber",
            f"the alarm was raised in iteration {raised[-1]}, and is off now",
            "watch it: reward and success go together less than they should",
        )
    learned = "the reward learned from" if name == "success/proxy" else "the return"
    yield Finding(
        "red" if found else "green",
        found
        or f"{learned} and success go together: {proxy[steps[0]]:.3g} and {success[steps[0]]:.0%} "
        f"at first, {proxy[steps[-1]]:.3g} and {success[steps[-1]]:.0%} now",
        "learn from the sparse reward, add what the reward forgets, or stop at the best checkpoint"
        if found
        else "",
    )
