"""A 450M-parameter model of SmolVLM's shape with a flow head on a GPU: MFU and time of a chunk.

The model is made here with random weights, of the sizes of SmolVLA (Shukor et al. 2025,
arXiv:2506.01844): a SigLIP-B vision tower at 512 px with 64 tokens an image, 16 layers of
SmolLM2-360M, and an action expert of 16 layers three quarters as wide. MFU (model FLOPs
utilisation, Chowdhery et al. 2022, appendix B) is the FLOPs of forward and backward pass that the
model needs, as torch counts them, over what the GPU could have multiplied in the time of the whole
update, optimizer included. Run it as `python -m scripts.bench.cuda --out cuda.json`, or try it
without a GPU: `python -m scripts.bench.cuda --device cpu --tiny --peak-tflops 0.1`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import SmolVLMConfig

from vla.model.embedded import EmbeddedBackbone
from vla.model.heads.expert import ExpertConfig
from vla.model.heads.flow import FlowHeadConfig
from vla.model.vla import VLA, ModelDims, VLAConfig
from vla.processing.model_inputs import ModelInputs
from vla.settings import require_numbers

# Dense bfloat16 products a second with float32 sums, from NVIDIA's data sheets. Names are parts of
# what torch.cuda.get_device_name says; the first that fits counts.
PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
    "RTX 4090": 165.0,
}
# Image side in pixels, id of the image placeholder, text tokens of the prompt, and the dimensions
# of proprioception and action.
_IMAGE_PX, _IMAGE_TOKEN, _WORDS, _PROPRIO, _ACTION = 512, 3, 32, 8, 7


@dataclass(frozen=True)
class BenchCudaConfig:
    """What to measure.

    Attributes:
        device: "cpu" is for trying it out.
        tiny: a model of a few thousand weights.
        batch_size: samples an update.
        views: images an observation.
        chunk_length: control steps a chunk.
        steps: flow steps a chunk.
        updates: measured updates; the first ones, which compile, do not count.
        decisions: measured chunks, batch 1.
        compiled: torch.compile; the chunk as CUDA graphs too.
        peak_tflops: of the device in bfloat16, for one that is not in `PEAK_TFLOPS`.
        out: JSON file.
    """

    device: Literal["cuda", "cpu"] = "cuda"
    tiny: bool = False
    batch_size: int = 32
    views: int = 2
    chunk_length: int = 50
    steps: int = 10
    updates: int = 30
    decisions: int = 300
    compiled: bool = True
    peak_tflops: float | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=("batch_size", "views", "chunk_length", "steps", "updates", "decisions"),
            above_0=("peak_tflops",),
        )


def main(config: BenchCudaConfig) -> dict[str, Any]:
    """Measure, print and return.

    Raises:
        RuntimeError: no CUDA device.
        ValueError: a device whose peak is not known.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device; try it with --device cpu --tiny --peak-tflops 0.1")
    name = torch.cuda.get_device_name() if config.device == "cuda" else "cpu"
    peak = config.peak_tflops or peak_tflops(name)
    torch.manual_seed(0)
    # TF32 for the products that autocast leaves in float32.
    torch.set_float32_matmul_precision("high")
    model = make_model(config).to(config.device)
    # Chunks first: the optimizer's state is not yet in memory.
    chunk_s = measure_chunks(config, model)
    update_s, flops = measure_updates(config, model)
    p50_s, p99_s = (float(np.percentile(chunk_s, percent)) for percent in (50, 99))
    result = {
        "device": name,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "peak_tflops": peak,
        "update_s": update_s,
        "tflop_an_update": flops / 1e12,
        # FLOPs / (s * FLOP/s); the median, since a shared host delays single updates.
        "mfu": flops / float(np.median(update_s)) / (peak * 1e12),
        "chunk_p50_s": p50_s,
        "chunk_p99_s": p99_s,
        "compiled": config.compiled,
    }
    if config.out:
        config.out.write_text(json.dumps(result, indent=1))
    print(
        f"{name}, {result['parameters'] / 1e6:.0f}M parameters, "
        f"{'compiled' if config.compiled else 'eager'}\n"
        f"training: batches of {config.batch_size}, {result['tflop_an_update']:.3g} TFLOP in "
        f"{1e3 * float(np.median(update_s)):.1f} ms: MFU {100 * result['mfu']:.1f}% of {peak:g} "
        f"TFLOP/s\none chunk, {config.views} views, {config.steps} flow steps: p50 "
        f"{1e3 * p50_s:.2f} ms, p99 {1e3 * p99_s:.2f} ms, p99 / p50 {p99_s / p50_s:.2f}"
    )
    return result


def peak_tflops(name: str) -> float:
    """Of a GPU by its name.

    Raises:
        ValueError: it is not known.
    """
    # In order: "H100" also matches the PCIe and NVL cards, which therefore stand before it.
    for part, peak in PEAK_TFLOPS.items():
        if part in name:
            return peak
    raise ValueError(
        f"the peak of {name!r} is not known, only of {', '.join(PEAK_TFLOPS)}: give --peak-tflops"
    )


def make_model(config: BenchCudaConfig) -> VLA:
    """Random weights."""
    # `shuffle`: SmolVLM's pixel shuffle merges shuffle x shuffle patches into one token.
    image_px, patch, shuffle = (32, 8, 2) if config.tiny else (_IMAGE_PX, 16, 4)
    vision_heads, heads, key_heads, words = (2, 2, 2, 64) if config.tiny else (12, 15, 5, 49280)
    # SigLIP-B/16, and SmolLM2-360M cut to 16 of its 32 layers, as in SmolVLA.
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    text = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 16}
    if config.tiny:
        vision = text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    smolvlm = SmolVLMConfig.from_dict(
        {
            "image_token_id": _IMAGE_TOKEN,
            "scale_factor": shuffle,
            "tie_word_embeddings": True,
            "vision_config": {
                **vision,
                "num_attention_heads": vision_heads,
                "image_size": image_px,
                "patch_size": patch,
            },
            "text_config": {
                **text,
                "model_type": "llama",
                "num_attention_heads": heads,
                "num_key_value_heads": key_heads,
                "vocab_size": words,
                "max_position_embeddings": 512,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
        }
    )
    # 512 / 16 / 4 = 8 a side, 64 tokens an image.
    tokens = (image_px // patch // shuffle) ** 2
    # 720 = 3/4 of the language model's 960.
    expert = ExpertConfig(16, 1, 2) if config.tiny else ExpertConfig(720, 16, 9)
    dims = ModelDims(config.views, tokens, _PROPRIO, _ACTION, config.views * tokens + _WORDS)
    head = FlowHeadConfig(expert=expert, steps=config.steps)
    return VLA(EmbeddedBackbone(smolvlm), dims, VLAConfig(config.chunk_length, head=head))


def make_inputs(config: BenchCudaConfig, model: VLA, count: int) -> ModelInputs:
    """Random observations on the CPU."""
    sizes = model.dims
    side = 32 if config.tiny else _IMAGE_PX
    # [n, prompt]: image placeholders first, then text; ids from 4 on, clear of the special ones.
    ids = torch.randint(4, 64, (count, sizes.prompt))
    ids[:, : sizes.cameras * sizes.image_tokens] = _IMAGE_TOKEN
    pixels = torch.randint(256, (count, sizes.cameras, 3, side, side), dtype=torch.uint8)
    return ModelInputs(
        pixel_values=pixels,
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        proprio=torch.randn(count, _PROPRIO),
        # [n, cameras + proprio + action], all present: one robot, nothing is padded.
        present=torch.ones(count, sizes.cameras + sizes.proprio + sizes.action, dtype=torch.bool),
    )


def measure_updates(config: BenchCudaConfig, model: VLA) -> tuple[list[float], int]:
    """Seconds of each update, and the FLOPs of one forward and backward pass."""
    model.train()
    inputs = make_inputs(config, model, config.batch_size).to(config.device)
    # [batch, chunk_length, action] in [-1, 1), as heads expect.
    actions = (
        torch.rand(config.batch_size, config.chunk_length, _ACTION, device=config.device) * 2 - 1
    )
    is_pad = torch.zeros(
        config.batch_size, config.chunk_length, dtype=torch.bool, device=config.device
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def loss() -> Tensor:
        with torch.autocast(config.device, torch.bfloat16):
            return model.actor.loss(model.features(inputs, inputs.proprio), actions, is_pad)

    # Eager, since the counter sees torch's operators and a compiled graph hides them.
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    compute: Callable[[], Tensor] = torch.compile(loss) if config.compiled else loss
    times = []
    # The first three compile, choose kernels and fill the allocator's cache.
    for update in range(-3, config.updates):
        # Kernels run asynchronously: without waiting before and after, only their launch is timed.
        _wait(config)
        begun = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        compute().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _wait(config)
        if update >= 0:
            times.append(time.perf_counter() - begun)
    return times, counter.get_total_flops()


@torch.no_grad()
def measure_chunks(config: BenchCudaConfig, model: VLA) -> list[float]:
    """Seconds from an observation on the CPU to its chunk on the CPU, one at a time."""
    model.eval()
    inputs = make_inputs(config, model, 1)

    def act(seen: ModelInputs) -> Tensor:
        with torch.autocast(config.device, torch.bfloat16):
            return model.actor.act(model.features(seen, seen.proprio))

    # "reduce-overhead" captures CUDA graphs; all weights and shapes stay as they are.
    decide: Any = torch.compile(act, mode="reduce-overhead") if config.compiled else act
    times = []
    # CUDA graphs are recorded in the first calls; replay begins after that.
    for decision in range(-10, config.decisions):
        begun = time.perf_counter()
        # The copy to the CPU waits for the device, so no extra synchronisation is needed.
        decide(inputs.to(config.device)).cpu()
        if decision >= 0:
            times.append(time.perf_counter() - begun)
    return times


def _wait(config: BenchCudaConfig) -> None:
    if config.device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(tyro.cli(BenchCudaConfig))
