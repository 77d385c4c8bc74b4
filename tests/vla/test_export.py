"""Export of checkpoints with the embedded model: equal decisions of every head, or refused."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from two_robots import ARM, CART, WORDS, observe, tiny_policy
from vla_runtime.exported.folder import read_exported
from vla_runtime.exported.policy import ExportedPolicy
from vla_runtime.exported.policy import Graph as Session
from vla_runtime.loading import load_policy

from scripts.bench import export_latency
from vla.contract import CameraSpec, Observation
from vla.deploy import export
from vla.deploy.export import export_policy, prompt_settings
from vla.deploy.graphs import Chain, Graph, graphs_of
from vla.deploy.onnx_graphs import ExportError, write_graph
from vla.deploy.parity import (
    Comparison,
    ParityError,
    compare_decisions,
    compare_inpainting,
    compare_prompts,
    compare_tokens,
    single,
    tolerances,
)
from vla.deploy.reference import Reference
from vla.model.heads.base import HeadConfig
from vla.model.heads.expert import ExpertConfig
from vla.model.heads.fast import FastHeadConfig
from vla.model.heads.flow import FlowHeadConfig
from vla.model.heads.l1 import L1HeadConfig
from vla.model.heads.token import TokenHeadConfig
from vla.model.points import PointsConfig
from vla.policy import VLAPolicy

PROVIDERS = ("CPUExecutionProvider",)
# Its images are larger than the model's, which are 12 x 12.
SMALL = replace(CART, cameras=(CameraSpec("top", 24, 24),))
_EXPERT = ExpertConfig(width=32, layers=1, heads=2)
HEADS: dict[str, HeadConfig] = {
    "l1": L1HeadConfig(_EXPERT),
    "flow": FlowHeadConfig(_EXPERT, steps=3),
    "token": TokenHeadConfig(_EXPERT, bins=32),
    "fast": FastHeadConfig(_EXPERT, scale=4.0, vocabulary=64),
}


def with_head(policy: VLAPolicy, head: HeadConfig) -> VLAPolicy:
    """With an untrained head for smooth chunks, and a memory of the target's position."""
    generator = torch.Generator().manual_seed(0)
    action = policy.model.dims.action
    start = torch.rand(200, 1, action, generator=generator) - 0.5
    slope = torch.rand(200, 1, action, generator=generator) - 0.5
    policy.model.average_static_points(["target"])
    policy.model.replace_actor(start + slope * torch.arange(3)[None, :, None] / 3, head)
    return VLAPolicy(policy.model, policy.embodiments, policy.processor.spec.robot)


def observations(policy: VLAPolicy, count: int = 4) -> list[Observation]:
    """Random ones of its robot, in few colours: halved images then have no ties to be rounded."""
    batch = observe(policy.spec, count)
    batch.images = {name: image & 192 for name, image in batch.images.items()}
    batch.instructions[-1] = "push the block " * 9  # longer than the prompt's usual room
    return [single(batch, row) for row in range(count)]


def compare(policy: VLAPolicy, exported: ExportedPolicy) -> dict[str, Any]:
    """All that needs no simulator."""
    reference, seen = Reference(policy), observations(policy)
    found: dict[str, Any] = {"open_loop": compare_decisions(reference, exported, seen)}
    found["prompts"] = compare_prompts(policy, exported, WORDS)
    found["tokens"] = compare_tokens(reference, exported, seen)
    if exported.can_inpaint:
        found["inpainting"] = compare_inpainting(reference, exported, seen)
    return found


@pytest.fixture(scope="module")
def policy() -> VLAPolicy:
    """Of the smaller of two robots, whose images are resized; with the shipped kind of head."""
    tiny = tiny_policy(SMALL, ARM)
    tiny.model.average_static_points(["target"])
    return tiny


@pytest.fixture(scope="module")
def folder(policy: VLAPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, exported."""
    out = tmp_path_factory.mktemp("exported") / "cart"
    export_policy(policy, out, {"checkpoint": "none"}, lambda e: compare(policy, e))
    return out


def test_an_exported_policy_decides_alike(policy: VLAPolicy, folder: Path) -> None:
    """Over an episode with a change of instruction; what was measured is written."""
    exported = load_policy(str(folder))
    reference, states = Reference(policy), [Reference(policy).initial_state(), None]
    states[1] = exported.initial_state()
    for step, seen in enumerate(observations(policy, 6)):
        seen = replace(seen, instruction=WORDS[step // 3])
        ours, states[0] = reference.decide(seen, states[0])
        theirs, states[1] = exported.decide(seen, states[1])
        assert np.abs(ours.actions - theirs.actions).max() < 1e-4
    assert reference.spec == exported.spec
    _, description = read_exported(folder)
    assert description.head == "gaussian"
    assert description.parity["open_loop"]["decisions"] == 8
    assert "| action head | gaussian |" in (folder / "README.md").read_text()


def test_graphs_take_any_number_of_rows(policy: VLAPolicy, folder: Path) -> None:
    """One and three together give the same; opset 20, and images are resized within."""
    model = onnx.load(folder / "encode.onnx")
    assert model.opset_import[0].version == 20
    assert [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim][:1] == ["rows"]
    session = Session(folder / "encode.onnx", 1, PROVIDERS)
    batch = observe(policy.spec, 3)
    texts = policy.processor.prompts.texts(batch.instructions)
    feed = {f"image.{name}": image.numpy() for name, image in batch.images.items()}
    feed |= {name: tensor.numpy() for name, tensor in texts.items()}
    feed |= {"proprio": batch.proprio.numpy(), "state.evidence": np.zeros((3, 1, 4), np.float32)}
    together = session(feed)
    for row in range(3):
        alone = session({name: value[[row]] for name, value in feed.items()})
        for name, every in together.items():
            np.testing.assert_allclose(alone[name][0], every[row], rtol=1e-4, atol=1e-4)


def test_a_model_from_scratch_decides_alike(tmp_path: Path) -> None:
    """What `vla pretrain --start scratch` makes: a convolutional tower, no points, an l1 head."""
    policy = tiny_policy(ARM, points=PointsConfig(), grid=2, size=48)
    policy.model.replace_actor(torch.zeros(4, 3, ARM.action.dim), HEADS["l1"])
    policy = VLAPolicy(policy.model, policy.embodiments, ARM.robot)
    found = export_policy(policy, tmp_path / "out", {}, lambda e: compare(policy, e))
    assert max(found["open_loop"]["largest_difference"].values()) < 1e-2  # degrees
    assert ExportedPolicy(tmp_path / "out").initial_state().tensors == {}


@pytest.mark.slow
def test_graphs_of_tokens_compute_alike(tmp_path: Path) -> None:
    """Behind random features, also for the first token."""
    policy = with_head(tiny_policy(ARM, CART), HEADS["token"])
    graphs = graphs_of(policy)
    for label in ("step", "decode"):
        graph, file = graphs[label], tmp_path / f"{label}.onnx"
        assert isinstance(graph, Graph)
        write_graph(graph, file)
        assert _largest_difference(graph, file) < 1e-4


class _Powers(nn.Module):
    """Halves, or adds the weight times the time."""

    def __init__(self, weight: float | None = None):
        super().__init__()
        self.weight = None if weight is None else nn.Parameter(torch.full((2,), weight))

    def forward(self, at: Tensor, time: Tensor | None = None) -> Tensor:
        """[n, 2]."""
        return at / 2 if self.weight is None or time is None else at + self.weight * time


def test_chains_repeat_one_step_on_one_copy_of_its_weights(tmp_path: Path) -> None:
    """(x / 2 + 3 (1 + 2 + 5)) / 2, for any number of rows."""
    at, half = torch.zeros(2, 2), _Powers()
    step = Graph(_Powers(3.0), {"at": at, "time": torch.tensor(0.5)}, ("after",), alike=("time",))
    begin, finish = Graph(half, {"x": at}, ("at",)), Graph(half, {"at": at}, ("actions",))
    file = tmp_path / "chain.onnx"
    write_graph(Chain(begin, step, torch.tensor([1.0, 2.0, 5.0]), finish), file)
    x = np.array([[4.0, 8.0], [0.0, 0.0], [2.0, 2.0]], dtype=np.float32)
    made = Session(file, 1, PROVIDERS)({"x": x})
    np.testing.assert_allclose(made["actions"], (x / 2 + 24) / 2)
    weights = [weight for weight in onnx.load(file).graph.initializer if list(weight.dims) == [2]]
    assert len(weights) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_every_head_decides_alike(name: str, tmp_path: Path) -> None:
    """The whole way of every head, with tokens and inpainting."""
    policy = with_head(tiny_policy(ARM, CART), HEADS[name])
    found = export_policy(policy, tmp_path / name, {}, lambda e: compare(policy, e))
    assert bool(found["tokens"]) == (name in ("token", "fast"))
    assert ("inpainting" in found) == (name == "flow")


def _largest_difference(graph: Graph, file: Path) -> float:
    """Between torch and ONNX Runtime, for one row, two, and for tokens that have not begun."""
    session = Session(file, 1, PROVIDERS)
    largest = 0.0
    for rows in (1, 2):
        inputs = {name: tensor[:rows] for name, tensor in graph.inputs.items()}
        for begun in {0, inputs["tokens"].shape[1]} if graph.dynamic else {0}:
            if graph.dynamic:
                inputs["tokens"] = graph.inputs["tokens"][:rows, :begun]
            feed = {name: tensor.numpy() for name, tensor in inputs.items()}
            with torch.no_grad():
                ours = graph.module(*inputs.values())
            ours = ours if isinstance(ours, tuple) else (ours,)
            for one, other in zip(ours, session(feed).values(), strict=True):
                apart = np.abs(one.numpy().astype(np.float64) - other)
                largest = max(largest, float(apart.max()))
    return largest


def test_what_decides_otherwise_is_not_written(
    policy: VLAPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Graphs of another policy in its place: refused by name and size, and nothing is left."""
    monkeypatch.setattr(export, "write_graph", _copy_graphs(folder))
    other = tiny_policy(SMALL, ARM)
    other.model.config = policy.model.config
    with torch.no_grad():
        other.actor.head.layers[-1].bias += 0.1  # type: ignore[operator, union-attr]
    with pytest.raises(ParityError, match=r"commands 'x' .* 1 apart.*are allowed; nothing was"):
        export_policy(other, tmp_path / "out", {}, lambda e: compare(other, e))
    assert not list(tmp_path.iterdir())


def _copy_graphs(folder: Path) -> Callable[[Graph | Chain, Path], None]:
    """Writes graphs that were exported before, which takes no time."""

    def write(graph: Graph | Chain, file: Path) -> None:
        file.write_bytes((folder / file.name).read_bytes())

    return write


def test_comparisons_say_what_is_apart() -> None:
    """NaN never passes, and tolerances grow with the range of the dimension."""
    assert tolerances(ARM).tolist() == pytest.approx([0.005, 0.01, 0.015])
    comparison = Comparison(ARM, "test")
    comparison.add(np.zeros((3, 3)), np.full((3, 3), 0.004))
    for wrong in (0.006, np.nan):
        with pytest.raises(ParityError, match=r"at decision \d the exported policy commands 'a'"):
            comparison.add(np.zeros((3, 3)), np.full((3, 3), wrong))


def test_what_cannot_be_exported_says_so(policy: VLAPolicy) -> None:
    """Before anything is computed."""
    prompts = policy.processor.prompts
    settings = prompt_settings(policy)
    assert settings.length == prompts.length
    prompts.padding = "longest"  # type: ignore[union-attr]
    with pytest.raises(ExportError, match="no fixed length"):
        prompt_settings(policy)
    prompts.padding = "fixed"  # type: ignore[union-attr]


def _kill_at_random(policy: VLAPolicy, source: Path, out: Path, times: int) -> int:
    """Exports in processes that are killed; how often it was complete. The rest left nothing."""
    begun = time.monotonic()
    _export_copies(policy, source, out)
    whole_s = time.monotonic() - begun
    complete = 0
    for index in range(times):
        target = out.with_name(f"{out.name}{index}")
        # Forked, so that no attempt waits for torch's import.
        process = multiprocessing.get_context("fork").Process(
            target=_export_copies, args=(policy, source, target)
        )
        process.start()
        time.sleep(random.Random(index).uniform(0, 1.2 * whole_s))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        if target.exists():
            read_exported(target)
            complete += 1
        else:
            # What it left behind is in nobody's way.
            _export_copies(policy, source, target)
            read_exported(target)
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]
    return complete


def _export_copies(policy: VLAPolicy, source: Path, out: Path) -> None:
    export.write_graph = _copy_graphs(source)
    export_policy(policy, out, {}, lambda e: {})


def test_a_killed_export_leaves_nothing_or_everything(
    policy: VLAPolicy, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at random moments; the next attempt works."""
    monkeypatch.setattr(export, "write_graph", export.write_graph)
    _kill_at_random(policy, folder, tmp_path / "out", times=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_killed_exports_leave_nothing_or_everything(
    policy: VLAPolicy, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above; where processes are slow to start, none of them may come through."""
    monkeypatch.setattr(export, "write_graph", export.write_graph)
    assert _kill_at_random(policy, folder, tmp_path / "out", times=100) < 100


def test_decisions_are_timed_in_turns(policy: VLAPolicy, folder: Path, tmp_path: Path) -> None:
    """Both contenders have all figures, on a checkpoint of one robot."""
    observation = observations(policy, 1)
    exported = ExportedPolicy(folder)
    deciders = {"torch, eager": Reference(policy), "exported": exported}
    turns: list[str] = []

    def note(name: str) -> Callable[[Observation], object]:
        decider = deciders[name]
        return lambda seen: (turns.append(name), decider.decide(seen, decider.initial_state()))

    measured = export_latency.measure({n: note(n) for n in deciders}, observation, 3)
    assert turns[:4] == ["torch, eager", "exported"] * 2
    for figures in measured.values():
        assert 0 < figures["CPU p50 [ms]"] <= figures["CPU p99 [ms]"]
