"""Behaviour cloning: imitate demonstrated chunks, keep the checkpoint that succeeds most often.

With frozen perception every frame's context is computed once and only the head is trained, which
takes minutes instead of hours on a CPU. Success in simulation chooses the checkpoint, because the
loss of a cloned policy says little about how it acts. Where there is no simulator of the
demonstrated robot, the loss on held-out episodes has to choose.

Demonstrations of several robots train one model: a batch holds samples of all of them, by weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from policies.imitation.augmentation import Augmentation
from policies.imitation.dataset import DemoBatch, DemoDataset, Split
from policies.imitation.demonstrations import Demonstrations
from policies.rollout import rollout
from policies.run_folder import RunFolder
from vla.contract import VecEnv
from vla.model.cloning_loss import cloning_loss
from vla.model.features import Features
from vla.model.point_filter import PolicyState
from vla.policy import VLAPolicy

_ENCODE_BATCH = 64

Encoded = tuple[Features, Tensor, Tensor]
"""Features, normalised actions [n, chunk_length, action], and padding bool [n, chunk_length]."""


@dataclass(frozen=True)
class CloningConfig:
    """How long, how fast and what is trained.

    Attributes:
        updates: optimizer steps.
        batch: samples an update.
        perception: "frozen" trains the head alone on contexts computed once, for a model that has
            learned to point; "trained" also trains readouts, pointer and as much of the
            vision-language model as its own `tuning` leaves free.
        learning_rate: of AdamW for the head; falls to 0 along a cosine.
        perception_learning_rate: of AdamW for perception when it is trained.
        weight_decay: of AdamW.
        context_noise: std of Gaussian noise added to points and proprioception, in the head's own
            units; what it must act in later is not exactly what was demonstrated.
        max_grad_norm: gradients are clipped to this norm.
        evaluate_every: updates between rollouts, checkpoints and losses on held-out episodes.
        picture_shift: augmentation, see `Augmentation`; like the next two only where perception is
            trained, since a frozen one sees every picture once.
        picture_light: augmentation.
        picture_colour: augmentation.
        still: points that stay where they are during an episode, so that all sightings of them
            count (see `VLA.hold`); only where perception is frozen, since one that is trained sees
            every frame alone.
        phrasings: where there are paraphrases and perception is frozen, in how many of them, drawn
            anew for each frame, its context is computed; trained perception draws at every sample.
        bf16: autocast perception to bfloat16; the embedded backbone does so by itself.
        seed: of everything random.
    """

    updates: int = 1000
    batch: int = 256
    perception: Literal["frozen", "trained"] = "frozen"
    learning_rate: float = 1e-3
    perception_learning_rate: float = 1e-4
    weight_decay: float = 0.01
    context_noise: float = 0.02
    max_grad_norm: float = 1.0
    evaluate_every: int = 500
    picture_shift: float = 0.0
    picture_light: float = 0.0
    picture_colour: float = 0.0
    still: tuple[str, ...] = ("target",)
    phrasings: int = 4
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.perception == "frozen" and self.augmentation.is_on:
            raise ValueError(
                "pictures are changed only with perception='trained': a frozen one sees each once"
            )
        if self.phrasings < 1:
            raise ValueError(f"phrasings start at 1, got {self.phrasings}")

    @property
    def augmentation(self) -> Augmentation:
        """How pictures are changed."""
        return Augmentation(self.picture_shift, self.picture_light, self.picture_colour)


class Cloner:
    """One cloning run: `run` trains to the end, from the last checkpoint if there is one.

    Args:
        policy: its model is trained in place, for the robots of these demonstrations.
        data: demonstrations.
        config: how to train.
        folder: where checkpoints `step_<n>`, `best` and metrics go.
    """

    def __init__(
        self,
        policy: VLAPolicy,
        data: Demonstrations,
        config: CloningConfig,
        folder: RunFolder,
    ):
        for name, robot in data.robots.items():
            ours = policy.embodiments[name].spec
            ours.require_match(robot.spec, "the model", f"the demonstrations of {name}")
        self.policy, self.model, self.data = policy, policy.model, data
        model = policy.model
        self.config, self.folder = config, folder
        static = config.still if config.perception == "frozen" else ()
        model.config = replace(model.config, static_points=static)
        self.step, self.best_score = 0, -math.inf
        self._rng = torch.Generator().manual_seed(config.seed)
        actor = [*model.actor.parameters()]
        groups: list[dict[str, Any]] = [{"params": actor, "lr": config.learning_rate}]
        if config.perception == "trained":
            others = model.perception_parameters()
            groups.append({"params": others, "lr": config.perception_learning_rate})
        self._trained: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self._optimizer, T_max=config.updates
        )
        self._policies = {name: policy.embodied(name) for name in data.robots}
        self._contexts: dict[Split, Encoded] = {}

    def run(
        self,
        env: VecEnv | None,
        selection_seeds: Sequence[int],
        progress: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    ) -> Path:
        """Train, and return the folder of the best checkpoint.

        Args:
            env: where checkpoints are tried, greedily, and success at the end chooses the best;
                None lets the loss on held-out episodes choose.
            selection_seeds: initial states that choose the checkpoint; not those of evaluation.
            progress: called with what was logged.

        Raises:
            ContractMismatchError: the environment is of no robot of the demonstrations.
        """
        if env is not None:
            self.policy = self.policy.embodied(env.spec)
            self.policy.spec.require_match(env.spec, "the demonstrations", "the environment")
        self._resume()
        losses: list[float] = []
        while self.step < self.config.updates:
            losses.append(self._update())
            self.step += 1
            if self.step % self.config.evaluate_every and self.step < self.config.updates:
                continue
            values = {
                "loss/train": float(np.mean(losses)),
                **self.heldout_losses(),
                "learning_rate": self._schedule.get_last_lr()[0],
            }
            score = -values["loss/heldout"]
            if env is not None:
                episodes = rollout(env, self.policy, selection_seeds)
                score = values["success/end"] = float(episodes.success_at_end.mean())
                values["success/ever"] = float(episodes.success_ever.mean())
            losses.clear()
            self.folder.log(self.step, values)
            progress(self.step, values)
            # Ties go to the later one: its loss is lower. So does what nothing can compare.
            if not score < self.best_score:
                self.best_score = score
                self._save("best", with_state=False)
            self._save(f"step_{self.step:06d}", with_state=True)
        return self.folder.path / "best"

    def _update(self) -> float:
        self.model.train()
        loss = cloning_loss(self.model.actor, *self._sample(), self.config.context_noise, self._rng)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained, self.config.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        return float(loss.detach())

    def _sample(self) -> Encoded:
        size = self.config.batch
        if self.config.perception == "frozen":
            features, actions, is_pad = self._frozen("train")
            rows = torch.from_numpy(self.data.draw(self._rng, size))
            if (copies := self._copies) > 1:
                copy = torch.randint(copies, (size,), generator=self._rng)
                rows += copy * (len(features) // copies)
            return features.select(rows), actions[rows], is_pad[rows]
        batches = self.data.sample(self._rng, size)
        if (augmentation := self.config.augmentation).is_on:
            for batch in batches.values():
                for camera, pictures in batch.images.items():
                    batch.images[camera] = augmentation.apply(pictures, self._rng)
        return _join(self._encode(n, b) for n, b in batches.items())

    def _encode(self, name: str, batch: DemoBatch) -> Encoded:
        policy = self._policies[name]
        inputs = policy.processor.encode_observation(batch.observation())
        device = policy.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.bf16):
            features = policy.network.features(inputs.to(device))
        actions = policy.processor.encode_actions(batch.actions)
        return features, actions.to(device), batch.is_pad.to(device)

    def _episode(
        self, name: str, data: DemoDataset, rows: np.ndarray, words: torch.Generator | None
    ) -> Encoded:
        """What a policy sees at each frame of an episode; `words` draws its phrasings."""
        parts, recorded = [], []
        for first in range(0, len(rows), _ENCODE_BATCH):
            batch = data.batch(rows[first : first + _ENCODE_BATCH])
            recorded += batch.instructions
            if words is not None:
                batch.instructions = self.data.paraphrases.draw(batch.instructions, words)
            parts.append(self._encode(name, batch))
        features, actions, is_pad = _join(parts)
        return self._fuse(features, recorded), actions, is_pad

    def _fuse(self, features: Features, instructions: list[str]) -> Features:
        """Features as a policy has them that decided at every chunk's end before.

        Args:
            features: of an episode's frames in their order.
            instructions: of each frame.
        """
        length = self.model.config.chunk_length
        state = self.policy.initial_state(length)  # a row for each phase of deciding
        fused = []
        for first in range(0, len(instructions), length):
            words = instructions[first : first + length]
            # The last frames fill some of the phases only.
            state = PolicyState(state.evidence[: len(words)], state.instructions[: len(words)])
            state = state.follow(words)
            rows = slice(first, first + length)
            part, evidence = self.model.fuse_static_points(features.select(rows), state.evidence)
            state = replace(state, evidence=evidence)
            fused.append(part)
        return Features.concatenate(fused)

    @property
    def _copies(self) -> int:
        """How often a frozen frame is encoded, each time in words drawn for it."""
        return self.config.phrasings if self.data.paraphrases else 1

    @torch.no_grad()
    def _frozen(self, split: Split) -> Encoded:
        """Contexts, actions and padding of a split; with frozen perception they never change."""
        if split not in self._contexts:
            self.model.eval()
            # Of its own, so that a resumed training finds the same words in the same places.
            words = torch.Generator().manual_seed(self.config.seed) if split == "train" else None
            parts = []
            for _ in range(self._copies if words else 1):
                for name, data in self.data.robots.items():
                    for rows in data.episodes(split):
                        parts.append(self._episode(name, data, rows, words))
            self._contexts[split] = _join(parts)
            self.model.train()
        return self._contexts[split]

    @torch.no_grad()
    def heldout_losses(self) -> dict[str, float]:
        """Mean loss over the held-out episodes, and of each robot where there are several.

        NaN when there are none.
        """
        counts = {name: len(robot.rows("heldout")) for name, robot in self.data.robots.items()}
        if not sum(counts.values()):
            return {"loss/heldout": float("nan")}
        self.model.eval()
        every = self._frozen("heldout")
        if self.config.perception == "trained":
            self._contexts.clear()
        losses = {"loss/heldout": float(self.model.actor.loss(*every))}
        if len(counts) > 1:
            features, actions, is_pad = every
            first = 0
            for name, count in counts.items():
                rows = slice(first, first := first + count)
                if count:
                    part = features.select(rows), actions[rows], is_pad[rows]
                    losses[f"loss/heldout/{name}"] = float(self.model.actor.loss(*part))
        return losses

    def _save(self, name: str, with_state: bool) -> None:
        state = {
            "step": self.step,
            "best_success": self.best_score,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "generator": self._rng.get_state(),
            "torch": torch.get_rng_state(),
        }
        folder, command = self.folder.path / name, self.folder.command
        self.policy.save(folder, state if with_state else None, command)

    def _resume(self) -> None:
        """Go on from the newest complete checkpoint, to the same losses as without the break."""
        if (state := self.policy.resume(self.folder.path)) is None:
            return
        self.step, self.best_score = state["step"], state["best_success"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._rng.set_state(state["generator"])
        torch.set_rng_state(state["torch"])


def _join(parts: Iterable[Encoded]) -> Encoded:
    features, actions, is_pad = zip(*parts, strict=True)
    return Features.concatenate(features), torch.cat(actions), torch.cat(is_pad)
