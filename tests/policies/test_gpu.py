"""Training, refining, evaluating and compiling on CUDA; without one on an emulated GPU.

Every test takes the device as a parameter, so that all but the hardware is known to be right where
there is no GPU. Neither simulator nor LeRobot is needed: the world is a point on a line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("av", reason="cloning reads data sets with PyAV")

from emulated_cuda import emulate_cuda
from point_env import PointVecEnv
from two_robots import CART, observe, tiny_policy

from policies.evaluation.evaluate import evaluate
from policies.grounding.grounder import Grounder, GroundingConfig
from policies.grounding.grounding_set import GroundingSet, Prompt
from policies.imitation import dataset
from policies.imitation import demonstrations as demonstrations_module
from policies.imitation.bc import Cloner
from policies.imitation.config import CloningConfig
from policies.imitation.demonstrations import Demonstrations
from policies.imitation.frame_cache import Frames
from policies.reinforcement.dsrl import DSRLConfig
from policies.reinforcement.off_policy import OffPolicyTrainer
from policies.reinforcement.refinement import RefinementConfig
from policies.reinforcement.registry import ALGORITHMS
from policies.reinforcement.sac import SACConfig
from policies.reinforcement.trainer import OnPolicyConfig, OnPolicyTrainer
from policies.run_folder import RunFolder
from vla.model.heads.base import HeadConfig, HeadDims, HeadInputs, LikelihoodHead
from vla.model.heads.expert import ExpertConfig
from vla.model.heads.fast import FastHeadConfig
from vla.model.heads.flow import FlowHeadConfig
from vla.model.heads.gaussian import GaussianHeadConfig
from vla.model.heads.l1 import L1HeadConfig
from vla.model.heads.registry import HEADS, head_name, make_head
from vla.model.heads.token import TokenHeadConfig
from vla.policy import VLAPolicy, load_policy

DEVICES = ["emulated", pytest.param("cuda", marks=pytest.mark.gpu)]
POINT = replace(CART, robot="point")  # the robot of PointVecEnv
CHUNK = 3
DIMS = HeadDims(vector=6, prompt=8, chunk_length=CHUNK, action=2)
_EXPERT = ExpertConfig(width=32, layers=1, heads=2)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the test computes."""
    if request.param == "emulated":
        emulate_cuda(monkeypatch)
        return "cuda"
    return request.param


class CutError(Exception):
    """Stands for a kill."""


def cut_after(steps: int) -> Callable[[int, dict[str, float]], None]:
    """Progress that ends the run once this step was logged."""

    def progress(step: int, values: dict[str, float]) -> None:
        if step >= steps:
            raise CutError

    return progress


def assert_same_weights(one: VLAPolicy, other: VLAPolicy) -> None:
    """Equal to rounding: kernels may add in any order."""
    theirs = other.model.state_dict()
    for name, weight in one.model.state_dict().items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=2e-5, msg=name)


def cut_and_resumed[T: (Cloner, OnPolicyTrainer, OffPolicyTrainer)](
    learn: Callable[..., T], at: int, whole: VLAPolicy
) -> T:
    """A run that was cut and called again, which has to end as the whole one did."""
    with pytest.raises(CutError):
        learn("cut", progress=cut_after(at))
    torch.manual_seed(99)  # another process has other random states
    resumed = learn("cut")
    assert_same_weights(whole, resumed.policy)
    return resumed


def assert_loads_on_the_cpu(checkpoint: Path, policy: VLAPolicy) -> None:
    """What was trained anywhere decides alike here."""
    here = load_policy(checkpoint)
    assert here.device.type == "cpu"
    batch = observe(POINT)
    for each in (here, policy):
        each.reset(range(len(batch)))
    torch.testing.assert_close(here.act(batch), policy.act(batch), rtol=0, atol=0.02)


def start(device: str) -> VLAPolicy:
    """An untrained policy of the point with dropout, so that the global generator matters."""
    policy = tiny_policy(POINT)
    policy.model.replace_actor(torch.zeros(1, CHUNK, 1), GaussianHeadConfig(hidden=16, dropout=0.3))
    policy.model.to(device)
    return policy


@pytest.fixture
def demonstrations(monkeypatch: pytest.MonkeyPatch) -> Demonstrations:
    """Six random episodes in memory."""
    lengths = [5, 4, 6, 5, 4, 6]
    rng = np.random.default_rng(0)
    camera, count = POINT.cameras[0], sum(lengths)
    images = rng.integers(256, size=(count, camera.height, camera.width, 3), dtype=np.uint8)
    frames = Frames(
        spec=POINT,
        images={camera.name: images},
        proprio=rng.uniform(-1, 1, (count, 1)).astype(np.float32),
        action=rng.uniform(-1, 1, (count, 1)).astype(np.float32),
        episode=np.repeat(np.arange(len(lengths)), lengths),
        frame=np.concatenate([np.arange(length) for length in lengths]),
        instructions=["go to the left"] * count,
    )
    monkeypatch.setattr(dataset, "open_frames", lambda *_, **__: frames)
    for module in (dataset, demonstrations_module):
        monkeypatch.setattr(module, "read_contract", lambda *_: frames.spec)
    return Demonstrations([Path("in-memory")], CHUNK, names=["point"])


@pytest.mark.parametrize("perception", ["frozen", "trained"])
def test_cloning_resumes_to_the_same_weights(
    perception: str, device: str, demonstrations: Demonstrations, tmp_path: Path
) -> None:
    """Random states of the device are part of a checkpoint; a cut costs nothing."""
    config = CloningConfig(updates=4, batch=8, evaluate_every=2, perception=perception)  # type: ignore[arg-type]

    def clone(name: str, **run: Callable[..., None]) -> Cloner:
        made = Cloner(start(device), demonstrations, config, RunFolder(tmp_path / name, config))
        made.run(PointVecEnv(2), [1, 2], **run)
        return made

    whole = clone("whole")
    assert cut_and_resumed(clone, 2, whole.policy).step == 4
    assert_loads_on_the_cpu(tmp_path / "whole" / "step_000004", whole.policy)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_refining_resumes_to_the_same_weights(algorithm: str, device: str, tmp_path: Path) -> None:
    """Collect, learn, select and save, every method, with the policy on the device."""
    config = OnPolicyConfig(
        iterations=2, episodes=8, warmup_iterations=0, critic_epochs=1, evaluate_every=1
    )

    def refine(name: str, **run: Callable[..., None]) -> OnPolicyTrainer:
        made = OnPolicyTrainer(
            start(device),
            PointVecEnv(2),
            config,
            ALGORITHMS[algorithm].config(),
            RunFolder(tmp_path / name, config),
            lambda iteration: range(100 + 8 * iteration, 108 + 8 * iteration),
        )
        made.run([1, 2], **run)
        return made

    before = [weight.clone() for weight in start(device).actor.parameters()]
    whole = refine("whole")
    moved = zip(before, whole.policy.actor.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in moved)
    assert cut_and_resumed(refine, 1, whole.policy).iteration == 2
    assert_loads_on_the_cpu(tmp_path / "whole" / "step_000002", whole.policy)


@pytest.mark.parametrize("kind", ["sac", "dsrl"])
def test_off_policy_methods_resume_to_the_same_weights(
    kind: str, device: str, tmp_path: Path
) -> None:
    """The buffer lies on the device too, and comes back from a checkpoint."""
    config = RefinementConfig(iterations=3, episodes=4, warmup_iterations=0, evaluate_every=1)
    settings = {"hidden": 16, "batch_size": 8, "updates_per_step": 0.5}
    method = SACConfig(**settings) if kind == "sac" else DSRLConfig(**settings, steering=8)

    def refine(name: str, **run: Callable[..., None]) -> OffPolicyTrainer:
        torch.manual_seed(5)  # of an untrained flow head
        policy = start(device)
        if kind == "dsrl":
            policy.model.replace_actor(torch.zeros(1, CHUNK, 1), FlowHeadConfig(_EXPERT, steps=2))
        made = OffPolicyTrainer(
            policy,
            PointVecEnv(2, episode_length=6),
            config,
            method,
            RunFolder(tmp_path / name, config),
            lambda iteration: range(100 + 4 * iteration, 104 + 4 * iteration),
        )
        made.run([1, 2], **run)
        return made

    whole = refine("whole")
    assert whole.replay.lengths.device.type == device
    assert cut_and_resumed(refine, 2, whole.policy).iteration == 3
    assert_loads_on_the_cpu(tmp_path / "whole" / "step_000003", whole.policy)


def test_grounding_learns_to_point(device: str, tmp_path: Path) -> None:
    """Points and answers, then a checkpoint that loads on the CPU."""
    rng, camera, count = np.random.default_rng(0), POINT.cameras[0], 20
    phrases = ("gripper", "target")
    scenes = GroundingSet(
        name="Made",
        images=rng.integers(0, 256, (count, 1, camera.height, camera.width, 3), np.uint8),
        proprio=rng.normal(size=(count, 1)).astype(np.float32),
        points=rng.uniform(0.5, 1.5, (count, 2, 3)).astype(np.float32),
        image_points=rng.uniform(-0.9, 0.9, (count, 2, 1, 2)).astype(np.float32),
        phrases=phrases,
        prompts=(Prompt("go to the left", "target", "target"),),
        unseen={},
        kinds=("gripped",),
        ask=lambda row, kind, phrasing, rng: ("put it down", "left"),
    )
    config = GroundingConfig(
        updates=2, batch=4, questions=2, heldout=0.2, log_every=1, evaluate_every=2
    )
    policy = start(device)
    logged: list[dict[str, float]] = []
    Grounder(policy, [scenes], config, RunFolder(tmp_path, config)).run(
        lambda update, values: logged.append(values)
    )
    assert all(np.isfinite(list(values.values())).all() for values in logged)
    assert_loads_on_the_cpu(tmp_path / "grounded", policy)


def test_evaluation_is_the_same_on_every_device(device: str) -> None:
    """Successes and steps of a greedy policy, episode by episode."""
    expected = evaluate(PointVecEnv(3), start("cpu"), range(6))
    assert evaluate(PointVecEnv(3), start(device), range(6)) == expected


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), DEVICES[1]], indirect=True
)
def test_a_compiled_policy_acts_alike(device: str) -> None:
    """Twice, since graphs reuse their outputs."""
    eager, compiled = start(device), start(device)
    compiled.compile()
    batch = observe(POINT)
    for each in (eager, compiled):
        each.reset(range(len(batch)))
    for _ in range(2):
        torch.testing.assert_close(compiled.act(batch), eager.act(batch), rtol=0, atol=0.02)


def chunks(count: int) -> Tensor:
    """Smooth chunks within [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    begin, slope = torch.rand(2, count, 1, DIMS.action, generator=generator) - 0.5
    return begin + slope * torch.arange(CHUNK)[None, :, None] / CHUNK


CONFIGS: dict[str, HeadConfig] = {
    "gaussian": GaussianHeadConfig(hidden=32),
    "token": TokenHeadConfig(_EXPERT, bins=32),
    "fast": FastHeadConfig(_EXPERT, scale=8.0, vocabulary=128).fitted(chunks(500)),
    "l1": L1HeadConfig(_EXPERT),
    "flow": FlowHeadConfig(_EXPERT, steps=4),
    "flow sde": FlowHeadConfig(_EXPERT, steps=4, sampler="sde", random_steps=4),
}


def inputs(device: str) -> HeadInputs:
    """Of five observations, with padding in the prompt."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[::2, 3] = False
    return HeadInputs(
        torch.randn(5, DIMS.vector, generator=generator).to(device),
        torch.randn(5, 4, DIMS.prompt, generator=generator).to(device),
        mask.to(device),
    )


def test_every_head_is_tried() -> None:
    """A new head gets its settings here."""
    assert {head_name(config) for config in CONFIGS.values()} == set(HEADS)


@pytest.mark.parametrize("name", CONFIGS)
def test_heads_on_the_device(name: str, device: str) -> None:
    """Loss, gradients, decisions, samples and their likelihood; the last as the CPU has it."""
    torch.manual_seed(0)
    head = make_head(DIMS, CONFIGS[name]).to(device)
    is_pad = torch.zeros(5, CHUNK, dtype=torch.bool, device=device)
    loss = head.loss(inputs(device), chunks(5).to(device), is_pad)
    loss.backward()
    assert torch.isfinite(loss)
    grads = [weight.grad for weight in head.parameters() if weight.grad is not None]
    assert grads
    assert all(torch.isfinite(grad).all() for grad in grads)
    head.eval()
    with torch.no_grad():
        chunk = head.act(inputs(device))
        assert chunk.device.type == device
        assert chunk.shape == (5, CHUNK, DIMS.action)
        assert torch.isfinite(chunk).all()
        if not isinstance(head, LikelihoodHead):
            return
        first, again = (
            head.sample(inputs(device), torch.Generator(device).manual_seed(3)) for _ in range(2)
        )
        assert torch.equal(first, again), "the generator alone decides"
        there = head.likelihood(inputs(device), first)
        values = [there.log_prob(), there.entropy(), there.kl(there)]
        parts = there.weight(torch.ones(5, CHUNK, dtype=torch.bool, device=device)).shape
        head.cpu()
        here = head.likelihood(inputs("cpu"), first.cpu())
        for ours, theirs in zip(
            values, [here.log_prob(), here.entropy(), here.kl(here)], strict=True
        ):
            assert ours.device.type == device
            assert ours.shape == parts
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-3)
