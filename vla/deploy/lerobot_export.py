"""`vla export` for checkpoints of LeRobot's own policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vla_runtime.exported.folder import PolicyDescription, PromptSettings
from vla_runtime.exported.lerobot import ExportedLeRobotPolicy
from vla_runtime.exported.lerobot_settings import LeRobotSettings

from vla.contract import ActionChunk, Observation
from vla.deploy.export import write_exported
from vla.deploy.graphs import Graph
from vla.deploy.lerobot_denoising import diffusion_denoising, flow_denoising
from vla.deploy.lerobot_graphs import act_graphs, diffusion_graphs, flow_graphs
from vla.deploy.onnx_graphs import ExportError
from vla.deploy.prompt_settings import find_settings, tokenizer_json
from vla.lerobot_plugin.foreign import ForeignPolicy, with_own_queues
from vla.processing.processor import collate

_SEED = 0  # of the noise in comparisons

LeRobotCheck = Callable[[ExportedLeRobotPolicy], dict[str, Any]]
"""Compares an export with `LeRobotReference`; the result goes into policy.json."""


def export_lerobot_policy(
    foreign: ForeignPolicy, out: Path, source: dict[str, Any], check: LeRobotCheck
) -> dict[str, Any]:
    """Write a LeRobot policy as graphs, and give it its name only if it decides as before.

    Args:
        foreign: of type act, diffusion, smolvla or pi0; in float32 on the CPU from now on.
        out: a new folder.
        source: what is exported, for policy.json.
        check: compares the export with `LeRobotReference`, and raises where they differ.

    Returns:
        What `check` found.

    Raises:
        ExportError: it cannot be exported, or does not compute the same.
        FileExistsError: there is something of that name.
    """
    # bfloat16 would round in another way on every processor.
    foreign.policy.float().cpu()
    settings = lerobot_settings(foreign)
    tokenizer, prompt = lerobot_words(foreign)
    graphs = lerobot_graphs(foreign, prompt)
    description = PolicyDescription(
        head=f"lerobot {foreign.policy.config.type}",
        chunk_length=settings.chunk_length,
        graphs=tuple(graphs),
        prompt=prompt,
        source=source,
        lerobot=settings,
    )
    return write_exported(
        out,
        foreign.spec,
        description,
        graphs,
        tokenizer,
        # As the reference draws it.
        lambda folder: check(ExportedLeRobotPolicy(folder, seed=_SEED, noise=torch_noise)),
    )


def lerobot_settings(foreign: ForeignPolicy) -> LeRobotSettings:
    """What LeRobot does around the network of this policy.

    Raises:
        ExportError: a setting that is not exported; names it.
    """
    config = foreign.policy.config
    if getattr(config, "adapt_to_pi_aloha", False):
        raise ExportError("a policy with adapt_to_pi_aloha is not exported: no graph converts so")
    if getattr(config, "rtc_config", None) is not None:
        raise ExportError(
            "a policy with rtc_config is not exported: LeRobot then blends chunks with each "
            "other; remove rtc_config from its config.json to export it as it decides alone"
        )
    action, denoising = foreign.spec.action.dim, None
    if config.type == "diffusion":
        model = foreign.policy.diffusion
        shape = (config.horizon, action)
        denoising = diffusion_denoising(model.noise_scheduler, model.num_inference_steps, shape)
    elif config.type != "act":
        steps = config.num_steps if config.type == "smolvla" else config.num_inference_steps
        denoising = flow_denoising(steps, (config.chunk_size, config.max_action_dim))
    ensemble = getattr(config, "temporal_ensemble_coeff", None)
    return LeRobotSettings(config.n_obs_steps, config.n_action_steps, ensemble, denoising)


def lerobot_graphs(foreign: ForeignPolicy, prompt: PromptSettings | None) -> dict[str, Graph]:
    """Everything to export of a policy, by name; `encode` comes first."""
    if prompt is not None:
        return flow_graphs(foreign, prompt.length)
    return {"act": act_graphs, "diffusion": diffusion_graphs}[foreign.policy.config.type](foreign)


def lerobot_words(foreign: ForeignPolicy) -> tuple[str | None, PromptSettings | None]:
    """Text of tokenizer.json, and how it is used; None twice for a policy that reads no words.

    Raises:
        ExportError: its prompts cannot be made without transformers.
    """
    steps = [step for step in foreign.before.steps if hasattr(step, "input_tokenizer")]
    if not steps:
        return None, None
    (step,) = steps
    file = tokenizer_json(step.input_tokenizer)

    def encode(instruction: str) -> list[int]:
        # LeRobot ends every instruction with a new line, and cuts what is too long: the exported
        # policy refuses that, since a cut instruction could mean something else.
        return step.input_tokenizer(f"{instruction}\n")["input_ids"]

    pad = step.input_tokenizer.pad_token_id
    around = (("", "\n"),)
    found = find_settings(file, encode, around, pad, step.max_length, step.padding_side)
    return file, replace(found, refused=tuple(step.input_tokenizer.all_special_tokens))


def torch_noise(seed: int, decision: int, shape: tuple[int, ...]) -> np.ndarray:
    """A `NoiseSource` with the numbers that LeRobot draws after `torch.manual_seed`."""
    generator = torch.Generator().manual_seed(_torch_seed(seed, decision))
    # One draw after the other: PyTorch fills a larger tensor in another order.
    return np.stack([torch.randn(shape[1:], generator=generator).numpy() for _ in range(shape[0])])


def _torch_seed(seed: int, decision: int) -> int:
    return seed * 1_000_003 + decision


@dataclass
class _Playing:
    """LeRobot's policy with the queues of one episode, which change as it decides."""

    policy: Any
    decisions: int = 0


class LeRobotReference:
    """What an export is compared with, a `RobotPolicy`: LeRobot's `select_action` in torch.

    Args:
        foreign: the policy.
    """

    def __init__(self, foreign: ForeignPolicy):
        self._foreign, self.spec = foreign, foreign.spec
        self.chunk_length = lerobot_settings(foreign).chunk_length
        self._limits = np.array([self.spec.action.low, self.spec.action.high], dtype=np.float32)

    def initial_state(self) -> object:
        """Empty queues."""
        return _Playing(with_own_queues(self._foreign.policy))

    @torch.inference_mode()
    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, object]:
        """See `RobotPolicy.decide`; the state is changed in place."""
        assert isinstance(state, _Playing)
        batch = self._foreign.before(self._foreign.batch(collate([observation], self.spec)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_torch_seed(_SEED, state.decisions))
            steps = [state.policy.select_action(dict(batch)) for _ in range(self.chunk_length)]
        actions = torch.cat([self._foreign.after(step) for step in steps]).float().numpy()
        state.decisions += 1
        return ActionChunk(actions.clip(*self._limits)), state
