"""LeRobot's policies as modules to export, normalisation and its inverse included.

LeRobot's own pipelines and networks run in them unchanged; only what is no arithmetic (words to
tokens, queues, loops) is left to the runtime.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vla.contract import RobotSpec
from vla.deploy.graphs import Graph
from vla.lerobot_plugin.foreign import ForeignPolicy
from vla.processing.normalisation import Limits

_WORDS = "observation.language"
"""Prefix of the features in which LeRobot's tokenizer step leaves `tokens` and `attention_mask`."""


class _Network(nn.Module):
    """A LeRobot policy between a robot's observations and its commands.

    Args:
        foreign: loaded, in evaluation mode.
        limits: clip commands to the contract.
    """

    def __init__(self, foreign: ForeignPolicy, limits: bool = True):
        super().__init__()
        self.policy: Any = foreign.policy
        self.spec, self._after = foreign.spec, foreign.after
        # The same pipeline without the step that turns words into tokens.
        self._before = copy.copy(foreign.before)
        self._before.steps = [
            step for step in foreign.before.steps if not hasattr(step, "input_tokenizer")
        ]
        self.limits = Limits("action", self.spec.action) if limits else nn.Identity()

    def batch(self, tensors: tuple[Tensor, ...]) -> dict[str, Any]:
        """What LeRobot's policy reads, of the graph's inputs in the order of `observation`."""
        names, cameras = self.spec.features, self.spec.cameras
        proprio, *words = tensors[len(cameras) :]
        batch: dict[str, Any] = {
            # uint8 [n, h, w, 3] to float32 [n, 3, h, w] in 0..1, as LeRobot's data sets give it.
            names.camera(camera.name): image.permute(0, 3, 1, 2).float() / 255
            for camera, image in zip(cameras, tensors, strict=False)
        }
        made = self._before(batch | {names.proprio: proprio, "task": [""]})
        for name, tensor in zip(("tokens", "attention_mask"), words, strict=False):
            made[f"{_WORDS}.{name}"] = tensor
        return made

    def commands(self, chunk: Tensor) -> Tensor:
        """Normalised [n, steps, action.dim] in physical units, within limits."""
        return self.limits(self._after(chunk).float())


class _Act(_Network):
    """ACT: an observation to a chunk."""

    def forward(self, *tensors: Tensor) -> Tensor:
        """Physical [n, steps, action.dim]."""
        chunk = self.policy.predict_action_chunk(self.batch(tensors))
        config = self.policy.config
        # The ensemble averages over all that was predicted.
        whole = config.temporal_ensemble_coeff is not None
        return self.commands(chunk if whole else chunk[:, : config.n_action_steps])


class _Denoise(_Network):
    """One denoising step, and the commands that the sample stands for after it.

    Args:
        foreign: the policy.
        first: control steps of a sample that are past.
        clip: largest magnitude of an estimate of the clean sample.
    """

    def __init__(self, foreign: ForeignPolicy, first: int, clip: float):
        super().__init__(foreign)
        self._steps = slice(first, first + self.policy.config.n_action_steps)
        self._clip = clip

    def update(
        self, sample: Tensor, output: Tensor, noise: Tensor, coefficients: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `vla.deploy.lerobot_denoising`; all [n, steps, dim], coefficients [n, 6]."""
        a, b, c, d, e, f = coefficients[:, :, None, None].unbind(1)  # [n, 1, 1] each
        clean = (a * sample + b * output).clamp(-self._clip, self._clip)
        sample = c * clean + d * sample + e * output + f * noise
        return sample, self.commands(sample[:, self._steps, : self.spec.action.dim])


class _DiffusionEncode(_Network):
    """One observation to what conditions the diffusion."""

    def forward(self, *tensors: Tensor) -> Tensor:
        """Features [n, features]."""
        batch = self.batch(tensors)
        config = self.policy.config
        images = {}
        if config.image_features:
            # [n, 1, cameras, 3, h, w]: the history's axis is joined by the runtime.
            images["observation.images"] = torch.stack(
                [batch[key] for key in config.image_features], dim=1
            )[:, None]
        state = {"observation.state": batch["observation.state"][:, None]}
        return self.policy.diffusion._prepare_global_conditioning(images | state)


class _DiffusionDenoise(_Denoise):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """In the order of `_denoise_graph`."""
        sample, time, coefficients, noise, condition = tensors
        output = self.policy.diffusion.unet(sample, time.long(), global_cond=condition)
        return self.update(sample, output, noise, coefficients)


class _FlowEncode(_Network):
    """SmolVLA and pi0: an observation to the keys and values that the action expert attends to."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """In the order of `context_names`."""
        config, found = self.policy.config, {}

        def stop(**context: Any) -> Tensor:
            found.update(context)
            return context["x_t"]

        rows = tensors[0].shape[0]
        sample = tensors[-1].new_zeros(rows, config.chunk_size, config.max_action_dim).float()
        # LeRobot's own code prepares everything up to the first denoising step, and no further.
        with _replaced(self.policy.model, "denoise_step", stop):
            self.policy.predict_action_chunk(self.batch(tensors), noise=sample)
        cache = found["past_key_values"].layers
        state = (found["state"],) if "state" in found else ()  # pi0's expert reads it, too
        pairs = [tensor for layer in cache for tensor in (layer.keys, layer.values)]
        return found["prefix_pad_masks"], *state, *pairs


class _FlowDenoise(_Denoise):
    def __init__(self, foreign: ForeignPolicy, names: tuple[str, ...]):
        super().__init__(foreign, first=0, clip=float("inf"))
        self._names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """In the order of `_denoise_graph`."""
        # transformers takes seconds to import.
        from transformers import DynamicCache

        sample, time, coefficients, noise, *context = tensors
        given = dict(zip(self._names, context, strict=True))
        cache = DynamicCache()
        for layer in range(sum(name.startswith("keys.") for name in given)):
            cache.update(given[f"keys.{layer}"], given[f"values.{layer}"], layer)
        state = {"state": given["state"]} if "state" in given else {}
        output = self.policy.model.denoise_step(
            prefix_pad_masks=given["prefix_mask"],
            past_key_values=cache,
            x_t=sample,
            timestep=time,
            **state,
        )
        return self.update(sample, output, noise, coefficients)


def act_graphs(foreign: ForeignPolicy) -> dict[str, Graph]:
    """The one graph of ACT."""
    # An average of clipped commands is not the clipped average: the runtime clips after it.
    alone = foreign.policy.config.temporal_ensemble_coeff is None
    return {"encode": Graph(_Act(foreign, alone), _observation(foreign.spec), ("actions",), {})}


def diffusion_graphs(foreign: ForeignPolicy) -> dict[str, Graph]:
    """Observation to condition, and a denoising step under it."""
    encode = Graph(_DiffusionEncode(foreign), _observation(foreign.spec), ("condition",), {})
    with torch.no_grad():
        condition = encode.module(*encode.inputs.values())
    config = foreign.policy.config
    settings = foreign.policy.diffusion.noise_scheduler.config
    clip = settings.clip_sample_range if settings.clip_sample else float("inf")
    module = _DiffusionDenoise(foreign, config.n_obs_steps - 1, clip)
    context = {"condition": condition.repeat(1, config.n_obs_steps)}
    shape = (config.horizon, foreign.spec.action.dim)
    return {"encode": encode, "denoise": _denoise_graph(module, shape, context)}


def flow_graphs(foreign: ForeignPolicy, tokens: int) -> dict[str, Graph]:
    """Observation to keys and values, and a step of the flow.

    Args:
        foreign: SmolVLA or pi0.
        tokens: of every instruction, padding included.
    """
    words = {
        "input_ids": torch.ones(2, tokens, dtype=torch.int64),
        "attention_mask": torch.ones(2, tokens, dtype=torch.bool),
    }
    inputs, module = _observation(foreign.spec) | words, _FlowEncode(foreign)
    with torch.no_grad():
        given = module(*inputs.values())
    reads_state = len(given) % 2 == 0  # beside the mask and pairs of keys and values
    layers = range((len(given) - 1) // 2)
    pairs = [f"{kind}.{layer}" for layer in layers for kind in ("keys", "values")]
    names = ("prefix_mask", *(["state"] if reads_state else []), *pairs)
    config = foreign.policy.config
    shape = (config.chunk_size, config.max_action_dim)
    context = dict(zip(names, given, strict=True))
    denoise = _denoise_graph(_FlowDenoise(foreign, names), shape, context)
    return {"encode": Graph(module, inputs, names, {}), "denoise": denoise}


def _observation(spec: RobotSpec) -> dict[str, Tensor]:
    """Examples of the inputs that all policies have."""
    images = {
        f"image.{camera.name}": torch.zeros(2, camera.height, camera.width, 3, dtype=torch.uint8)
        for camera in spec.cameras
    }
    return {**images, "proprio": torch.zeros(2, spec.proprio.dim)}


def _denoise_graph(module: _Denoise, shape: tuple[int, int], context: dict[str, Tensor]) -> Graph:
    inputs = {
        "sample": torch.zeros(2, *shape),
        "time": torch.ones(2),
        "coefficients": torch.zeros(2, 6),
        "noise": torch.zeros(2, *shape),
        **context,
    }
    return Graph(module, inputs, ("next.sample", "actions"), {})


@contextmanager
def _replaced(module: nn.Module, method: str, other: Any) -> Iterator[None]:
    """One method of this object alone is another one for a while."""
    setattr(module, method, other)
    try:
        yield
    finally:
        delattr(module, method)
