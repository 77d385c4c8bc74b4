"""`vla plan`: run a planner over exact dynamics on held-out initial states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rich.progress import Progress

from policies.evaluation.statistics import wilson_interval
from policies.planning.cem import Cem, CemConfig
from policies.planning.mppi import Mppi, MppiConfig
from policies.planning.receding import PlannerPolicy
from policies.rollout import Episode, Episodes, rollout
from scripts.initial_states import States, choose_seeds
from sim.dynamics import ExactDynamics
from sim.vector import CpuVecEnv
from vla.settings import require_numbers


@dataclass(frozen=True)
class PlanConfig:
    """What to plan, with what, and on which episodes.

    Attributes:
        task: registry name.
        planner: which of the two planners.
        episodes: initial states.
        states: which ones, see `sim/seeds.py`.
        execute_steps: control steps executed of each plan.
        threads: simulator threads; None is one per CPU core.
        seed: of the planner's sampling.
        cem: settings of CEM.
        mppi: settings of MPPI.
    """

    task: str = "FetchPush"
    planner: Literal["cem", "mppi"] = "cem"
    episodes: int = 20
    states: States = "development"
    execute_steps: int = 5
    threads: int | None = None
    seed: int = 0
    cem: CemConfig = field(default_factory=CemConfig)
    mppi: MppiConfig = field(default_factory=MppiConfig)

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("episodes", "execute_steps", "threads"))


def make_policy(config: PlanConfig, env: CpuVecEnv) -> PlannerPolicy:
    """The configured planner as a policy for `env`, which must run `config.task`."""
    # The environment and the search have a copy of the task each: searching cannot disturb what is
    # played.
    planner = Cem(config.cem) if config.planner == "cem" else Mppi(config.mppi)
    dynamics = ExactDynamics(config.task, config.threads)
    return PlannerPolicy(
        dynamics,
        planner,
        env.export_state,
        env.spec,
        config.execute_steps,
        config.seed,
        rest_action=env.task.rest_action,
    )


def main(config: PlanConfig) -> int:
    """Plan every episode; print success, decision rate and simulator steps."""
    seeds = choose_seeds(config.task, config.states, config.episodes)
    ended: list[Episode] = []
    # One environment, so that the decision rate is that of one robot with the whole machine.
    with CpuVecEnv(config.task, num_envs=1, num_workers=1, render=False) as env, Progress() as bar:
        policy = make_policy(config, env)
        # Rounded up: the last chunk of an episode may be cut short by its end.
        decisions = -(-env.episode_length // config.execute_steps) * config.episodes
        progress = bar.add_task(f"{config.planner} on {config.task}", total=decisions)
        try:
            rollout(env, policy, seeds, lambda _: bar.advance(progress), ended.append)
        finally:
            # Also after an error or Ctrl-C: the episodes that ended are summarised.
            if ended:
                _describe(ended, policy, config)
    return 0


def _describe(episodes: list[Episode], policy: PlannerPolicy, config: PlanConfig) -> None:
    if len(episodes) < config.episodes:
        print(f"stopped after {len(episodes)} of {config.episodes} episodes")
    played = Episodes(tuple(episodes))
    for name, outcome in (("end", played.success_at_end), ("ever", played.success_ever)):
        rate = wilson_interval(int(outcome.sum()), outcome.size)
        print(f"success {name:5} {rate.value:.3f} (95% {rate.low:.3f} to {rate.high:.3f})")
    print(f"decision rate {policy.decision_rate_hz:.2f} Hz, {config.execute_steps} steps executed")
    print(f"simulator     {policy.steps_per_decision:.0f} control steps a decision")
