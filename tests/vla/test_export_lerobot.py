"""LeRobot's policies as exported folders: they decide as LeRobot's own `select_action`.

Every kind is compared with its graphs still in torch, which tests all but the conversion; whole
exports are `slow` but for ACT's, and each compares its own decisions and is refused where they
differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from foreign_checkpoints import PIXELS, make_checkpoint
from lerobot.policies.act.modeling_act import ACTTemporalEnsembler
from vla_runtime.contract import ContractMismatchError
from vla_runtime.exported.folder import (
    ExportedFolderError,
    PolicyDescription,
    write_description,
    write_manifest,
)
from vla_runtime.exported.lerobot import (
    ExportedLeRobotPolicy,
    LeRobotState,
    denoise,
    ensemble,
    numpy_noise,
)
from vla_runtime.exported.lerobot_settings import LeRobotSettings
from vla_runtime.exported.policy import Arrays
from vla_runtime.loading import load_policy

from scripts.export_lerobot import export_lerobot, lerobot_contract
from scripts.export_trials import Trials
from sim.tasks.fetch_arm import fetch_robot_spec
from vla.deploy.graphs import Graph
from vla.deploy.lerobot_denoising import diffusion_denoising, flow_denoising
from vla.deploy.lerobot_export import (
    LeRobotReference,
    export_lerobot_policy,
    lerobot_graphs,
    lerobot_settings,
    lerobot_words,
    torch_noise,
)
from vla.deploy.onnx_graphs import ExportError
from vla.deploy.parity import ParityError, compare_decisions, random_observations
from vla.lerobot_plugin.foreign import ForeignPolicy, load_lerobot_policy

ROBOT = fetch_robot_spec(PIXELS)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "act-ensemble": ("act", {"temporal_ensemble_coeff": 0.01, "n_action_steps": 1}),
    "diffusion": ("diffusion", {}),
    "diffusion-ddim": ("diffusion", {"noise_scheduler_type": "DDIM", "n_obs_steps": 1}),
    "smolvla": ("smolvla", {}),
    "pi0": ("pi0", {}),
}


def load(kind: str, folder: Path, **settings: Any) -> ForeignPolicy:
    """A small LeRobot policy with these settings."""
    with pytest.MonkeyPatch.context() as patch:
        make_checkpoint(kind, folder / kind, patch, **settings)
        return load_lerobot_policy(folder / kind, ROBOT)


def compared(foreign: ForeignPolicy) -> Callable[[ExportedLeRobotPolicy], dict[str, Any]]:
    """Compares open loop, and over an episode that is longer than a chunk."""
    reference = LeRobotReference(foreign)
    low, high = [-1.0] * foreign.spec.proprio.dim, [1.0] * foreign.spec.proprio.dim
    seen = random_observations(foreign.spec, low, high, 3)

    def check(exported: ExportedLeRobotPolicy) -> dict[str, Any]:
        states = reference.initial_state(), exported.initial_state()
        for step in range(7):
            ours, mine = reference.decide(seen[step % 3], states[0])
            theirs, other = exported.decide(seen[step % 3], states[1])
            np.testing.assert_allclose(theirs.actions, ours.actions, atol=1e-4)
            states = mine, other
        return {"open_loop": compare_decisions(reference, exported, seen)}

    return check


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> tuple[ForeignPolicy, Path]:
    """An ACT policy, and the folder to which it was exported."""
    folder = tmp_path_factory.mktemp("act")
    foreign = load("act", folder)
    export_lerobot_policy(foreign, folder / "out", {"weights": "x"}, compared(foreign))
    return foreign, folder / "out"


# what is around the networks


def test_an_ensemble_averages_as_lerobot_does() -> None:
    """Over two chunks' length; the first decision is the prediction itself."""
    theirs, state = ACTTemporalEnsembler(0.1, 4), LeRobotState(0)
    for chunk in torch.rand(8, 4, 2):
        expected = theirs.update(chunk[None])
        found, state = ensemble(0.1, chunk.numpy(), state)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_samplers_draw_as_those_of_diffusers(kind: Any, clip: bool, prediction: str) -> None:
    """With a network that is a line, and the same noise."""
    scheduler = kind(
        num_train_timesteps=50, prediction_type=prediction, clip_sample=clip, clip_sample_range=0.7
    )
    loop = diffusion_denoising(scheduler, 5, (6, 2))
    noise = torch_noise(3, 1, (1 + 5 * loop.fresh_noise, 1, 6, 2))
    sample = torch.from_numpy(noise[0])
    torch.manual_seed(3 * 1_000_003 + 1)
    torch.randn(1, 6, 2)  # the first sample's
    for time in scheduler.timesteps:
        sample = scheduler.step(line(sample), time, sample).prev_sample
    found = denoise(loop, sampler(0.7 if clip else np.inf), {}, noise)
    np.testing.assert_allclose(found, sample[0].numpy(), atol=1e-5)


def line(sample: Any) -> Any:
    """Stands for a network."""
    return 0.8 * sample + 0.1


def sampler(clip: float) -> Callable[[Arrays], Arrays]:
    """One denoising step of `line`, as the graph computes it."""

    def step(given: Arrays) -> Arrays:
        sample = given["sample"]
        a, b, c, d, e, f = given["coefficients"][0]
        clean = np.clip(a * sample + b * line(sample), -clip, clip)
        moved = c * clean + d * sample + e * line(sample) + f * given["noise"]
        return {"next.sample": moved, "actions": moved}

    return step


def test_a_flow_is_integrated_from_noise_to_actions() -> None:
    """Euler steps of the field 0.8 x + 0.1, from time 1 to 0."""
    noise = np.ones((1, 1, 2, 3), np.float32)
    loop = flow_denoising(4, (2, 3))
    assert loop.times == (1.0, 0.75, 0.5, 0.25)
    expected = 1.0
    for _ in range(4):
        expected -= (0.8 * expected + 0.1) / 4
    np.testing.assert_allclose(denoise(loop, sampler(np.inf), {}, noise), expected, rtol=1e-6)


def test_samplers_without_a_table_are_refused() -> None:
    """By name, with those that have one."""
    with pytest.raises(ExportError, match=r"'v_prediction'.*DDIMScheduler.*'epsilon'"):
        diffusion_denoising(DDIMScheduler(prediction_type="v_prediction"), 5, (6, 2))
    with pytest.raises(ExportError, match="thresholding"):
        diffusion_denoising(DDPMScheduler(thresholding=True), 5, (6, 2))


def test_settings_survive_json() -> None:
    """Tables of tuples, too; and a policy that has to see every control step decides at each."""
    loop = flow_denoising(2, (3, 4))
    for settings in (LeRobotSettings(2, 3, 0.1, loop), LeRobotSettings(1, 5)):
        again = LeRobotSettings.from_dict(json.loads(json.dumps(asdict(settings))))
        assert again == settings
    assert LeRobotSettings(1, 5).chunk_length == 5
    assert LeRobotSettings(2, 5).chunk_length == 1
    assert LeRobotSettings(1, 5, 0.1).chunk_length == 1


def test_noise_depends_on_seed_and_decision() -> None:
    """And on nothing else; it is normal."""
    for source in (numpy_noise, torch_noise):
        first = source(1, 2, (3, 1, 50, 20))
        assert first.dtype == np.float32
        np.testing.assert_array_equal(source(1, 2, (3, 1, 50, 20)), first)
        for other in (source(1, 3, first.shape), source(2, 2, first.shape)):
            assert abs(np.corrcoef(first.flat, other.flat)[0, 1]) < 0.1
        assert abs(first.mean()) < 0.1
        assert abs(first.std() - 1) < 0.1


# with graphs in torch


def in_torch(foreign: ForeignPolicy, folder: Path) -> ExportedLeRobotPolicy:
    """The runtime's policy, whose graphs are the modules that would be exported."""
    tokenizer, prompt = lerobot_words(foreign)
    settings = lerobot_settings(foreign)
    description = PolicyDescription("x", settings.chunk_length, (), prompt=prompt, lerobot=settings)
    folder.mkdir()
    if tokenizer is not None:
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    write_description(folder, foreign.spec, description)
    write_manifest(folder)
    policy = ExportedLeRobotPolicy(folder, seed=0, noise=torch_noise)
    graphs = lerobot_graphs(foreign, prompt)
    policy._graphs = {name: run(graph) for name, graph in graphs.items()}  # pyright: ignore[reportAttributeAccessIssue]
    return policy


def run(graph: Graph) -> Callable[[Arrays], Arrays]:
    """A module as the runtime calls a graph."""

    def call(arrays: Arrays) -> Arrays:
        with torch.inference_mode():
            made = graph.module(*(torch.from_numpy(arrays[name]) for name in graph.inputs))
        given = made if isinstance(made, tuple) else (made,)
        return {n: tensor.numpy() for n, tensor in zip(graph.outputs, given, strict=True)}

    return call


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_decides_as_lerobot(name: str, tmp_path: Path) -> None:
    """Over more than two chunks, with the same noise."""
    kind, settings = KINDS[name]
    foreign = load(kind, tmp_path, **settings)
    policy = in_torch(foreign, tmp_path / "out")
    found = compared(foreign)(policy)
    assert found["open_loop"]["decisions"] == 6
    assert policy.chunk_length == (1 if name in ("act-ensemble", "diffusion") else 3)


def test_words_are_read_as_lerobot_reads_them(tmp_path: Path) -> None:
    """One new line at the end; what LeRobot would cut, or read as more than words, is refused."""
    policy = in_torch(load("smolvla", tmp_path), tmp_path / "out")
    (seen,) = random_observations(policy.spec, [0.0] * 5, [1.0] * 5, 1)
    state = policy.initial_state()
    plain, ended = (
        policy.decide(replace(seen, instruction=words), state)[0].actions
        for words in ("push it", "push it\n")
    )
    np.testing.assert_array_equal(plain, ended)
    with pytest.raises(ValueError, match=r"tokens .*shorten it"):
        policy.decide(replace(seen, instruction="xyz " * 60), state)
    with pytest.raises(ValueError, match=r"'<image>'.* as more than words"):
        policy.decide(replace(seen, instruction="push <image>"), state)


# whole exports


def test_an_exported_policy_decides_without_torch(act: tuple[ForeignPolicy, Path]) -> None:
    """A chunk of LeRobot's length within the limits; other observations are refused."""
    foreign, folder = act
    policy = load_policy(str(folder))
    assert isinstance(policy, ExportedLeRobotPolicy)
    assert policy.spec == foreign.spec
    (seen,) = random_observations(policy.spec, [0.0] * 5, [1.0] * 5, 1)
    chunk, state = policy.decide(seen, policy.initial_state())
    assert chunk.actions.shape == (3, 4)
    assert (np.abs(chunk.actions) <= 1).all()
    again, _ = policy.decide(seen, state)
    np.testing.assert_array_equal(again.actions, chunk.actions)
    with pytest.raises(ContractMismatchError, match=r"proprio is not finite in"):
        policy.decide(replace(seen, proprio=np.full(5, np.nan, np.float32)), state)
    with pytest.raises(TypeError, match="memory of another policy: int"):
        policy.decide(seen, 0)
    card = (folder / "README.md").read_text()
    assert "lerobot act" in card


def test_a_difference_is_refused(act: tuple[ForeignPolicy, Path]) -> None:
    """One that is larger than allowed, with its size and dimension."""
    foreign, folder = act
    other = LeRobotReference(foreign)
    exported = ExportedLeRobotPolicy(folder)
    seen = random_observations(foreign.spec, [0.0] * 5, [1.0] * 5, 1)
    with torch.no_grad():
        foreign.policy.model.action_head.bias[1] += 0.01
    try:
        with pytest.raises(ParityError, match=r"'dy' 0\.00\d+ .* apart .*0\.0001 are allowed"):
            compare_decisions(other, exported, seen)
    finally:
        with torch.no_grad():
            foreign.policy.model.action_head.bias[1] -= 0.01


def test_a_damaged_folder_is_refused(act: tuple[ForeignPolicy, Path]) -> None:
    """Whatever kind of policy is in it."""
    file = act[1] / "policy.json"
    text = file.read_text()
    try:
        file.write_text(text.replace('"action_steps": 3', '"action_steps": 2'))
        with pytest.raises(ExportedFolderError, match=r"policy\.json does not have"):
            load_policy(str(act[1]))
    finally:
        file.write_text(text)


def test_observations_and_actions_wait_in_queues(act: tuple[ForeignPolicy, Path]) -> None:
    """A policy that reads two observations sees every control step, and computes every third."""
    policy = ExportedLeRobotPolicy(act[1], seed=0)
    policy.chunk_length = 1
    policy._settings = replace(policy._settings, observation_steps=2)
    read: list[np.ndarray] = []

    def encode(rows: Arrays) -> Arrays:
        read.append(rows["proprio"][:, 0])
        return {"actions": rows["proprio"][None, :1, :1] + np.zeros((3, 4), np.float32)}

    policy._graphs = {"encode": encode}  # pyright: ignore[reportAttributeAccessIssue]
    (seen,) = random_observations(policy.spec, [0.0] * 5, [1.0] * 5, 1)
    state, commanded = policy.initial_state(), []
    for step in range(5):
        proprio = np.full(5, step / 10, np.float32)
        chunk, state = policy.decide(replace(seen, proprio=proprio), state)
        commanded.append(chunk.actions[0, 0])
    # The first observation fills the history; later the latest two are read, the older one first.
    np.testing.assert_allclose(read, [[0, 0], [0.2, 0.3]], atol=1e-6)
    np.testing.assert_allclose(commanded, [0, 0, 0, 0.2, 0.2], atol=1e-6)


def test_a_checkpoint_without_a_contract_is_refused(
    act: tuple[ForeignPolicy, Path],
) -> None:
    """With what would give one."""
    with pytest.raises(ValueError, match=r"no units, limits or rate: name .*--data.*--task"):
        lerobot_contract(act[1].parent / "act", None, None)


@pytest.mark.slow
def test_an_export_is_shadowed_in_the_simulator(
    act: tuple[ForeignPolicy, Path], tmp_path: Path
) -> None:
    """The contract is the task's, and every decision of an episode is compared."""
    folder = act[1].parent / "act"
    spec = lerobot_contract(folder, "FetchPush", None)
    trials = Trials(folder, spec, None, "FetchPush", observations=2, episodes=1)
    found = export_lerobot(folder, tmp_path / "out", trials)
    assert found["observations"] == "initial states of FetchPush"
    assert found["closed_loop"]["episodes"] == 1
    assert found["closed_loop"]["decisions"] > 10


@pytest.mark.parametrize("name", ["adapt_to_pi_aloha", "rtc_config"])
def test_settings_that_no_graph_has_are_refused(
    act: tuple[ForeignPolicy, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By name."""
    foreign, _ = act
    monkeypatch.setattr(foreign.policy.config, name, True, raising=False)
    with pytest.raises(ExportError, match=name):
        lerobot_settings(foreign)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_exported(name: str, tmp_path: Path) -> None:
    """It decides as LeRobot's `select_action`, with the same noise."""
    kind, settings = KINDS[name]
    foreign = load(kind, tmp_path, **settings)
    found = export_lerobot_policy(foreign, tmp_path / "out", {"weights": "x"}, compared(foreign))
    assert found["open_loop"]["decisions"] == 6
    # Without a seed every episode has noise of its own.
    policy = load_policy(str(tmp_path / "out"))
    (seen,) = random_observations(policy.spec, [0.0] * 5, [1.0] * 5, 1)
    first, second = (policy.decide(seen, policy.initial_state())[0].actions for _ in range(2))
    assert np.array_equal(first, second) == (kind == "act")
