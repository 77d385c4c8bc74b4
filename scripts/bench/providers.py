"""A decision of the 450M-parameter flow model, exported, on ONNX Runtime's execution providers.

The model is that of `scripts.bench.cuda`, with random weights: two views of 512 px, ten flow steps.
Its `encode` and `act` graphs run as on a robot, from numpy to numpy, one observation at a time. The
goal is a p99 of 10 ms on a GPU. Chunks are compared with the CPU provider's, since TF32 and float16
round. Run it as `python -m scripts.bench.providers --out providers.json` with `onnxruntime-gpu`, or
try it out without a GPU: `python -m scripts.bench.providers --tiny --providers CPU`.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import tyro
from vla_runtime.exported.policy import Graph, Provider

from scripts.bench.cuda import BenchCudaConfig, make_model
from vla.contract import CameraSpec, RobotSpec, VectorSpec
from vla.deploy.graphs import Graph as Module
from vla.deploy.graphs import graphs_of
from vla.deploy.onnx_graphs import write_graph
from vla.model.vla import VLA
from vla.policy import VLAPolicy
from vla.processing.processor import Processor, ProcessorConfig
from vla.processing.tokenizer import train_tokenizer
from vla.settings import require_numbers

_WARM_UP = 10
_OPTIONS: dict[str, dict[str, str]] = {
    # Without these every decision pays for thousands of launches, or for float32.
    "Tensorrt": {"trt_fp16_enable": "1", "trt_cuda_graph_enable": "1"},
    "CUDA": {"use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC"},
}


@dataclass(frozen=True)
class BenchProvidersConfig:
    """What to measure.

    Attributes:
        providers: of ONNX Runtime, without "ExecutionProvider": Tensorrt, CUDA, CPU, ...
        tiny: a model of a few thousand weights.
        decisions: measured, batch 1.
        goal_ms: of the p99 of the last provider; None has none.
        out: JSON file.
    """

    providers: tuple[str, ...] = ("CUDA",)
    tiny: bool = False
    decisions: int = 200
    goal_ms: float | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("decisions",))


def main(config: BenchProvidersConfig) -> dict[str, float]:
    """Measure, print a line for each provider, and return the numbers.

    Raises:
        RuntimeError: the goal is missed.
        ValueError: a provider is not there.
    """
    _require_there(config.providers)
    policy = make_policy(config.tiny)
    modules = {name: graph for name, graph in graphs_of(policy).items() if name != "inpaint"}
    encode = modules["encode"]
    assert isinstance(encode, Module)
    observation = _observation(encode)
    result = {"parameters": float(sum(w.numel() for w in policy.model.parameters()))}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        for name, module in modules.items():
            write_graph(module, Path(folder) / f"{name}.onnx")
        result["export s"] = time.perf_counter() - begun
        del policy, modules
        expected, _ = measure(Path(folder), ["CPUExecutionProvider"], observation, 1)
        for name in config.providers:
            provider = (f"{name}ExecutionProvider", _OPTIONS.get(name, {}))
            chunk, times = measure(Path(folder), [provider], observation, config.decisions)
            for percent in (50, 99):
                result[f"{name}, p{percent}, ms"] = 1e3 * float(np.percentile(times, percent))
            result[f"{name}, apart from CPU"] = float(np.abs(chunk - expected).max())
    if config.out:
        config.out.write_text(json.dumps(result, indent=1))
    for name, value in result.items():
        print(f"{name:28} {value:.4g}")
    if config.goal_ms is not None:
        require_goal(result, config.providers[-1], config.goal_ms)
    return result


def _require_there(providers: tuple[str, ...]) -> None:
    there = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    if missing := [name for name in providers if name not in there]:
        raise ValueError(
            f"this onnxruntime has no {', '.join(missing)}, only {', '.join(there)}: a GPU needs "
            "onnxruntime-gpu in the place of onnxruntime; without one try --tiny --providers CPU"
        )


def require_goal(result: dict[str, float], provider: str, goal_ms: float) -> None:
    """Refuse a provider that is too slow.

    Raises:
        RuntimeError: its p99 is above the goal.
    """
    if (last := result[f"{provider}, p99, ms"]) > goal_ms:
        raise RuntimeError(f"p99 of {last:.1f} ms on {provider}, the goal is {goal_ms:g} ms")


def make_policy(tiny: bool) -> VLAPolicy:
    """Random weights, for a robot with two cameras, eight measured numbers and seven commanded."""
    settings = BenchCudaConfig("cpu", tiny=tiny)
    model: VLA = make_model(settings).eval()
    side, sizes = 32 if tiny else 512, model.dims
    spec = RobotSpec(
        robot="benchmark",
        action=_vector("a", sizes.action),
        proprio=_vector("p", sizes.proprio),
        cameras=tuple(CameraSpec(f"view{i}", side, side) for i in range(sizes.cameras)),
        control_rate_hz=50.0,
    )
    words = ProcessorConfig(
        proprio_normalisation="limits",
        image_tokens_per_camera=sizes.image_tokens,
        max_text_tokens=sizes.prompt - sizes.cameras * sizes.image_tokens,
    )
    return VLAPolicy(model, Processor(spec, None, train_tokenizer(["pick up the block"]), words))


def measure(
    folder: Path, providers: list[Provider], observation: dict[str, np.ndarray], decisions: int
) -> tuple[np.ndarray, np.ndarray]:
    """The chunk [chunk_length, action], and seconds of each decision."""
    encode, act = (Graph(folder / f"{name}.onnx", 1, providers) for name in ("encode", "act"))
    chunk, times = np.empty(0), np.empty(decisions)
    # The first decisions choose kernels, build engines and fill caches.
    for decision in range(-_WARM_UP if decisions > 1 else 0, decisions):
        begun = time.perf_counter()
        chunk = act(encode(observation))["actions"][0]
        if decision >= 0:
            times[decision] = time.perf_counter() - begun
    return chunk, times


def _observation(encode: Module) -> dict[str, np.ndarray]:
    """One row of random images, and the rest as in the example."""
    rng = np.random.default_rng(0)
    rows = {name: tensor[:1].numpy() for name, tensor in encode.inputs.items()}
    for name, value in rows.items():
        if name.startswith("image."):
            rows[name] = rng.integers(256, size=value.shape, dtype=np.uint8)
    return rows


def _vector(letter: str, dim: int) -> VectorSpec:
    names = tuple(f"{letter}{index}" for index in range(dim))
    return VectorSpec(names, ("rad",) * dim, (-1.0,) * dim, (1.0,) * dim)


if __name__ == "__main__":
    main(tyro.cli(BenchProvidersConfig))
