"""Episodes as preferences need them: what happened, what the actor saw, and what it drew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from vla_runtime.atomic_folder import sync

from policies.reinforcement.collect import collect
from policies.reinforcement.stochastic_policy import PolicyState, StochasticPolicy
from policies.rollout import Transition
from vla.contract import VecEnv
from vla.model.features import Features
from vla.policy import VLAPolicy


@dataclass(frozen=True)
class Trajectory:
    """One episode of `m` decisions, each a chunk of `k` control steps.

    Attributes:
        seed: its initial state.
        instruction: what the policy was asked to do.
        policy: fingerprint of the checkpoint that played it.
        interface: see `interface_fingerprint`; of the policy that played it.
        actions: float32 [steps, action.dim], executed, in the contract's units.
        rewards: float32 [m, k], the environment's; 0 where not executed.
        success: bool [m], the task's condition after each chunk.
        valid: bool [m, k], the control steps that were executed, a prefix.
        privileged: float32 [m, p], simulator state after each chunk.
        reached: float32 [m, d], the policy's features after each chunk, as one vector.
        features: of m observations, before each chunk.
        sample: [m, ...], what the actor drew.
    """

    seed: int
    instruction: str
    policy: str
    interface: str
    actions: Tensor
    rewards: Tensor
    success: Tensor
    valid: Tensor
    privileged: Tensor
    reached: Tensor
    features: Features
    sample: Tensor

    def __len__(self) -> int:
        return len(self.valid)

    @property
    def ends(self) -> list[int]:
        """Control steps executed by the end of each chunk."""
        return self.valid.sum(1).cumsum(0).tolist()

    @property
    def control_steps(self) -> int:
        """Those that were executed."""
        return int(self.valid.sum())

    def save(self, path: Path) -> None:
        """Write one file, whole or not at all."""
        tensors = {n: getattr(self, n) for n in _TENSORS}
        tensors |= {f"features.{n}": getattr(self.features, n) for n in _FEATURES}
        texts = {n: getattr(self, n) for n in ("instruction", "policy", "interface")}
        unfinished = path.with_suffix(".part")
        own = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}
        save_file(own, unfinished, {"seed": str(self.seed), **texts})
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Inverse of `save`.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                texts = file.metadata()
                columns = {n: file.get_tensor(n) for n in _TENSORS}
                seen = Features(*(file.get_tensor(f"features.{n}") for n in _FEATURES))
            seed = int(texts.pop("seed"))
        # Whatever a damaged file may lack; safetensors has an exception of its own.
        except Exception as error:
            raise ValueError(f"{path} is no readable trajectory: {error}") from error
        return cls(seed=seed, features=seen, **texts, **columns)


_TENSORS = ("actions", "rewards", "success", "valid", "privileged", "reached", "sample")
_FEATURES = tuple(field.name for field in fields(Features))


def collect_trajectories[State: PolicyState](
    env: VecEnv,
    policy: StochasticPolicy[State],
    seeds: Sequence[int],
    generator: torch.Generator,
    played_by: str,
    interface: str,
) -> list[Trajectory]:
    """Play one episode per seed, all at once, with sampled chunks; in the order of the seeds.

    Args:
        env: at least as many environments as seeds.
        policy: samples, at the exploration that its actor has now.
        seeds: one per episode; they may repeat.
        generator: of everything random, on the policy's device.
        played_by: the policy's fingerprint.
        interface: see `interface_fingerprint`.

    Raises:
        ValueError: more seeds than environments.
    """
    if len(seeds) > env.num_envs:
        raise ValueError(f"{len(seeds)} seeds but {env.num_envs} environments")
    states: list[Tensor] = []

    def keep_state(transition: Transition) -> Tensor:
        # The critic's inputs are the features, so simulator state is kept here.
        states.append(transition.step.privileged.clone())
        return transition.step.rewards

    experience, episodes = collect(env, policy, seeds, "features", generator, keep_state)
    privileged = torch.stack(states)  # [t, n, p]
    every = torch.arange(len(experience.features)).view(experience.active.shape)  # [t, n]
    trajectories = []
    # Every environment plays one episode, the first the first seed: no row holds two.
    for row, episode in enumerate(episodes.episodes):
        active = experience.active[:, row]  # [t], True up to the episode's end
        valid = experience.valid[active, row]  # [m, k]
        last = valid.sum(1).cumsum(0) - 1  # [m], the control step that ended each chunk
        trajectories.append(
            Trajectory(
                seed=episode.seed,
                instruction=episode.instruction,
                policy=played_by,
                interface=interface,
                actions=torch.from_numpy(episode.actions),
                rewards=experience.rewards[active, row],
                success=torch.from_numpy(np.asarray(episode.success))[last.cpu()],
                valid=valid,
                privileged=privileged[active.cpu(), row],
                reached=experience.next_critic_obs[active, row],
                features=experience.features.select(every[:, row].to(policy.device)[active]),
                sample=experience.sample[active, row],
            )
        )
    return trajectories


def interface_fingerprint(policy: VLAPolicy) -> str:
    """SHA-256 of all that gives features and samples their meaning, which is all but the actor.

    Policies of one fingerprint see the same features in the same observation, and one's samples
    have a likelihood under the other: a clone and what it was refined to.
    """
    found = hashlib.sha256(json.dumps(policy.describe(), sort_keys=True).encode())
    for name, weight in sorted(policy.model.state_dict().items()):
        if not name.startswith("actor."):
            # As bytes: numpy has no bfloat16.
            raw = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
            found.update(name.encode() + raw.numpy().tobytes())
    return found.hexdigest()
