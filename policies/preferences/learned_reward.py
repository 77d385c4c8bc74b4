"""A fitted reward model in the place of the environment's rewards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from vla_runtime.atomic_folder import digest

from policies.optimisation import require_finite
from policies.preferences.comparisons import ComparisonError
from policies.preferences.reward_model import RewardModel
from policies.preferences.trajectories import interface_fingerprint
from policies.reinforcement.collect import flatten
from policies.rollout import Transition
from vla.contract import VecEnv
from vla.model.point_filter import PolicyState
from vla.policy import VLAPolicy

Reader = Callable[[Transition], Tensor]
"""What a reward model sees after a macro-step, float32 [n, d]."""


class LearnedReward:
    """Rewards of a model, one for each executed control step; a `Reward` for `collect`.

    Args:
        model: fitted.
        read: what it sees.
    """

    def __init__(self, model: RewardModel, read: Reader):
        self._model, self._read = model, read

    @torch.no_grad()
    def __call__(self, transition: Transition) -> Tensor:
        """Rewards float32 [n, k].

        Raises:
            NotFiniteError: a reward is NaN or infinite.
        """
        valid, vectors = transition.step.valid, self._read(transition)
        rewards = self._model(vectors.to(self._model.low.device)).to(valid.device)  # [n]
        # In the first collection and by name, not as a loss that is NaN an epoch later.
        require_finite({"the reward model's reward": rewards})
        return rewards[:, None] * valid


def read_privileged(transition: Transition) -> Tensor:
    """Simulator state after the macro-step, [n, p]."""
    return transition.step.privileged


class FeatureReader:
    """The policy's features after a macro-step, from a memory of its own.

    Args:
        policy: its perception is used.
        num_envs: environments.
    """

    def __init__(self, policy: VLAPolicy, num_envs: int):
        self._policy = policy
        self._state = policy.initial_state(num_envs)

    def __call__(self, transition: Transition) -> Tensor:
        """Features as one vector a row, [n, d]; see `flatten`."""
        begun = (transition.observation.time_s == 0).nonzero()[:, 0].tolist()
        if begun:
            # The first observation belongs to the memory, too; all others followed a step.
            first = transition.observation.select(begun)
            _, fresh = self._policy.features(first, self._policy.initial_state(len(begun)))
            evidence, instructions = self._state.evidence.clone(), [*self._state.instructions]
            evidence[begun] = fresh.evidence
            for row, instruction in zip(begun, fresh.instructions, strict=True):
                instructions[row] = instruction
            self._state = PolicyState(evidence, tuple(instructions))
        features, self._state = self._policy.features(transition.step.observation, self._state)
        return flatten(features)


def load_reward(folder: Path, task: str, policy: VLAPolicy, env: VecEnv) -> LearnedReward:
    """The reward model of a folder, for this task and this policy.

    What its comparisons cost is added to the policy's ledger.

    Raises:
        ComparisonError: there is none, it is damaged, or it is of another task, of other simulator
            state, or of the features of another perception.
    """
    model, about = RewardModel.load(folder)
    if about["task"] != task:
        raise ComparisonError(
            f"the reward model in {folder} was fitted to comparisons of {about['task']}, not of "
            f"{task}"
        )
    if model.config.inputs == "privileged":
        if about["privileged_names"] != list(env.privileged_names):
            raise ComparisonError(
                f"the reward model in {folder} reads the simulator state "
                f"{about['privileged_names']}, {task} has {list(env.privileged_names)}"
            )
        reader: Reader = read_privileged
    elif about["interface"] == interface_fingerprint(policy):
        reader = FeatureReader(policy, env.num_envs)
    else:
        raise ComparisonError(
            f"the reward model in {folder} reads the features of another policy: refine one with "
            "the perception and the head of those that were compared, or fit it to --inputs "
            "privileged"
        )
    # Models of an earlier version do not say what they cost.
    policy.ledger.spend(**about.get("spent", {}))
    return LearnedReward(model.to(policy.device), reader)


def reward_fingerprint(folder: Path) -> str:
    """SHA-256 of a reward model's weights: equal ones are equal.

    Raises:
        ComparisonError: there is no readable one.
    """
    RewardModel.load(folder)
    return digest(folder / "model.safetensors")
