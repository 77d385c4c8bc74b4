"""The one rollout: collection, evaluation and films all run episodes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vla.contract import ContractMismatchError, ObservationBatch, Policy, StepBatch, VecEnv


@dataclass(frozen=True)
class Episode:
    """What happened in one episode; arrays hold executed control steps only.

    Attributes:
        seed: its initial state.
        instruction: what the policy was asked to do.
        actions: float32 [steps, action.dim], as the environment received them.
        rewards: float32 [steps].
        success: bool [steps], the task's condition after each step.
        terminated: it ended inside the task.
        truncated: it reached the time limit.
    """

    seed: int
    instruction: str
    actions: np.ndarray
    rewards: np.ndarray
    success: np.ndarray
    terminated: bool
    truncated: bool

    @property
    def length(self) -> int:
        """Executed control steps."""
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        """Undiscounted return."""
        return float(self.rewards.sum())

    @property
    def success_at_end(self) -> bool:
        """The task's condition held after the last step."""
        # The last executed step and not the last of the chunk: an object may have been lost again.
        return bool(self.success[-1])

    @property
    def success_ever(self) -> bool:
        """The task's condition held after some step."""
        return bool(self.success.any())

    @property
    def first_success_step(self) -> int | None:
        """Control steps until the condition first held, counted from 1; None if it never did."""
        # argmax of booleans is the position of the first True.
        return int(self.success.argmax()) + 1 if self.success_ever else None


@dataclass(frozen=True)
class Episodes:
    """One episode per seed, in the order of the seeds."""

    episodes: tuple[Episode, ...]

    @property
    def simulator_steps(self) -> int:
        """Control steps that these episodes executed."""
        return sum(episode.length for episode in self.episodes)

    @property
    def success_at_end(self) -> np.ndarray:
        """Bool [episodes]."""
        return np.array([episode.success_at_end for episode in self.episodes], dtype=bool)

    @property
    def success_ever(self) -> np.ndarray:
        """Bool [episodes]."""
        return np.array([episode.success_ever for episode in self.episodes], dtype=bool)


@dataclass(frozen=True)
class Transition:
    """One macro-step of every environment, for whoever records more than `Episode` holds.

    What only the policy knows of its decision (log-probability, value) is not in here: a policy
    that collects for a learner keeps it from `act` and is asked for it in the same callback.

    Attributes:
        episodes: int64 [n], the position in `seeds` that each environment plays; -1 where idle.
        observation: what the policy was given.
        privileged: float32 [n, privileged], at the same moment.
        chunks: float32 [n, k, action.dim], what it decided.
        step: the outcome, with the observation that followed (the final one at an end).
    """

    episodes: np.ndarray
    observation: ObservationBatch
    privileged: Tensor
    chunks: Tensor
    step: StepBatch


@dataclass
class _Track:
    """An episode being played: one entry per macro-step, valid control steps only."""

    seed: int
    instruction: str = ""
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[np.ndarray] = field(default_factory=list)
    success: list[np.ndarray] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False

    def episode(self) -> Episode:
        return Episode(
            seed=self.seed,
            instruction=self.instruction,
            actions=np.concatenate(self.actions),
            rewards=np.concatenate(self.rewards),
            success=np.concatenate(self.success),
            terminated=self.terminated,
            truncated=self.truncated,
        )


@torch.no_grad()
def rollout(
    env: VecEnv,
    policy: Policy,
    seeds: Sequence[int],
    on_step: Callable[[Transition], object] | None = None,
    on_episode: Callable[[Episode], None] | None = None,
) -> Episodes:
    """Play one episode per seed, `env.num_envs` at a time; an ended environment takes the next.

    Environments are reset here and nowhere else, in the order of `seeds`, and the policy with
    them: one that draws fresh randomness at each index of `reset` gives results that do not
    depend on `num_envs`. Seeds may repeat.

    Args:
        env: whatever it was playing is dropped.
        policy: it sees every row at every decision, so that it may keep state per row.
        seeds: one per episode.
        on_step: called after every macro-step, before ended environments begin anew.
        on_episode: called with every episode as it ends, in the order of ending: whoever keeps
            them there loses none of them to an error in a later one.

    Raises:
        ContractMismatchError: the contracts differ, or an observation, an action or a reward has
            the wrong shape or is not finite; the message names the dimension.
        RuntimeError: an environment neither steps nor ends.
        ValueError: no seeds.
    """
    if len(seeds) == 0:
        raise ValueError("a rollout needs at least one seed")
    # Once, before anything is simulated; shapes and finiteness are checked at every step.
    policy.spec.require_match(env.spec, "the policy", "the environment")
    tracks = [_Track(seed) for seed in seeds]
    waiting = iter(range(len(seeds)))
    # [n], position in `seeds` of the episode that each row plays; -1 where it is idle.
    playing = np.full(env.num_envs, -1)
    if spare := range(len(seeds), env.num_envs):
        # More environments than episodes: the rest need some state to be stepped with the others.
        env.reset(spare, [seeds[0]] * len(spare))
    observation, privileged = _begin(env, policy, tracks, waiting, playing)
    while (playing >= 0).any():
        # Idle rows are decided and stepped along: a batch of constant size keeps row numbers valid.
        chunks = policy.act(observation)
        _check_chunks(env, chunks)
        step = env.step(chunks)
        _check_step(env, step)
        if on_step is not None:
            # A copy: `_record` frees the rows of ended episodes in this array.
            on_step(Transition(playing.copy(), observation, privileged, chunks, step))
        # At an end this is the final observation; `_begin` replaces it by that of the new episode.
        observation, privileged = step.observation, step.privileged
        ended = _record(tracks, playing, chunks, step)
        if on_episode is not None:
            for episode in ended:
                on_episode(tracks[episode].episode())
        if ended:
            observation, privileged = _begin(env, policy, tracks, waiting, playing)
    return Episodes(tuple(track.episode() for track in tracks))


def _begin(
    env: VecEnv,
    policy: Policy,
    tracks: list[_Track],
    waiting: Iterator[int],
    playing: np.ndarray,
) -> tuple[ObservationBatch, Tensor]:
    """Give every idle environment the next waiting episode, and observe."""
    begun = [
        (int(row), episode)
        # Rows come first: zip then stops before it takes an episode that no row is free for.
        for row, episode in zip(np.flatnonzero(playing < 0), waiting, strict=False)
    ]
    rows = [row for row, _ in begun]
    if begun:
        # Only these rows: the other episodes go on undisturbed.
        env.reset(rows, [tracks[episode].seed for _, episode in begun])
        policy.reset(rows)
    observation, privileged = env.observe()
    _check_observation(env, observation, privileged)
    for row, episode in begun:
        playing[row] = episode
        # From the observation: the environment chooses the instruction when it is reset.
        tracks[episode].instruction = observation.instructions[row]
    return observation, privileged


def _record(
    tracks: list[_Track], playing: np.ndarray, chunks: Tensor, step: StepBatch
) -> list[int]:
    """Add a macro-step to the tracks; free the environments that ended, and say which episodes."""
    # One transfer a tensor and not one a row: on a GPU each of them waits for the device.
    actions, rewards, success, valid, terminated, truncated = (
        tensor.cpu().numpy()
        for tensor in (
            chunks,
            step.rewards,
            step.success,
            step.valid,
            step.terminated,
            step.truncated,
        )
    )
    ended = []
    for row in np.flatnonzero(playing >= 0):
        episode, executed = int(playing[row]), valid[row]
        track = tracks[episode]
        # `executed` is bool [k]: steps of the chunk after the end were never played.
        track.actions.append(actions[row][executed])
        track.rewards.append(rewards[row][executed])
        track.success.append(success[row][executed])
        track.terminated, track.truncated = bool(terminated[row]), bool(truncated[row])
        if track.terminated or track.truncated:
            playing[row] = -1
            ended.append(episode)
        # `rollout` would ask for the next step of this episode for ever.
        elif not executed.any():
            raise RuntimeError(f"environment {row} (seed {track.seed}) neither steps nor ends")
    return ended


def _check_chunks(env: VecEnv, chunks: Tensor) -> None:
    if chunks.ndim != 3 or len(chunks) != env.num_envs:
        raise ContractMismatchError(
            f"the policy gave chunks of shape {tuple(chunks.shape)}, "
            f"expected [{env.num_envs}, chunk_length, {env.spec.action.dim}]"
        )
    # The chunk length is free: executors shorten chunks, and environments take any number of steps.
    _check_vectors("action", chunks, env.spec.action.names)


def _check_observation(env: VecEnv, observation: ObservationBatch, privileged: Tensor) -> None:
    _check_vectors("proprio", observation.proprio, env.spec.proprio.names)
    _check_vectors("privileged", privileged, env.privileged_names)


def _check_step(env: VecEnv, step: StepBatch) -> None:
    _check_observation(env, step.observation, step.privileged)
    # One NaN in a reward would make every advantage of the collection NaN.
    if not torch.isfinite(step.rewards).all():
        rows = torch.nonzero(~torch.isfinite(step.rewards).all(dim=1)).flatten().tolist()
        raise ContractMismatchError(f"reward is not finite in environments {rows}")


def _check_vectors(label: str, values: Tensor, names: Sequence[str]) -> None:
    if values.shape[-1] != len(names):
        raise ContractMismatchError(
            f"{label} has {values.shape[-1]} dimensions, contract says {len(names)}: {list(names)}"
        )
    # All leading dimensions at once, so that the message can name the dimension: bool [names].
    finite = torch.isfinite(values).reshape(-1, len(names)).all(dim=0)
    if not finite.all():
        bad = [name for name, good in zip(names, finite.tolist(), strict=True) if not good]
        raise ContractMismatchError(f"{label} is not finite in {bad}")
