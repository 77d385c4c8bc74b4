"""`scripts/bench/gpu.sh` and what it runs, without a GPU."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from docs_blocks import ROOT, parse_module, parse_vla

from scripts.bench import providers
from scripts.bench.device import BenchDeviceConfig, main

SCRIPT = ROOT / "scripts" / "bench" / "gpu.sh"
LONGEST_S = 10 * 60

# Stands for Python: writes down what it was asked, and lacks a module or fails where told to.
FAKE_PYTHON = r"""#!/bin/bash
case "$1 $2" in
  "-c "*find_spec*) [[ -z "$LACKS" || "$2" != *"'$LACKS'"* ]]; exit ;;
  "-c "*torch*) [ -z "$NO_CUDA" ] && echo "a machine" || { echo "no driver" >&2; exit 1; }; exit ;;
  "-c "*) exec REAL "$@" ;;
esac
printf '%q ' "$@" >>"$LOG"; echo >>"$LOG"
[[ -z "$FAILS" || "$2" != "$FAILS" ]] || { echo "it broke"; exit 3; }
echo "all is well"
"""


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script with the fake Python; logs and table go to `folder`."""
    fake = folder / "python"
    fake.write_text(FAKE_PYTHON.replace("REAL", sys.executable))
    fake.chmod(0o755)
    told = {"PYTHON": str(fake), "LOG": str(folder / "asked"), "LACKS": "", "FAILS": ""}
    return subprocess.run(
        ["bash", SCRIPT, folder / "out"],
        env=os.environ | told | {"NO_CUDA": ""} | environment,
        capture_output=True,
        text=True,
    )


def asked(folder: Path) -> list[list[str]]:
    """Words of each `python -m ...`, without the `-m`."""
    lines = (folder / "asked").read_text().splitlines()
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_part_is_asked_for_with_flags_that_exist(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU tests, three benchmarks, and four commands in simulation."""
    done = run(tmp_path, DEVICE=device)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "table.md").read_text() == done.stdout
    assert done.stdout.startswith("a machine, commit ")
    tests, *modules = asked(tmp_path)
    assert tests[tests.index("-m") + 1] == ("gpu" if device == "cuda" else "not gpu and not slow")
    assert (ROOT / tests[-1]).is_file()
    commands = [words[1] for words in modules if words[0] == "scripts.cli"]
    assert commands == ["collect", "pretrain", "refine", "evaluate"]
    for name, *flags in modules:
        if name == "scripts.cli":
            config = parse_vla(flags, monkeypatch)
        else:
            config = parse_module(name, flags)
        assert getattr(config, "device", device) == device


def test_what_the_machine_lacks_is_skipped_and_said(tmp_path: Path) -> None:
    """Without a simulator everything else runs."""
    done = run(tmp_path, LACKS="mujoco")
    assert done.returncode == 0
    assert "| simulation | skipped: no module mujoco |  |" in done.stdout
    assert len(asked(tmp_path)) == 4


def test_a_failure_is_told_and_the_rest_runs(tmp_path: Path) -> None:
    """Its last words in the table, and the exit code."""
    done = run(tmp_path, FAILS="scripts.bench.device")
    assert done.returncode == 1
    assert "| policy | FAILED (3): it broke |" in done.stdout
    assert "| simulation | ok: all is well |" in done.stdout


def test_no_device_is_said_before_anything_runs(tmp_path: Path) -> None:
    """No table of nothing."""
    done = run(tmp_path, NO_CUDA="yes")
    assert done.returncode == 1
    assert "no cuda device: no driver" in done.stderr
    assert not (tmp_path / "asked").exists()


def test_the_limits_of_all_parts_stay_below_ten_minutes() -> None:
    """Even if every part is stopped."""
    limits = [int(limit) for limit in re.findall(r'^part "[^"]+" (\d+) ', SCRIPT.read_text(), re.M)]
    assert len(limits) == 5
    assert sum(limits) < LONGEST_S


def test_the_shipped_policy_is_measured(tmp_path: Path) -> None:
    """Small, on the CPU: every number positive, and a file for the table."""
    out = tmp_path / "policy.json"
    result = main(BenchDeviceConfig("cpu", tiny=True, out=out))
    assert json.loads(out.read_text()) == result
    assert {"decision of 1, p99, ms", "PPO, macro-steps learned/s"} < set(result)
    assert min(result.values()) > 0


@pytest.mark.slow
def test_the_exported_model_is_measured(tmp_path: Path) -> None:
    """Small, on the CPU provider: as the CPU decides, and slower than no time at all."""
    out = tmp_path / "providers.json"
    flags = {"tiny": True, "decisions": 2, "out": out}
    result = providers.main(providers.BenchProvidersConfig(("CPU",), **flags))
    assert json.loads(out.read_text()) == result
    assert result["CPU, p99, ms"] >= result["CPU, p50, ms"] > 0
    assert result["CPU, apart from CPU"] == 0
    with pytest.raises(RuntimeError, match="the goal is 1e-06 ms"):
        providers.require_goal(result, "CPU", 1e-6)


def test_a_provider_that_is_not_there_is_refused() -> None:
    """Before the model is made."""
    with pytest.raises(ValueError, match=r"no Nonsense, only .*CPU.*onnxruntime-gpu"):
        providers.main(providers.BenchProvidersConfig(("CPU", "Nonsense")))


def test_without_a_gpu_the_benchmark_says_how_to_try_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cpu --tiny"):
        main(BenchDeviceConfig())
