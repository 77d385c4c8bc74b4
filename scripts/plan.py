"""`vla plan`: run a planner over exact dynamics on development states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rich.progress import Progress

from policies.evaluation.statistics import wilson_interval
from policies.planning.cem import Cem, CemConfig
from policies.planning.mppi import Mppi, MppiConfig
from policies.planning.receding import PlannerPolicy
from policies.rollout import rollout
from sim.dynamics import ExactDynamics
from sim.seeds import DEVELOPMENT
from sim.vector import CpuVecEnv


@dataclass(frozen=True)
class PlanConfig:
    """What to plan, with what, and on which episodes.

    Attributes:
        task: registry name.
        planner: which of the two planners.
        episodes: initial states.
        first_seed: of the first one; the others follow it.
        execute_steps: control steps executed of each plan.
        threads: simulator threads; None is one per CPU core.
        seed: of the planner's sampling.
        cem: settings of CEM.
        mppi: settings of MPPI.
    """

    task: str = "FetchPush"
    planner: Literal["cem", "mppi"] = "cem"
    episodes: int = 20
    first_seed: int = DEVELOPMENT.start
    execute_steps: int = 5
    threads: int | None = None
    seed: int = 0
    cem: CemConfig = field(default_factory=CemConfig)
    mppi: MppiConfig = field(default_factory=MppiConfig)


def make_policy(config: PlanConfig, env: CpuVecEnv) -> PlannerPolicy:
    """The configured planner as a policy for `env`, which must run `config.task`."""
    planner = Cem(config.cem) if config.planner == "cem" else Mppi(config.mppi)
    dynamics = ExactDynamics(config.task, config.threads)
    return PlannerPolicy(
        dynamics,
        planner,
        env.export_state,
        env.spec,
        config.execute_steps,
        config.seed,
        rest=env.task.rest_action,
    )


def main(config: PlanConfig) -> int:
    """Plan every episode; print success, decision rate and simulator steps."""
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    # One environment, so that the decision rate is that of one robot with the whole machine.
    with CpuVecEnv(config.task, num_envs=1, num_workers=1, render=False) as env, Progress() as bar:
        policy = make_policy(config, env)
        decisions = -(-env.horizon // config.execute_steps) * config.episodes
        progress = bar.add_task(f"{config.planner} on {config.task}", total=decisions)
        result = rollout(env, policy, seeds, on_step=lambda _: bar.advance(progress))
    for name, outcome in (("end", result.success_at_end), ("ever", result.success_ever)):
        rate = wilson_interval(int(outcome.sum()), outcome.size)
        print(f"success {name:5} {rate.value:.3f} (95% {rate.low:.3f} to {rate.high:.3f})")
    print(f"decision rate {policy.decision_rate_hz:.2f} Hz, {config.execute_steps} steps executed")
    print(f"simulator     {policy.steps_per_decision:.0f} control steps a decision")
    return 0
