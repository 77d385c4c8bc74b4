"""The benchmark of the gate's cost runs; it asserts no time."""

from __future__ import annotations

import pytest

from scripts.bench.gate_cost import GateCostConfig, main


def test_the_benchmark_prints_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    """Percentiles in their order, a row each."""
    assert main(GateCostConfig(steps=40)) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "p99" in head
    assert [row[:34].strip() for row in rows] == [
        "closed form alone",
        "gate",
        "gate with jerk",
        "gate with workspace",
        "gate with jerk and workspace",
    ]
    for row in rows:
        p50, p99, p999, *_ = map(float, row[34:].split())
        assert 0 < p50 <= p99 <= p999
