"""What a clone could do that saw perfectly: a small network that is told the true positions.

    python -m scripts.bench.true_positions --data data/FetchPush --execute-steps 5 2 1

It separates what perception costs from what imitation and its chunks cost. The network reads
proprioception, the positions of object and target, and those relative to gripper and object, and
learns the demonstrations by mean absolute error. It plays without images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from policies.evaluation.evaluate import evaluate
from policies.imitation.config import CloningConfig
from policies.imitation.demonstrations import Demonstrations
from policies.optimisation import cosine, optimizer_step
from scripts.initial_states import States, choose_seeds
from sim.vector import CpuVecEnv
from vla.contract import ObservationBatch
from vla.execution import RecedingHorizon
from vla.model.heads.base import mean_of_steps
from vla.processing.normalisation import AffineNormaliser
from vla.settings import require_numbers

_HIDDEN = 256
_READ = {"object": "object", "target": "goal"}
"""A data set's point, and what its coordinates begin with among the privileged state's names."""


@dataclass(frozen=True)
class BenchTruePositionsConfig:
    """What is cloned, and how it is played.

    Attributes:
        task: a Fetch task with an object.
        data: its demonstrations, from `vla collect`; by default `data/<task>`.
        chunk_length: control steps a chunk.
        execute_steps: how many of them are executed before the next decision; each is played.
        relative_gain: factor on standardised relative positions: at contact, millimetres decide.
        noise: std of Gaussian noise on what it reads, standardised, while it learns.
        updates: of the training.
        batch: samples an update.
        seed: of everything random.
        states: initial states that are played.
        episodes: how many of them.
    """

    task: str = "FetchPush"
    data: Path | None = None
    chunk_length: int = 5
    execute_steps: tuple[int, ...] = (5, 2, 1)
    relative_gain: float = 8.0
    noise: float = 0.005
    updates: int = 3000
    batch: int = 128
    seed: int = 0
    states: States = "development"
    episodes: int = 200

    def __post_init__(self) -> None:
        counts = ("chunk_length", "execute_steps", "updates", "batch", "episodes")
        require_numbers(
            self,
            at_least_1=counts,
            above_0=("relative_gain",),
            at_most={"execute_steps": self.chunk_length},
        )


class TruePositionsPolicy(nn.Module):
    """A `Policy` that reads the simulator's state.

    Args:
        env: which it plays.
        chunk_length: control steps a chunk.
        relative_gain: see `BenchTruePositionsConfig`.

    Raises:
        ValueError: the task does not tell where object and goal are.
    """

    def __init__(self, env: CpuVecEnv, chunk_length: int, relative_gain: float):
        super().__init__()
        self.env, self.spec, self.chunk_length = env, env.spec, chunk_length
        names = [*env.privileged_names]
        wanted = {point: [f"{begin}_{axis}" for axis in "xyz"] for point, begin in _READ.items()}
        if missing := [name for axes in wanted.values() for name in axes if name not in names]:
            raise ValueError(f"the privileged state of {env.task.name} lacks {missing}: {names}")
        self._columns = {
            point: [names.index(name) for name in axes] for point, axes in wanted.items()
        }
        read = self.spec.proprio.dim + 12
        self.layers = nn.Sequential(
            nn.Linear(read, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, chunk_length * self.spec.action.dim),
        )
        self.mean, self.std = nn.Buffer(torch.zeros(read)), nn.Buffer(torch.ones(read))
        # The last six are the relative positions.
        self.gain = nn.Buffer(torch.ones(read))
        self.gain[-6:] = relative_gain
        self.normaliser = AffineNormaliser("action", self.spec.action, None, "limits")

    def read(self, proprio: Tensor, where: Tensor, target: Tensor) -> Tensor:
        """What it reads, [n, read], of proprioception [n, proprio] and positions [n, 3]."""
        gripper = proprio[:, :3]
        return torch.cat([proprio, where, target, where - gripper, target - where], 1).float()

    def forward(self, read: Tensor) -> Tensor:
        """Chunks from -1 to 1, and beyond, [n, chunk_length, action.dim]."""
        return self.layers(read * self.gain).unflatten(1, (self.chunk_length, -1))

    def reset(self, indices: Sequence[int]) -> None:
        """It has no memory."""

    @torch.no_grad()
    def act(self, observation: ObservationBatch) -> Tensor:
        """Chunks in the contract's units, for the environments' present state."""
        _, privileged = self.env.observe()
        where, target = (privileged[:, columns] for columns in self._columns.values())
        read = (self.read(observation.proprio, where, target) - self.mean) / self.std
        return self.normaliser.decode(self(read).clamp(-1, 1))


def train(policy: TruePositionsPolicy, data: Demonstrations, config: CloningConfig) -> None:
    """Clone; `config.feature_noise` is added to what is read."""
    ((_, robot),) = data.robots.items()
    if missing := [point for point in _READ if point not in robot.points]:
        raise ValueError(f"the demonstrations lack the positions of {missing}: `vla collect` anew")
    rows = robot.rows("train")
    batch = robot.batch(rows)
    read = policy.read(batch.proprio, *(batch.points[point] for point in _READ))
    policy.mean[:], policy.std[:] = read.mean(0), read.std(0) + 1e-4
    read = (read - policy.mean) / policy.std
    wanted = policy.normaliser.encode(batch.actions)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(policy.parameters(), weight_decay=config.weight_decay)
    for step in range(config.updates):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * cosine(step, config.updates)
        rows = torch.randint(len(read), (config.batch,), generator=generator)
        noise = config.feature_noise * torch.randn(config.batch, read.shape[1], generator=generator)
        error = (policy(read[rows] + noise) - wanted[rows]).abs().mean(-1)
        loss = mean_of_steps(error, batch.is_pad[rows])
        optimizer_step(optimizer, loss, config.max_grad_norm)


def main(config: BenchTruePositionsConfig) -> int:
    """Train, play, and print success at the end and ever."""
    root = config.data or Path("data") / config.task
    data = Demonstrations((root,), config.chunk_length, seed=config.seed)
    torch.manual_seed(config.seed)
    training = CloningConfig(
        config.updates, config.batch, feature_noise=config.noise, seed=config.seed
    )
    seeds = choose_seeds(config.task, config.states, config.episodes)
    with CpuVecEnv(config.task, min(50, config.episodes), render=False) as env:
        policy = TruePositionsPolicy(env, config.chunk_length, config.relative_gain)
        train(policy, data, training)
        for steps in config.execute_steps:
            found, _ = evaluate(env, RecedingHorizon(policy, steps), seeds)
            end, ever = (100 * found[f"success/{when}"] for when in ("end", "ever"))
            print(f"{steps} steps a decision: {end:.1f}% at the end, {ever:.1f}% ever", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(BenchTruePositionsConfig)))
