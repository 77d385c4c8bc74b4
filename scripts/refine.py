"""`vla refine`: improve a cloned policy by reinforcement learning in simulation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from tyro.conf import OmitArgPrefixes

from policies.preferences.learned_reward import load_reward, reward_fingerprint
from policies.reinforcement.off_policy import OFF_POLICY, OffPolicyTrainer
from policies.reinforcement.refinement import Refinement, RefinementConfig
from policies.reinforcement.registry import ALGORITHMS
from policies.reinforcement.rewards import make_reward
from policies.reinforcement.sac import SACConfig
from policies.reinforcement.trainer import OnPolicyConfig, OnPolicyTrainer
from policies.run_folder import RunFolder
from scripts.choice import read_choice
from scripts.curricula import make_curriculum
from scripts.devices import require_device
from scripts.progress import Bar
from scripts.provenance import command_line
from sim.seeds import SELECTION, training_seeds
from sim.tasks.registry import make_task, short_name
from sim.vector import CpuVecEnv
from vla.checkpoint.folder import fingerprint
from vla.model.heads.autoregressive import AutoregressiveHead
from vla.model.heads.base import ActionHead
from vla.model.heads.registry import require_likelihood
from vla.policy import load_policy
from vla.settings import require_numbers

_OF_THE_CRITIC = (
    "critic",
    "warmup_iterations",
    "critic_learning_rate",
    "critic_epochs",
    "critic_minibatch_size",
    "warmup_epochs",
    "max_grad_norm",
)


@dataclass(frozen=True)
class RefineConfig:
    """Refine a clone by reinforcement learning.

    Attributes:
        task: registry name.
        algorithm: ppo, a2c, reinforce, trpo, grpo, rloo, or, off-policy, sac or dsrl; and settings
            of it that are off their defaults: `ppo:clip_range=0.2,epochs=5`; `ppo:help` shows them
            all.
        clone: checkpoint to start from; by default `runs/<task>/clone/best`.
        embodiment: which robot of a clone for several; by default the one that fits the task.
        demonstrations: recorded folder, episodes of which lie in the replay buffer of sac; none by
            default.
        out: run folder; by default `runs/<task>/refined`. Its best checkpoint is `<out>/best`.
        device: where to learn.
        num_envs: environments stepped together. They decide in one batch, about four times as fast
            as one by one; another number rounds otherwise, changes what is collected and can change
            which of two equally good checkpoints is chosen. `vla evaluate`, whose scores are
            reported, decides one by one.
        selection_episodes: initial states that choose the checkpoint; with 100 the choice is mostly
            chance.
        reward: learn from this one in place of the task's own, which is 1 at each successful step:
            distance, motion, which is flawed on purpose, or `model:FOLDER`, the folder of a reward
            model that `vla reward` wrote. Success is watched beside it, and chooses the checkpoint.
            Not beside demonstrations, which bring the task's own.
        curriculum: choose start states (frontier) or how near is good enough (radius) by success so
            far, with settings as for the algorithm; None takes them as the task draws them. Only
            for on-policy algorithms.
        stop_at: end early once greedy success on them reaches this; None never does.
        training: what is the same for every algorithm, but that off-policy ones have no separate
            epochs, schedule or exploration there, and reinforce, grpo and rloo no critic.
    """

    task: str = "FetchPush"
    algorithm: str = "ppo"
    clone: Path | None = None
    embodiment: str | None = None
    demonstrations: Path | None = None
    out: Path | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    num_envs: int = 50
    selection_episodes: int = 200
    reward: str | None = None
    curriculum: str | None = None
    stop_at: float | None = None
    training: OmitArgPrefixes[OnPolicyConfig] = field(default_factory=OnPolicyConfig)

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("num_envs", "selection_episodes"), at_most={"stop_at": 1})
        if self.reward and (self.curriculum or "").partition(":")[0] == "radius":
            raise ValueError("--reward and --curriculum radius both say what is learned from")
        if self.reward and self.demonstrations:
            raise ValueError(
                "--demonstrations bring the task's own reward into the buffer: leave them out, or "
                "--reward"
            )


def main(config: RefineConfig) -> int:
    """Learn, say how well, and where the policy lies."""
    training, runs = config.training, Path("runs") / short_name(config.task)
    # Before anything is loaded: a wrong setting is answered at once.
    require_device(config.device)
    method = read_algorithm(config.algorithm)
    shared = _off_policy_settings(config) if isinstance(method, SACConfig) else training
    _require_critic(config, method)
    require_recorded(config, isinstance(method, SACConfig))
    task = make_task(config.task)
    model = _reward_model(config.reward)
    reward = None
    if config.reward is not None and model is None:
        reward = make_reward(config.reward, task.privileged_names)
    curriculum = None
    if config.curriculum is not None:
        curriculum = make_curriculum(config.curriculum, config.task, training)
    clone = config.clone or runs / "clone" / "best"
    origin = {"command": "refine", "task": config.task, "clone": fingerprint(clone)}
    if config.reward is not None:
        origin["reward"] = reward_fingerprint(model) if model else config.reward
    policy = load_policy(clone, config.device, config.embodiment or task.spec)
    if not isinstance(method, SACConfig):
        _require_exploration(config, policy.actor.head)
    folder = RunFolder(
        config.out or runs / "refined",
        config,
        command_line("refine", config),
        # By content: resuming with another clone is refused, moving the same one is not.
        origin,
    )
    selection = SELECTION.seeds(config.selection_episodes)

    # A function of the iteration alone, so a resumed run collects the states that come next.
    def seeds(iteration: int) -> range:
        return training_seeds(training.seed, iteration, training.episodes)

    with (
        # One environment for collection and for selection: `rollout` resets it with the seeds of
        # each.
        CpuVecEnv(config.task, config.num_envs) as env,
        Bar("refine", training.iterations) as bar,
    ):
        trainer: Refinement[Any]
        reward = load_reward(model, config.task, policy, env) if model else reward
        if isinstance(method, SACConfig):
            trainer = OffPolicyTrainer(
                policy, env, shared, method, folder, seeds, config.demonstrations, reward
            )
        else:
            trainer = OnPolicyTrainer(
                policy, env, training, method, folder, seeds, reward, curriculum
            )
        best = trainer.run(selection, bar.update, config.stop_at)
    folder.close()
    print(
        f"refined: success {trainer.checkpoints.best_score:.2f} on {config.selection_episodes} "
        f"after {trainer.simulator_steps} simulator steps: {best}"
    )
    return 0


def read_algorithm(text: str, flag: str = "--algorithm") -> Any:
    """Settings of an on-policy or off-policy method, see `read_choice`."""
    configs: dict[str, Any] = {name: found.config for name, found in ALGORITHMS.items()}
    configs |= {name: found.config for name, found in OFF_POLICY.items()}
    return read_choice("algorithm", flag, text, configs)


def _reward_model(reward: str | None) -> Path | None:
    """The folder of a fitted reward model, where one is named."""
    kind, _, folder = (reward or "").partition(":")
    return Path(folder) if kind == "model" and folder else None


def _off_policy_settings(config: RefineConfig) -> RefinementConfig:
    """Of `config.training` what off-policy methods have.

    Raises:
        ValueError: a setting that they do not have is off its default.
    """
    shared = [field.name for field in fields(RefinementConfig)]
    rest = [field.name for field in fields(OnPolicyConfig) if field.name not in shared]
    off = _changed(config.training, rest) + ["--curriculum"] * (config.curriculum is not None)
    if off:
        name = config.algorithm.partition(":")[0]
        raise ValueError(
            f"{', '.join(off)} belongs to the on-policy algorithms {', '.join(ALGORITHMS)}; the "
            f"settings of {name} are shown by --algorithm {name}:help"
        )
    return RefinementConfig(**{name: getattr(config.training, name) for name in shared})


def _changed(training: OnPolicyConfig, names: Sequence[str]) -> list[str]:
    """The flags of those that are off their defaults."""
    default = OnPolicyConfig()
    off = [name for name in names if getattr(training, name) != getattr(default, name)]
    return [f"--{name.replace('_', '-')}" for name in off]


def _require_critic(config: RefineConfig, method: Any) -> None:
    """Refuse settings of a critic that the algorithm does not have.

    Raises:
        ValueError: one is off its default.
    """
    name = config.algorithm.partition(":")[0]
    if isinstance(method, SACConfig) or ALGORITHMS[name].needs_critic:
        return
    if off := _changed(config.training, _OF_THE_CRITIC):
        able = [other for other, found in ALGORITHMS.items() if found.needs_critic]
        raise ValueError(f"{', '.join(off)}: {name} has no critic; {', '.join(able)} have one")


def _require_exploration(config: RefineConfig, head: ActionHead) -> None:
    """Refuse a head that cannot explore, and settings of an exploration that it does not have.

    Raises:
        NoLikelihoodError: it has no likelihood.
        ValueError: a setting is off its default.
    """
    require_likelihood(head, config.algorithm.partition(":")[0])
    if isinstance(head, AutoregressiveHead):
        off = _changed(config.training, ("log_std_start", "log_std_end"))
        says = "is sampled at a temperature: set --temperature-start and --temperature-end"
    else:
        off = _changed(config.training, ("temperature_start", "temperature_end"))
        says = "has no temperature: set --log-std-start and --log-std-end"
    if off:
        raise ValueError(f"{', '.join(off)}: {type(head).__name__} {says}")


def require_recorded(config: RefineConfig, is_off_policy: bool) -> None:
    """Refuse demonstrations that cannot be used.

    Raises:
        ValueError: an algorithm without a replay buffer, or demonstrations of another task.
    """
    if (root := config.demonstrations) is None:
        return
    if not is_off_policy:
        raise ValueError(
            "--demonstrations go into a replay buffer, which only the off-policy algorithms "
            f"{', '.join(OFF_POLICY)} have"
        )
    journal = root / "meta" / "recording.json"
    # Contracts do not tell tasks apart; data sets that others recorded have no journal.
    if journal.is_file():
        tasks = json.loads(journal.read_text(encoding="utf-8"))["settings"]["task"]
        if tasks != [config.task]:
            raise ValueError(
                f"demonstrations {root} are of {', '.join(tasks)}, not of {config.task} alone"
            )
