"""Checkpoints of LeRobot's own policies as policies here: act, diffusion, smolvla and pi0.

LeRobot loads leniently: a missing weight is a warning (for pi0 even a failed load is), and an
action without statistics goes out unscaled. Here both are errors, and nothing in the folder runs as
code.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from vla_runtime.execution import require_steps

from vla.checkpoint.lerobot_files import POSTPROCESSOR, PREPROCESSOR
from vla.contract import ContractMismatchError, ObservationBatch, RobotSpec
from vla.lerobot_plugin.safe_files import read_pipelines

POLICIES = ("act", "diffusion", "smolvla", "pi0")  # those whose loading and queues are known here
# Normalisation mode -> the statistics without which LeRobot passes values on unscaled.
_NEEDED = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
# Settings that fetch weights which the checkpoint replaces anyway, or compile.
_NO_DOWNLOADS = {
    "pretrained_backbone_weights": None,
    "load_vlm_weights": False,
    "compile_model": False,
}


class ForeignCheckpointError(RuntimeError):
    """A LeRobot checkpoint lacks weights or statistics, has too many, or is of an unknown kind."""


def is_lerobot_checkpoint(folder: Path) -> bool:
    """A folder that LeRobot wrote for one of its own policies."""
    return (folder / "config.json").is_file() and not (folder / "manifest.json").is_file()


@dataclass(frozen=True)
class Description:
    """What a checkpoint's config.json says of its inputs and outputs.

    Attributes:
        folder: of the checkpoint.
        kind: LeRobot's name of the policy.
        images: feature → (height, width).
        vectors: feature → numbers; state, and whatever else is no image.
        action: numbers a control step.
    """

    folder: Path
    kind: str
    images: dict[str, tuple[int, int]]
    vectors: dict[str, int]
    action: int

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Read it; nothing else of the checkpoint is touched.

        Raises:
            ForeignCheckpointError: not a policy of `POLICIES`, or it says too little.
        """
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (kind := config.get("type")) not in POLICIES:
            raise ForeignCheckpointError(
                f"{folder} holds a policy of type {kind!r}; LeRobot policies that can be played "
                f"here: {', '.join(POLICIES)}"
            )
        inputs, outputs = config.get("input_features") or {}, config.get("output_features") or {}
        if "action" not in outputs or not inputs:
            raise ForeignCheckpointError(f"{folder}: config.json names no inputs or no action")
        # smolvla and pi0 put images without a camera into their list, which stay empty.
        seen = {key: ft for key, ft in inputs.items() if "empty_camera" not in key}
        return cls(
            # LeRobot gives shapes of images as [3, height, width].
            folder=folder,
            kind=kind,
            images={k: tuple(f["shape"][1:]) for k, f in seen.items() if f["type"] == "VISUAL"},
            vectors={k: f["shape"][0] for k, f in seen.items() if f["type"] != "VISUAL"},
            action=outputs["action"]["shape"][0],
        )

    def fit(self, offered: RobotSpec) -> RobotSpec:
        """The part of a robot's contract that this policy uses.

        Raises:
            ContractMismatchError: the robot lacks a camera or a vector, or a size differs; one line
                each.
        """
        features = offered.features
        cameras = {features.camera(camera.name): camera for camera in offered.cameras}
        vectors = {features.proprio: offered.proprio.dim}
        # All differences at once, so that a user sees whether it is another robot or a renamed
        # camera.
        lines = [
            f"image {key}: {self.images[key]} px, the robot has "
            + (f"{(cameras[key].height, cameras[key].width)} px" if key in cameras else "none")
            for key in self.images
            if key not in cameras or self.images[key] != (cameras[key].height, cameras[key].width)
        ]
        lines += [
            f"input {key}: {dim} numbers, the robot has {vectors.get(key, 'none')}"
            for key, dim in self.vectors.items()
            if vectors.get(key) != dim
        ]
        if self.action != offered.action.dim:
            lines.append(f"action: {self.action} numbers, the robot takes {offered.action.dim}")
        if lines:
            listed = "\n  ".join(lines)
            raise ContractMismatchError(
                f"checkpoint {self.folder} ({self.kind}) does not fit robot {offered.robot!r} "
                f"(cameras {sorted(cameras)}):\n  {listed}"
            )
        used = tuple(camera for key, camera in cameras.items() if key in self.images)
        return replace(offered, cameras=used)


class ForeignPolicy:
    """A LeRobot policy that decides one control step at a time, with what LeRobot puts around it.

    LeRobot keeps one queue of observations and actions for a whole batch. Environments that begin
    together share one here; others have their own, so that no episode meets another's past.

    Args:
        policy: in evaluation mode.
        before: from observations to its inputs.
        after: from its outputs to physical actions.
        spec: the robot that it controls.
        bf16: autocast its computations to bfloat16.

    Attributes:
        policy: LeRobot's; its own queues are never used.
        before: see above.
        after: see above.
        spec: see above.
    """

    def __init__(self, policy: Any, before: Any, after: Any, spec: RobotSpec, bf16: bool = False):
        self.spec, self._bf16 = spec, bf16
        self._device = next(policy.parameters()).device
        self.policy, self.before, self.after = policy, before, after
        # Rows that began together with their policy, and for each row the index of its group.
        self._groups: list[tuple[list[int], Any]] = []
        self._group_of: dict[int, int] = {}

    def fresh(self) -> ForeignPolicy:
        """The same policy at the beginning of its first episode."""
        return ForeignPolicy(self.policy, self.before, self.after, self.spec, self._bf16)

    def reset(self, indices: Sequence[int]) -> None:
        """New episodes begin in these environments, with empty queues."""
        rows = [int(index) for index in indices]
        self._groups.append((rows, with_own_queues(self.policy)))
        self._group_of |= dict.fromkeys(rows, len(self._groups) - 1)
        # A group without current rows is dropped, and the queues that it held with it.
        kept = sorted(set(self._group_of.values()))
        self._groups = [self._groups[old] for old in kept]
        self._group_of = {row: kept.index(old) for row, old in self._group_of.items()}

    @torch.inference_mode()
    def act(self, observation: ObservationBatch) -> Tensor:
        """The next control step, float32 [n, 1, action.dim]; 0 where no episode ever began."""
        chunks = torch.zeros(len(observation), 1, self.spec.action.dim)
        # A group's queues need all rows that began together, also those that have left it since:
        # their actions are computed and not used.
        for group, (rows, policy) in enumerate(self._groups):
            actions = self.after(self._select(policy, observation.select(rows)).float()).cpu()
            for row, action in zip(rows, actions, strict=True):
                # The row may have begun a later episode, and belongs to that group now.
                if self._group_of[row] == group:
                    chunks[row, 0] = action
        return chunks.to(observation.proprio.device)

    def _select(self, policy: Any, observation: ObservationBatch) -> Tensor:
        # act and pi0 read no observation before the last chunk is used up.
        waiting = getattr(policy, "_action_queue", ())
        batch = {} if waiting else self.before(self.batch(observation))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            return policy.select_action(batch)

    def batch(self, observation: ObservationBatch) -> dict[str, Any]:
        """An observation as LeRobot's data sets and environments give it."""
        names = self.spec.features
        images = {
            # uint8 [n, h, w, 3] to float32 [n, 3, h, w] in 0..1, as LeRobot's data sets give
            # images.
            names.camera(name): image.to(self._device).permute(0, 3, 1, 2).float() / 255
            for name, image in observation.images.items()
            if name in {camera.name for camera in self.spec.cameras}
        }
        return {**images, names.proprio: observation.proprio, "task": observation.instructions}


def with_own_queues(policy: Any) -> Any:
    """The same weights with queues of its own."""
    # Shallow: weights are shared. `reset` assigns new queues instead of clearing the old ones.
    twin = copy.copy(policy)
    if (ensembler := getattr(policy, "temporal_ensembler", None)) is not None:
        twin.temporal_ensembler = copy.deepcopy(ensembler)
    twin.reset()
    return twin


def load_lerobot_policy(
    folder: Path,
    offered: RobotSpec,
    device: torch.device | str = "cpu",
    bf16: bool = False,
    optimise: Callable[[Any, bool], None] | None = None,
    execute_steps: int | None = None,
) -> ForeignPolicy:
    """Load a LeRobot checkpoint strictly, for a robot with this contract.

    Args:
        folder: of the checkpoint.
        offered: the robot's contract.
        device: where to compute.
        bf16: compute in bfloat16, which is faster and changes actions slightly.
        optimise: changes LeRobot's policy in place, before it plays; it is given `bf16` too.
        execute_steps: control steps executed of each chunk; None for as many as it was saved with.

    Raises:
        ContractMismatchError: it is for other cameras, or for other sizes of state or action.
        ForeignCheckpointError: a weight or a statistic is missing, or a weight is surplus.
        UnsafeFileError: a processor file asks for more than known steps.
        ValueError: its chunks have not so many steps, or all chunks are blended.
    """
    spec = Description.read(folder).fit(offered)
    # Before LeRobot reads anything: its loader imports what the files name.
    pipelines = read_pipelines(folder)
    if any(step.get("config", {}).get("enabled") for step in pipelines[PREPROCESSOR]):
        raise ForeignCheckpointError(f"{folder} commands relative actions, which are not supported")
    # LeRobot takes seconds to import, and whoever loads only our own checkpoints needs none of it.
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(folder)
    # The file holds the device and the path of its training, which need not exist here.
    config.device, config.pretrained_path = str(device), None
    for name, value in _NO_DOWNLOADS.items():
        if hasattr(config, name):
            setattr(config, name, value)
    if execute_steps is not None:
        _execute(config, execute_steps)
    before, after = make_pre_post_processors(
        config,
        str(folder),
        preprocessor_overrides={"device_processor": {"device": str(device)}},
    )
    _require_statistics(folder, config, before, config.input_features or {}, PREPROCESSOR)
    _require_statistics(folder, config, after, config.output_features or {}, POSTPROCESSOR)
    policy = get_policy_class(config.type)(config)
    _load_weights(policy, folder / "model.safetensors", config)
    policy = policy.to(device).eval()
    if optimise is not None:
        optimise(policy, bf16)
    return ForeignPolicy(policy, before, after, spec, bf16)


def _execute(config: Any, steps: int) -> None:
    """Have a chunk's first steps executed; `config` is changed."""
    if getattr(config, "temporal_ensemble_coeff", None) is not None:
        raise ValueError("the checkpoint blends all its chunks (temporal_ensemble_coeff)")
    most = getattr(config, "chunk_size", None)
    if most is None:
        # Diffusion's horizon begins at the oldest observation.
        most = config.horizon - config.n_obs_steps + 1
    require_steps("steps executed of a chunk", steps, 1, most)
    config.n_action_steps = steps


def _require_statistics(
    folder: Path, config: Any, pipeline: Any, features: Mapping[str, Any], name: str
) -> None:
    """Every feature that the policy wants scaled is scaled, by statistics that are there."""
    scalers = [step for step in pipeline.steps if hasattr(step, "norm_map")]
    held = {key: value for step in scalers for key, value in step.state_dict().items()}
    for key, feature in features.items():
        mode = config.normalization_mapping.get(feature.type.value)
        if mode is None or mode.value == "IDENTITY" or "empty_camera" in key:
            continue
        scaled = any(key in s.features and s.norm_map.get(feature.type) is mode for s in scalers)
        needed = [f"{key}.{statistic}" for statistic in _NEEDED[mode.value]]
        missing = [one for one in needed if one not in held or not held[one].isfinite().all()]
        if missing or not scaled:
            what = f"lacks the statistics {missing}" if missing else f"does not scale {key!r}"
            raise ForeignCheckpointError(
                f"{folder}/{name}.json {what}, which the policy needs as {mode.value}: copy the "
                "checkpoint again, whole, or save it with make_pre_post_processors and the "
                "statistics of its data set"
            )


def _load_weights(policy: nn.Module, file: Path, config: Any) -> None:
    """Every weight that the policy has, and no other."""
    if not file.is_file():
        raise ForeignCheckpointError(f"{file} is missing: the checkpoint has no weights")
    weights = load_file(file)
    if (fix := getattr(policy, "_fix_pytorch_state_dict_keys", None)) is not None:
        # pi0's published checkpoints have other names, which LeRobot knows how to mend.
        fixed = fix(weights, config)
        weights = {k if k.startswith("model.") else f"model.{k}": w for k, w in fixed.items()}
    own = policy.state_dict()
    # A tied weight is saved once, under one of its names.
    loaded = {own[name].data_ptr() for name in weights if name in own}
    missing = [n for n, w in own.items() if n not in weights and w.data_ptr() not in loaded]
    surplus = sorted(set(weights) - set(own))
    wrong = [n for n, w in weights.items() if n in own and own[n].shape != w.shape]
    # Checked by hand, since a tied weight is rightly absent and `strict` would refuse it.
    if missing or surplus or wrong:
        raise ForeignCheckpointError(
            f"{file} does not fit its config.json: missing {missing[:5]} ({len(missing)}), "
            f"surplus {surplus[:5]} ({len(surplus)}), of another shape {wrong[:5]} ({len(wrong)})"
        )
    policy.load_state_dict(weights, strict=False)
