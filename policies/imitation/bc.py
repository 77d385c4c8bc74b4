"""Behaviour cloning: imitate demonstrated chunks, keep the checkpoint that succeeds most often.

With frozen perception the features of every frame are computed once and only the actor is trained,
which takes minutes instead of hours on a CPU. Success in simulation chooses the checkpoint, because
the loss of a cloned policy says little about how it acts. Where there is no simulator of the
demonstrated robot, the loss on held-out episodes has to choose.

Demonstrations of several robots train one model: a batch holds samples of all of them, by weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policies.checkpoints import Checkpoints, describe_seeds
from policies.evaluation.evaluate import evaluate
from policies.imitation.config import CloningConfig
from policies.imitation.dataset import DemoBatch, DemoDataset, Split
from policies.imitation.demonstrations import Demonstrations
from policies.imitation.points import heldout_errors, share_points, true_points
from policies.imitation.scene_augmentation import SceneAugmentation, scene_mover
from policies.optimisation import cosine, optimizer_step, require_finite_weights
from policies.run_folder import RunFolder
from vla.contract import VecEnv
from vla.model.cloning_loss import cloning_loss
from vla.model.features import Features
from vla.model.point_filter import PolicyState
from vla.model.pointer import world_loss
from vla.policy import VLAPolicy

_ENCODE_BATCH = 64  # frames that pass through the backbone at once
_SPLITS: tuple[Split, ...] = ("train", "heldout")
_TOTAL = "training.updates"  # a resumed run may be made longer

Encoded = tuple[Features, Tensor, Tensor]
"""Features, normalised actions [n, chunk_length, action], and padding bool [n, chunk_length]."""


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
            # Names, units and limits: actions of another robot would be cloned without an error.
            ours = policy.embodiments[name].spec
            ours.require_match(robot.spec, "the model", f"the demonstrations of {name}")
        self.policy, self.model, self.data = policy, policy.model, data
        model = policy.model
        self.config, self.folder = config, folder
        # In the model itself: checkpoints carry it, and inference fuses as training did.
        static = config.static_points if config.perception == "frozen" else ()
        model.average_static_points(static)
        self.step = 0
        self.checkpoints = Checkpoints(folder, policy)
        self._rng = torch.Generator().manual_seed(config.seed)
        # Where not, all is as it is without points.
        can_learn = config.perception == "trained" and config.point_weight > 0
        self._learns_points = can_learn and share_points(model.config.points, data)
        # Two rates: steps that suit a new head would destroy pretrained perception.
        actor = [*model.actor.parameters()]
        groups: list[dict[str, Any]] = [{"params": actor, "lr": config.learning_rate}]
        if config.perception == "trained":
            others = model.perception_parameters()
            rate = config.perception_learning_rate
            groups.append({"params": others, "lr": 1e-4 if rate is None else rate})
        self._trained: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
        # The optimizer's own are overwritten at every step.
        self._rates = [group["lr"] for group in groups]
        # One model; each view of it has its robot's processor.
        self._policies = {name: policy.embodied(name) for name in data.robots}
        self._frozen_features: dict[Split, Encoded] = {}
        self._scenes = None
        if config.perception == "frozen":
            self._scenes = scene_mover(policy, [*data.robots], config.scene_bounds)

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
            ResumeError: the folder holds a run with other settings; nothing was written.
            DivergedError: a loss, gradient or weight is not finite.
        """
        if env is not None:
            self.policy = self.policy.embodied(env.spec)
            self.policy.spec.require_match(env.spec, "the demonstrations", "the environment")
        # What chooses decides the result: loss and success rank checkpoints differently.
        chosen_by = None if env is None else selection_seeds
        if (state := self.checkpoints.resume(self._settings(chosen_by), _TOTAL)) is not None:
            self._load_state(state)
        else:
            self._count_demonstrations()
        losses: list[dict[str, float]] = []
        while self.step < self.config.updates:
            with self.checkpoints.stop_on_nan(self.step + 1):
                losses.append(self._update())
                self.step += 1
                if self.step % self.config.evaluate_every and self.step < self.config.updates:
                    continue
                values, score = self._measure(env, selection_seeds)
                # Before `save`, so that the state of a resume knows the best score.
                self.checkpoints.offer_best(score)
            self.checkpoints.save(self.step, self._state())
            # The logged losses are means since the last entry.
            values = _means(losses) | values
            losses.clear()
            self.folder.log(self.step, values | self.policy.ledger.metrics())
            progress(self.step, values)
        return self.checkpoints.best

    def _update(self) -> dict[str, float]:
        """One step; its losses, by key of the log."""
        self.model.train()
        # Set at every step and not by a scheduler: a longer run then has the longer cosine.
        factor = cosine(self.step, self.config.updates)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate
        encoded, truth = self._sample()
        # Features carry gradients to perception only where it is trained.
        noise, dropout = self.config.feature_noise, self.config.proprio_dropout
        loss = cloning_loss(self.model.actor, *encoded, noise, self._rng, dropout)
        losses = {"loss/train": loss}
        if truth is not None:
            losses["loss/points"] = world_loss(encoded[0].points, truth)
            loss = loss + self.config.point_weight * losses["loss/points"]
        optimizer_step(self._optimizer, loss, self.config.max_grad_norm)
        return {name: float(part.detach()) for name, part in losses.items()}

    def _measure(
        self, env: VecEnv | None, selection_seeds: Sequence[int]
    ) -> tuple[dict[str, float], float]:
        """What can be measured now, and the score that chooses the best checkpoint."""
        # Before rollouts: NaN commands would be refused with a message about the contract.
        require_finite_weights(self._trained)
        values = self.heldout_losses()
        values["learning_rate"] = self._rates[0] * cosine(self.step, self.config.updates)
        if env is not None:
            found, steps = evaluate(env, self.policy, selection_seeds)
            self.policy.ledger.spend(selection_steps=steps)
            return values | found, found["success/end"]
        # With nothing held out there is nothing to choose by, and the last checkpoint is kept.
        return values, -values["loss/heldout"] if "loss/heldout" in values else float(self.step)

    def _sample(self) -> tuple[Encoded, Tensor | None]:
        """A batch, and its true points [batch, points, 3] if any is known and to be learned."""
        size = self.config.batch
        if self.config.perception == "frozen":
            features, actions, is_pad = self._frozen("train")
            # [batch], positions in the training frames of all robots.
            rows = torch.from_numpy(self.data.draw(self._rng, size))
            if (copies := self._copies) > 1:
                copy = torch.randint(copies, (size,), generator=self._rng)
                # The copies lie one after another, each with all frames.
                rows += copy * (len(features) // copies)
            features, actions, is_pad = features.select(rows), actions[rows], is_pad[rows]
            if self._scenes is not None:
                features, actions = self._scenes.move(features, actions, self._rng)
            return (features, actions, is_pad), None
        batches = self.data.sample(self._rng, size)
        if (augmentation := self.config.augmentation).is_on:
            for batch in batches.values():
                # uint8 [b, h, w, 3]
                for camera, images in batch.images.items():
                    batch.images[camera] = augmentation.apply(images, self._rng)
        encoded = _join(self._encode(n, b) for n, b in batches.items())
        if not self._learns_points:
            return encoded, None
        truth = true_points(self.model.config.points, batches)
        return encoded, None if truth is None else truth.to(self.policy.device)

    def _encode(self, name: str, batch: DemoBatch) -> Encoded:
        policy = self._policies[name]
        inputs = policy.processor.encode_observation(batch.observation())
        device = policy.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.bf16):
            features = policy.network.features(inputs.to(device))
        # Normalised, and padded to the action size that all robots share.
        actions = policy.processor.encode_actions(batch.actions)
        return features, actions.to(device), batch.is_pad.to(device)

    def _episode(
        self, name: str, data: DemoDataset, rows: np.ndarray, words: torch.Generator | None
    ) -> Encoded:
        """What a policy sees at each frame of an episode; `words` draws its phrasings."""
        parts, recorded = [], []
        # In parts: a long episode's images do not fit through the backbone at once.
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
        # A policy decides every `length` frames, beginning at any of the first `length` ones:
        # frame i continues the memory of frame i - length.
        length = self.model.config.chunk_length
        state = self.policy.initial_state(length)  # a row for each phase of deciding
        fused = []
        for first in range(0, len(instructions), length):
            words = instructions[first : first + length]
            # The last frames fill some of the phases only.
            state = PolicyState(state.evidence[: len(words)], state.instructions[: len(words)])
            state = state.follow(words)
            rows = slice(first, first + length)
            # Rows are phases: features of consecutive frames, evidence [length, static, 4].
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
        """Features, actions and padding of a split; with frozen perception they never change."""
        if split not in self._frozen_features:
            was_training = self.model.training
            self.model.eval()
            # Of its own, so that a resumed training finds the same words in the same places.
            words = torch.Generator().manual_seed(self.config.seed) if split == "train" else None
            parts = []
            for _ in range(self._copies if words else 1):
                for name, data in self.data.robots.items():
                    # Episode by episode, since static points are averages over one.
                    for rows in data.episodes(split):
                        parts.append(self._episode(name, data, rows, words))
            self._frozen_features[split] = _join(parts)
            # Or the update that asks first would run without dropout, here or after a resume.
            self.model.train(was_training)
        return self._frozen_features[split]

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out episodes to measure with."""
        return any(len(robot.rows("heldout")) for robot in self.data.robots.values())

    @torch.no_grad()
    def heldout_losses(self) -> dict[str, float]:
        """Mean loss over the held-out episodes, and of each robot where there are several.

        Where points are learned, with the median error of each in centimetres.
        Without dropout, and with the same random numbers each time, drawn apart from those of
        training: measuring changes nothing. Empty where nothing is held out.
        """
        if not self.holds_out:
            return {}
        counts = {name: len(robot.rows("heldout")) for name, robot in self.data.robots.items()}
        self.model.eval()
        features, actions, is_pad = self._frozen("heldout")
        if self.config.perception == "trained":
            # Perception changes until the next measurement, so nothing of it may be kept.
            self._frozen_features.clear()
        # By key of the log, which rows it is a mean over.
        parts = {"loss/heldout": slice(None)}
        if len(counts) > 1:
            # Rows lie robot by robot, as `_frozen` has joined them.
            ends = np.cumsum([*counts.values()]).tolist()
            for (name, count), end in zip(counts.items(), ends, strict=True):
                if count:
                    parts[f"loss/heldout/{name}"] = slice(end - count, end)
        device = self.policy.device
        # Heads that draw noise in their loss: the same noise each time, and none of training's.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.config.seed)
            losses = {
                name: float(
                    self.model.actor.loss(features.select(rows), actions[rows], is_pad[rows])
                )
                for name, rows in parts.items()
            }
        if self._learns_points:
            losses |= heldout_errors(self.model.config.points, self.data, features)
        return losses

    def _count_demonstrations(self) -> None:
        """Add them to the ledger, those that are held out among them."""
        ledger = self.policy.ledger
        for robot in self.data.robots.values():
            episodes = [rows for split in _SPLITS for rows in robot.episodes(split)]
            frames = sum(map(len, episodes))
            ledger.spend(demonstration_episodes=len(episodes), demonstration_frames=frames)

    def _settings(self, selection_seeds: Sequence[int] | None) -> dict[str, Any]:
        """What a resumed run is compared with, beside what the policy is."""
        training = asdict(self.config)
        # What changes nothing is left out, so that runs from before it existed go on.
        if not self._learns_points:
            del training["point_weight"]
        # As they were chosen, not as they were asked for: the defaults depend on robot and head.
        bounds = SceneAugmentation(0, 0, 0) if self._scenes is None else self._scenes.config
        training |= asdict(bounds)
        for name in ("proprio_dropout", *asdict(bounds)):
            if not training[name]:
                del training[name]
        return {
            "training": training,
            "demonstrations": {
                "frames": {
                    name: {split: len(robot.rows(split)) for split in _SPLITS}
                    for name, robot in self.data.robots.items()
                },
                # Other demonstrations may have equal numbers of frames and equal statistics.
                "content": {name: robot.fingerprint() for name, robot in self.data.robots.items()},
                "instructions": self.data.instructions,
            },
            "selection": describe_seeds(selection_seeds),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "optimizer": self._optimizer.state_dict(),
            "generator": self._rng.get_state(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        """Go on to the same losses as without the break."""
        self.step = state["step"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._rng.set_state(state["generator"])


def _means(entries: Sequence[dict[str, float]]) -> dict[str, float]:
    """By key, over the entries that have it."""
    keys = dict.fromkeys(key for entry in entries for key in entry)
    return {key: float(np.mean([e[key] for e in entries if key in e])) for key in keys}


def _join(parts: Iterable[Encoded]) -> Encoded:
    features, actions, is_pad = zip(*parts, strict=True)
    return Features.concatenate(features), torch.cat(actions), torch.cat(is_pad)
