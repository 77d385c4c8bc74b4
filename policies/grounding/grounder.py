"""Grounding: teach the vision-language model to locate the objects that an instruction names.

The model sees a scene and reads an instruction or a phrase; its pointer must give the position of
the gripper, the object and the target, in every image and in the world. Beside that it answers
questions in words: it captions, locates, tells colours and what is gripped. Only images, words
and simulator positions are used, no actions. The small embedded model has no internet-scale
pretraining: this is where it learns to perceive the scene, before any demonstration is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.checkpoints import Checkpoints
from policies.grounding.grounding_set import GroundingSet, Prompt, observe
from policies.grounding.vqa_sampler import VqaSampler
from policies.optimisation import cosine, optimizer_step, require_finite_weights
from policies.run_folder import RunFolder
from vla.model.pointer import Pointing
from vla.model.vla import VLA
from vla.model.vqa import answer_loss
from vla.policy import VLAPolicy
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import Processor
from vla.settings import require_numbers

_TOTAL = "training.updates"  # a resumed run may be made longer
_MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class GroundingConfig:
    """How long and how fast.

    Attributes:
        updates: optimizer steps.
        batch: frames an update, the tasks in proportion to their frames.
        questions: frames an update with a question to be answered in words; the embedded model
            alone answers.
        question_weight: of the loss of their answers.
        learning_rate: of AdamW after the warm-up; falls to 0 along a cosine.
        warmup: updates of linear warm-up.
        weight_decay: of AdamW.
        heldout: share of each task's last frames kept for measuring.
        bf16: autocast to bfloat16; the embedded model's backbone does so by itself.
        log_every: updates between entries of the log.
        evaluate_every: updates between checkpoints and errors on held-out frames.
        seed: of everything random.
    """

    updates: int = 9000
    batch: int = 32
    questions: int = 12
    question_weight: float = 0.5
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    heldout: float = 0.05
    bf16: bool = False
    log_every: int = 100
    evaluate_every: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(
            self, at_least_1=("batch", "log_every", "evaluate_every"), at_most={"heldout": 1 - 1e-6}
        )


@dataclass(frozen=True)
class PointingBatch:
    """Model inputs and the answers.

    Attributes:
        inputs: of n frames with a prompt each.
        world: float32 [n, points, 3], in the model's units.
        image_points: float32 [n, points, cameras, 2], NaN outside.
    """

    inputs: ModelInputs
    world: Tensor
    image_points: Tensor


class GroundingSampler:
    """Draws frames with a prompt each, and the points that they ask for.

    Raises:
        ValueError: the model knows points that a set has not, or in another frame.
    """

    def __init__(
        self, sets: Sequence[GroundingSet], model: VLA, processor: Processor, heldout: float
    ):
        for source in sets:
            source.require_points(model.config.points)
        self._sets = sets
        self._model_config = model.config
        self._processor = processor
        # Frames [0, kept) of each set are trained on, the rest is held out.
        self._kept = [s.kept(heldout) for s in sets]

    def train(self, rng: np.random.Generator, size: int) -> PointingBatch:
        """`size` frames, the tasks in proportion to their frames."""
        # By frames: a task with more scenes is drawn more often.
        share = np.array(self._kept) / sum(self._kept)
        parts = [
            self._draw(s, s.prompts, rng.integers(kept, size=count), rng)
            for s, kept, count in zip(
                self._sets, self._kept, rng.multinomial(size, share), strict=True
            )
            if count
        ]
        return PointingBatch(
            ModelInputs.concatenate([part.inputs for part in parts]),
            torch.cat([part.world for part in parts]),
            torch.cat([part.image_points for part in parts]),
        )

    def heldout(
        self, index: int, prompts: Sequence[Prompt], seed: int = 0, most: int = 512
    ) -> PointingBatch:
        """Held-out frames of the set `index`, the same ones for the same seed."""
        rng = np.random.default_rng(seed)
        # A sample where there are many: errors are quantiles, which need no more.
        rows = np.arange(self._kept[index], len(self._sets[index].images))
        rows = rng.choice(rows, size=min(most, len(rows)), replace=False)
        return self._draw(self._sets[index], prompts, np.sort(rows), rng)

    def _draw(
        self,
        source: GroundingSet,
        choice: Sequence[Prompt],
        rows: np.ndarray,
        rng: np.random.Generator,
    ) -> PointingBatch:
        # Any prompt of the set fits any of its frames, so both are drawn apart.
        prompts = [choice[i] for i in rng.integers(len(choice), size=len(rows))]
        texts = [prompt.text for prompt in prompts]
        spec = self._processor.spec
        observation = observe(spec, source.images[rows], source.proprio[rows], texts)
        config = self._model_config.points
        # [n, points], columns of `source.points`
        column = source.phrases.index
        asked = np.array([[column(p.phrase(name)) for name in config.names] for p in prompts])
        # [n, points, 3], metres
        points = torch.from_numpy(source.points[rows[:, None], asked])
        # [n, points, cameras, 2]
        image_points = torch.from_numpy(source.image_points[rows[:, None], asked])
        inputs = self._processor.encode_observation(observation)
        # To the model's units, in which positions are of order 1.
        return PointingBatch(inputs, config.scaled(points), image_points)


class Grounder:
    """One grounding run: `run` trains to the end, from the last checkpoint if there is one.

    Args:
        policy: its pointer and what its backbone leaves free are trained in place, its actor is
            left as it is.
        sets: scenes and questions.
        config: how to train.
        folder: where checkpoints `step_<n>`, `grounded` and metrics go.

    Raises:
        ValueError: the model knows no points.
    """

    def __init__(
        self,
        policy: VLAPolicy,
        sets: Sequence[GroundingSet],
        config: GroundingConfig,
        folder: RunFolder,
    ):
        if policy.model.pointer is None:
            raise ValueError(
                "a model without points cannot learn to point: name them in its points"
            )
        self.policy, self.config, self.folder = policy, config, folder
        self.update = 0
        self._sets = sets
        self._sampler = GroundingSampler(sets, policy.model, policy.processor, config.heldout)
        self._questions = VqaSampler(sets, policy.processor, config.heldout)
        self._rng = np.random.default_rng(config.seed)
        model = policy.model
        # Without the actor: no action is known here.
        self._trained = model.perception_parameters()
        self._optimizer = torch.optim.AdamW(
            self._trained,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.checkpoints = Checkpoints(folder, policy)

    def run(
        self, progress: Callable[[int, dict[str, float]], None] = lambda update, values: None
    ) -> Path:
        """Train, and return the folder of the grounded checkpoint.

        Args:
            progress: called with what was logged.

        Raises:
            ResumeError: the folder holds a run with other settings; nothing was written.
            DivergedError: a loss, gradient or weight is not finite.
        """
        if (state := self.checkpoints.resume(self._settings(), _TOTAL)) is not None:
            self._load_state(state)
        else:
            # Once a run: a resumed one has them in its ledger already.
            self.policy.ledger.spend(grounding_frames=sum(len(s.images) for s in self._sets))
        started, begun, losses = time.perf_counter(), self.update, []
        while self.update < self.config.updates:
            with self.checkpoints.stop_on_nan(self.update + 1):
                losses.append(self._learn())
            self.update += 1
            last = self.update == self.config.updates
            measured = last or self.update % self.config.evaluate_every == 0
            if not measured and self.update % self.config.log_every:
                continue
            # Since this start and not since update 0, which may be another process.
            frames = (self.update - begun) * self.config.batch
            values = {
                "loss/train": float(np.mean(losses)),
                "frames_per_s": frames / (time.perf_counter() - started),
            }
            losses.clear()
            if measured:
                # Before the checkpoint: the step that throws weights out has a finite loss itself.
                with self.checkpoints.stop_on_nan(self.update):
                    require_finite_weights(self._trained)
                if self.config.heldout:
                    # The loss mixes several terms; an error in centimetres can be read by itself.
                    values |= self.pointing_errors()
                if self.config.heldout and self.config.questions:
                    values |= self._questions.accuracy(self.policy.model.eval(), self.policy.device)
                self.checkpoints.save(self.update, self._state())
            self.folder.log(self.update, values | self.policy.ledger.metrics())
            progress(self.update, values)
        return self.policy.save(self.folder.path / "grounded", None, self.folder.command)

    def _learn(self) -> float:
        model, device = self.policy.model.train(), self.policy.device
        asked = self._sampler.train(self._rng, self.config.batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.bf16):
            pointing = self._point(asked.inputs.to(device))
        # In float32, outside autocast. Points outside of an image count in the world alone.
        loss = pointing.loss(asked.world.to(device), asked.image_points.to(device))
        if self.config.questions:
            # Frames of its own: questions are asked of fewer frames than points.
            inputs, labels = self._questions.train(self._rng, self.config.questions)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.config.bf16):
                answered = answer_loss(model, inputs.to(device), labels.to(device))
            loss = loss + self.config.question_weight * answered
        # Of the step alone, so a resumed run needs no schedule.
        rate = cosine(self.update, self.config.updates, self.config.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * rate
        optimizer_step(self._optimizer, loss, _MAX_GRAD_NORM)
        return float(loss.detach())

    def _point(self, inputs: ModelInputs) -> Pointing:
        pointing, _ = self.policy.network.point(inputs)
        assert pointing is not None, "checked at the beginning"
        return pointing

    def pointing_errors(self) -> dict[str, float]:
        """Median and 90% quantile of the error in the world on held-out frames, centimetres.

        Keys are `<task>/<point>_median_cm` and `<task>/<point>_q90_cm`; with `_<what is new>` after
        the point for prompts that were never trained on.
        """
        found: dict[str, float] = {}
        for index, source in enumerate(self._sets):
            # "" is what was trained on: held-out frames, known prompts.
            for new, prompts in {"": source.prompts, **source.unseen}.items():
                error_cm = self._error_cm(self._sampler.heldout(index, prompts))
                for column, what in enumerate(self.policy.model.config.points.names):
                    key = f"{source.name}/{what}" + (f"_{new}" if new else "")
                    found[f"{key}_median_cm"] = float(error_cm[:, column].quantile(0.5))
                    found[f"{key}_q90_cm"] = float(error_cm[:, column].quantile(0.9))
        return found

    @torch.no_grad()
    def _error_cm(self, asked: PointingBatch) -> Tensor:
        """How far each point is from the truth: [n, points]."""
        model, device = self.policy.model.eval(), self.policy.device
        guess = torch.cat(
            [
                self._point(asked.inputs.select(rows).to(device)).world.cpu()
                for rows in torch.arange(len(asked.world)).split(64)
            ]
        )
        # [n, points], from the model's units to centimetres
        return (guess - asked.world).norm(dim=-1) * model.config.points.scale_m * 100

    def _settings(self) -> dict[str, Any]:
        """What a resumed run is compared with, beside what the policy is."""
        return {
            "training": self.config,
            # Other frames would be other data, and move the border of what is held out.
            "frames": {s.name: len(s.images) for s in self._sets},
        }

    def _state(self) -> dict[str, Any]:
        return {
            "update": self.update,
            "optimizer": self._optimizer.state_dict(),
            # Draws frames, prompts and questions; torch's own state is saved by `Checkpoints`.
            "generator": self._rng.bit_generator.state,
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self.update = state["update"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._rng.bit_generator.state = state["generator"]
