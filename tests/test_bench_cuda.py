"""The GPU benchmark counts what it says, on whatever there is; speeds are not asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts.bench.cuda import BenchCudaConfig, main, make_inputs, make_model, peak_tflops
from vla.processing.model_inputs import ModelInputs


def test_it_runs_small_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both measurements, from random weights to the file."""
    out = tmp_path / "cuda.json"
    config = BenchCudaConfig(
        "cpu",
        tiny=True,
        batch_size=2,
        chunk_length=4,
        updates=2,
        decisions=3,
        compiled=False,
        peak_tflops=0.1,
        out=out,
    )
    result = main(config)
    assert json.loads(out.read_text()) == result
    assert result["chunk_p99_s"] >= result["chunk_p50_s"] > 0
    model = make_model(config)
    # Every weight of a matrix is used at least once for each of two samples, and for both passes.
    matrices = sum(w.numel() for w in model.actor.head.parameters() if w.dim() == 2)
    assert result["tflop_an_update"] * 1e12 > 6 * 2 * matrices
    assert 0 < result["mfu"] < 1
    assert "MFU" in capsys.readouterr().out


def test_a_chunk_is_one_graph() -> None:
    """Nothing in it waits for a value, so that it can be captured."""
    config = BenchCudaConfig("cpu", tiny=True, chunk_length=4, steps=2)
    model = make_model(config).eval()
    inputs = make_inputs(config, model, 1)

    def act(seen: ModelInputs) -> torch.Tensor:
        return model.actor.act(model.features(seen, seen.proprio))

    with torch.no_grad():
        captured = torch.compile(act, backend="eager", fullgraph=True)(inputs)
        torch.testing.assert_close(captured, act(inputs), rtol=0, atol=0.02)


def test_the_model_has_smolvlas_size() -> None:
    """450M parameters within a tenth, 64 tokens an image; without memory for them."""
    config = BenchCudaConfig()
    with torch.device("meta"):
        model = make_model(config)
    assert 405e6 < sum(weight.numel() for weight in model.parameters()) < 495e6
    assert model.dims.image_tokens == 64
    assert make_inputs(config, model, 1).input_ids.shape == (1, 2 * 64 + 32)


def test_peaks_are_by_name() -> None:
    """Those of data sheets, and an error where there is none."""
    assert peak_tflops("NVIDIA H100 80GB HBM3") == peak_tflops("NVIDIA H200") == 989
    assert peak_tflops("NVIDIA H100 PCIe") == 756
    assert peak_tflops("NVIDIA A100-SXM4-80GB") == 312
    with pytest.raises(ValueError, match="--peak-tflops"):
        peak_tflops("NVIDIA GeForce GTX 1050")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And how to try it nevertheless."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="--device cpu"):
        main(BenchCudaConfig())
