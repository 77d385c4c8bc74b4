"""The small policy that a person would train instead: three convolutions a camera and an MLP.

Convolutions as in Mnih et al. 2015 (doi:10.1038/nature14236); an instruction is the set of its
words, which tells tasks apart as a one-hot task would, and words that were in no demonstration are
left out; a chunk by L1, in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policies.imitation.augmentation import Augmentation
from policies.imitation.dataset import DemoBatch
from policies.imitation.demonstrations import Demonstrations
from policies.optimisation import cosine, optimizer_step
from vla.contract import ObservationBatch, RobotSpec
from vla.model.heads.base import mean_of_steps
from vla.processing.embodiments import Embodiment

_SHIFT = 0.04  # of the image's size
_HIDDEN = 256


class PlainCNN(nn.Module):
    """A `Policy` for one robot.

    Args:
        robot: contract, and statistics of its proprioception.
        instructions: those of the demonstrations.
        chunk_length: control steps of a chunk.
    """

    def __init__(self, robot: Embodiment, instructions: Sequence[str], chunk_length: int):
        super().__init__()
        self.spec: RobotSpec = robot.spec
        known = sorted({word for text in instructions for word in text.split()})
        self.words = {word: column for column, word in enumerate(known)}
        self.chunk_length = chunk_length
        self.towers = nn.ModuleList(_tower() for _ in self.spec.cameras)
        seen = sum(
            tower(torch.zeros(1, 3, camera.height, camera.width)).shape[1]
            for camera, tower in zip(self.spec.cameras, self.towers, strict=True)
        )
        proprio, action = self.spec.proprio, self.spec.action
        self.decide = nn.Sequential(
            nn.Linear(seen + proprio.dim + len(self.words), _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, chunk_length * action.dim),
        )
        assert robot.statistics is not None  # `Demonstrations` has measured them
        measured = robot.statistics.proprio
        self.mean = nn.Buffer(torch.tensor(measured.mean))
        self.std = nn.Buffer(torch.tensor(measured.std).clamp_min(1e-4))
        low, high = torch.tensor(action.low), torch.tensor(action.high)
        self.middle, self.half_range = nn.Buffer((low + high) / 2), nn.Buffer((high - low) / 2)

    def forward(self, observation: ObservationBatch) -> Tensor:
        """Chunks from -1 to 1, and beyond, [n, chunk_length, action.dim]."""
        seen = [
            tower(observation.images[camera.name].permute(0, 3, 1, 2).float() / 255 - 0.5)
            for camera, tower in zip(self.spec.cameras, self.towers, strict=True)
        ]
        words = torch.zeros(len(observation), len(self.words))
        for row, text in enumerate(observation.instructions):
            words[row, [self.words[word] for word in text.split() if word in self.words]] = 1
        state = (observation.proprio.float() - self.mean) / self.std
        decided = self.decide(torch.cat([*seen, state, words], dim=1))
        return decided.unflatten(1, (self.chunk_length, -1))

    def loss(self, batch: DemoBatch) -> Tensor:
        """Mean absolute error of the steps that are not padding."""
        wanted = (batch.actions.float() - self.middle) / self.half_range
        error = (self(batch.observation()) - wanted).abs().mean(-1)
        return mean_of_steps(error, batch.is_pad)

    def reset(self, indices: Sequence[int]) -> None:
        """It has no memory."""

    @torch.no_grad()
    def act(self, observation: ObservationBatch) -> Tensor:
        """Chunks in the contract's units."""
        return self(observation).clamp(-1, 1) * self.half_range + self.middle


def train_cnn(
    data: Demonstrations, chunk_length: int, updates: int, seed: int, out: Path
) -> PlainCNN:
    """Train, and save into a folder; a folder that holds the result is read instead."""
    ((_, robot),) = data.embodiments().items()
    torch.manual_seed(seed)
    policy = PlainCNN(robot, data.instructions, chunk_length)
    weights = out / "cnn.safetensors"
    if weights.is_file():
        policy.load_state_dict(load_file(weights))
        return policy
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, updates))
    shift = Augmentation(_SHIFT)
    for _ in range(updates):
        (batch,) = data.sample(generator, 128).values()
        batch.images = {name: shift.apply(x, generator) for name, x in batch.images.items()}
        optimizer_step(optimizer, policy.loss(batch), max_grad_norm=1.0)
        schedule.step()
    out.mkdir(parents=True, exist_ok=True)
    save_file(policy.state_dict(), weights)
    return policy


def _tower() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, size, stride in ((3, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):
        layers += [nn.Conv2d(inputs, outputs, size, stride), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())
