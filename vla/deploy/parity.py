"""Whether an exported policy decides as the one that it was made from, measured before it counts.

Success rates cannot tell: rounding of one part in a million on the actions changes which episodes
succeed. So decisions are compared, on given observations and along whole episodes: the policy in
torch drives, and the exported one decides on the same observations with a memory of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from vla_runtime.contract import InpaintingPolicy, RobotPolicy
from vla_runtime.exported.policy import ExportedPolicy

from vla.contract import Observation, ObservationBatch, RobotSpec, VecEnv
from vla.deploy.onnx_graphs import ExportError
from vla.deploy.reference import Reference
from vla.policy import VLAPolicy

TOLERANCE = 1e-4
"""In the action's unit; for dimensions that reach further than 1 from their middle, of that."""


class ParityError(ExportError):
    """An exported policy does not decide as the one that it was made from."""


def tolerances(spec: RobotSpec) -> np.ndarray:
    """How far two commands may be apart, float64 [action.dim]."""
    half = (np.array(spec.action.high) - np.array(spec.action.low)) / 2
    # float32 holds seven digits: of a command of 4,000 encoder steps none of them is 1e-4.
    return TOLERANCE * np.maximum(1.0, np.where(np.isfinite(half), half, 1.0))


@dataclass
class Comparison:
    """Differences found so far.

    Args:
        spec: the robot's contract.
        what: is compared, for messages.
    """

    spec: RobotSpec
    what: str
    decisions: int = 0
    largest: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.largest = np.zeros(self.spec.action.dim)

    def add(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Two chunks [chunk_length, action.dim] of one decision.

        Raises:
            ParityError: they are further apart than allowed; names dimension and size.
        """
        self.decisions += 1
        apart = np.abs(ours.astype(np.float64) - theirs).max(axis=0)  # [action.dim]
        self.largest = np.maximum(self.largest, apart)
        excess = apart / tolerances(self.spec)
        if not (excess <= 1).all():  # NaN fails this comparison, too
            worst, action = int(np.argmax(excess)), self.spec.action
            raise ParityError(
                f"{self.what}: at decision {self.decisions} the exported policy commands "
                f"{action.names[worst]!r} {apart[worst]:.3g} {action.units[worst]} apart from the "
                f"checkpoint in torch, {tolerances(self.spec)[worst]:.3g} are allowed; nothing was "
                "written"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for policy.json: largest differences by action dimension."""
        names = self.spec.action.names
        return {
            "decisions": self.decisions,
            "largest_difference": dict(zip(names, self.largest.tolist(), strict=True)),
            "allowed": dict(zip(names, tolerances(self.spec).tolist(), strict=True)),
        }


def compare_decisions(
    reference: RobotPolicy, exported: RobotPolicy, observations: Iterable[Observation]
) -> dict[str, Any]:
    """Open loop: every observation begins an episode, and a second decision follows on it.

    Raises:
        ParityError: chunks or action tokens differ.
    """
    comparison = Comparison(reference.spec, "open loop")
    for observation in observations:
        states = reference.initial_state(), exported.initial_state()
        # Twice, so that what comes out of one decision's memory goes into another.
        for _ in range(2):
            ours, mine = reference.decide(observation, states[0])
            theirs, other = exported.decide(observation, states[1])
            comparison.add(ours.actions, theirs.actions)
            states = mine, other
    return comparison.to_dict()


def compare_tokens(
    reference: Reference, exported: ExportedPolicy, observations: Iterable[Observation]
) -> int:
    """The number of action tokens, all of which are equal; 0 for a head without.

    Raises:
        ParityError: some differ.
    """
    count = 0
    for observation in observations:
        ours = reference.tokens(observation, reference.initial_state())
        if ours is None:
            return 0
        theirs = exported.tokens(observation, exported.initial_state())
        if not np.array_equal(ours, theirs):
            raise ParityError(f"action tokens differ: {ours.tolist()} and {theirs.tolist()}")
        count += ours.size
    return count


def compare_prompts(policy: VLAPolicy, exported: ExportedPolicy, words: Iterable[str]) -> int:
    """The number of instructions, whose token ids and masks are all equal.

    Raises:
        ParityError: some differ.
    """
    count = 0
    # Beside those that occur: what only a careless tokenizer gets right.
    for text in [*words, "", "  Push THE block", "<image>", "<pad> x", "naïve 日本 🤖"]:
        try:
            made = policy.processor.prompts.texts([text])
        except ValueError as refusal:
            _require_refusal(exported, text, refusal)
            continue
        ids, mask = exported.prompt(text)
        for ours, theirs in ((made["input_ids"], ids), (made["attention_mask"], mask)):
            if not np.array_equal(ours.numpy(), theirs):
                raise ParityError(f"instruction {text!r} has other tokens: {ours} and {theirs}")
        count += 1
    return count


def _require_refusal(exported: ExportedPolicy, text: str, refusal: ValueError) -> None:
    try:
        exported.prompt(text)
    except ValueError:
        return
    raise ParityError(f"the exported policy takes an instruction that was refused: {refusal}")


def compare_inpainting(
    reference: InpaintingPolicy, exported: InpaintingPolicy, observations: Iterable[Observation]
) -> dict[str, Any]:
    """Chunks that go on with a random chunk within the limits, with weights from 1 to 0.

    Raises:
        ParityError: chunks differ.
    """
    spec, rng = reference.spec, np.random.default_rng(0)
    comparison = Comparison(spec, "inpainting")
    weight = np.linspace(1, 0, reference.chunk_length, dtype=np.float32)
    for observation in observations:
        target, _ = reference.decide(observation, reference.initial_state())
        shift = rng.uniform(-0.1, 0.1, target.actions.shape) * 1e4 * tolerances(spec)
        wanted = (target.actions + shift).clip(spec.action.low, spec.action.high).astype(np.float32)
        ours, theirs = (
            policy.inpaint(observation, policy.initial_state(), wanted, weight)[0]
            for policy in (reference, exported)
        )
        comparison.add(ours.actions, theirs.actions)
    return comparison.to_dict()


def shadow(
    reference: RobotPolicy, exported: RobotPolicy, env: VecEnv, seeds: Sequence[int]
) -> dict[str, Any]:
    """Closed loop: the reference drives whole episodes, one for each seed.

    Args:
        reference: drives.
        exported: decides on the same observations, with its own memory.
        env: of the robot, with one environment.
        seeds: of the initial states.

    Raises:
        ParityError: chunks differ.
    """
    comparison = Comparison(reference.spec, "closed loop")
    for seed in seeds:
        env.reset([0], [seed])
        states, ended = (reference.initial_state(), exported.initial_state()), False
        while not ended:
            observation = single(env.observe()[0])
            ours, mine = reference.decide(observation, states[0])
            theirs, other = exported.decide(observation, states[1])
            comparison.add(ours.actions, theirs.actions)
            states = mine, other
            step = env.step(torch.from_numpy(ours.actions)[None].to(env.device))
            ended = bool(step.terminated[0] or step.truncated[0])
    return {"episodes": len(seeds), **comparison.to_dict()}


def single(batch: ObservationBatch, row: int = 0) -> Observation:
    """One row of a batch as a robot's observation."""
    return Observation(
        images={name: image[row].cpu().numpy() for name, image in batch.images.items()},
        proprio=batch.proprio[row].cpu().numpy().astype(np.float32),
        instruction=batch.instructions[row],
        time_s=float(batch.time_s[row]),
    )


def random_observations(
    spec: RobotSpec, low: Sequence[float], high: Sequence[float], count: int
) -> list[Observation]:
    """Random images, with proprioception between the two bounds."""
    rng = np.random.default_rng(0)
    words = ("push the red block to the blue zone", "lift the green block", "go to the ball")
    return [
        Observation(
            images={
                c.name: rng.integers(256, size=(c.height, c.width, 3), dtype=np.uint8)
                for c in spec.cameras
            },
            proprio=rng.uniform(low, high).astype(np.float32),
            instruction=words[index % len(words)],
        )
        for index in range(count)
    ]
