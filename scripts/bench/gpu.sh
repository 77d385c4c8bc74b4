#!/usr/bin/env bash
# All checks and benchmarks that need a GPU, in one call of less than ten minutes, and their table.
#
#   bash scripts/bench/gpu.sh [FOLDER]               # logs, JSON and table.md go there; runs/gpu by default
#   DEVICE=cpu bash scripts/bench/gpu.sh [FOLDER]    # tries it out at toy size without a GPU
#
# What a part needs and the machine has not (mujoco, lerobot) is skipped with a line that says so.
# PYTHON names the interpreter where there is no .venv.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly DEVICE=${DEVICE:-cuda}
readonly OUT=${1:-runs/gpu}
readonly ONLY=${ONLY:-.} # parts whose name matches this expression
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH=$PWD:$PWD/runtime${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$OUT" || exit 1
failed=0

row() { printf '| %s | %s | %s |\n' "$@" | tee -a "$OUT/table.md"; }

hardware() {
  "$PYTHON" -c 'import os, platform, sys, torch
gpu = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "no GPU"
print(f"{gpu}, {os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}")' "$DEVICE"
}

# Numbers of a JSON file as rows of the table.
numbers() {
  "$PYTHON" -c 'import json, sys
for name, value in json.load(open(sys.argv[2])).items():
    if isinstance(value, float | int) and not isinstance(value, bool):
        print(f"| {sys.argv[1]}: {name} | {value:.4g} | |")' "$1" "$2" | tee -a "$OUT/table.md"
}

# part NAME LIMIT_S "MODULES IT NEEDS" COMMAND...: runs it, logs it, adds its row.
part() {
  local name=$1 limit_s=$2 needs=$3 module code began=$SECONDS log
  shift 3
  [[ $name =~ $ONLY ]] || return 0
  for module in $needs; do
    if ! "$PYTHON" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$module') is None)"; then
      row "$name" "skipped: no module $module" ""
      return 0
    fi
  done
  log=$OUT/${name// /_}.log
  timeout --kill-after=5 "$limit_s" "$@" >"$log" 2>&1
  code=$?
  if [ "$code" = 0 ]; then
    row "$name" "ok: $(tail -n 1 "$log" | tr '|' '/')" "$((SECONDS - began)) s"
  else
    failed=1
    [ "$code" = 124 ] && row "$name" "FAILED: stopped after $limit_s s" "$limit_s s" && return
    row "$name" "FAILED ($code): $(tail -n 1 "$log" | tr '|' '/')" "$((SECONDS - began)) s"
  fi
}

# Collect, clone, refine and evaluate in simulation, training on the device.
simulate() {
  local vla=("$PYTHON" -m scripts.cli) run=$OUT/simulation
  local task=(--task FetchReach) device=(--device "$DEVICE") envs=(--num-envs "$ENVS")
  rm -rf "$run"
  "${vla[@]}" collect --task FetchReach --episodes "$EPISODES" --root "$run/data" &&
    "${vla[@]}" pretrain "${task[@]}" "${device[@]}" "${envs[@]}" --data "$run/data" --updates "$UPDATES" \
      --selection-episodes "$ENVS" --out "$run/clone" &&
    "${vla[@]}" refine "${task[@]}" "${device[@]}" "${envs[@]}" --clone "$run/clone/best" --iterations 1 \
      --episodes "$ENVS" --warmup-iterations 0 --selection-episodes "$ENVS" --out "$run/refined" &&
    "${vla[@]}" evaluate "${task[@]}" "${device[@]}" "${envs[@]}" --episodes "$ENVS" --films 0 \
      --policies clone="$run/clone" refined="$run/refined" expert --out "$run/report"
}

if [ "$DEVICE" = cuda ]; then
  marker="gpu" cuda=() policy=() providers=(--providers CUDA --goal-ms 10) EPISODES=10 UPDATES=200 ENVS=16
else
  marker="not gpu and not slow" EPISODES=2 UPDATES=2 ENVS=2
  cuda=(--tiny --batch-size 2 --updates 2 --decisions 2 --no-compiled --peak-tflops 0.1) policy=(--tiny)
  providers=(--tiny --decisions 20 --providers CPU)
fi
export -f simulate
export PYTHON OUT DEVICE EPISODES UPDATES ENVS

if ! machine=$(hardware 2>&1); then
  printf 'no %s device: %s\n' "$DEVICE" "$(tail -n 1 <<<"$machine")" >&2
  exit 1
fi
printf '%s, commit %s\n\n| what | result | time |\n|---|---|---|\n' "$machine" \
  "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" | tee "$OUT/table.md"
part "tests" 140 "pytest av" "$PYTHON" -m pytest -q -p no:cacheprovider -m "$marker" tests/policies/test_gpu.py
part "policy" 60 "tyro" "$PYTHON" -m scripts.bench.device --device "$DEVICE" "${policy[@]}" --out "$OUT/policy.json"
part "model of 450M" 130 "tyro" "$PYTHON" -m scripts.bench.cuda --device "$DEVICE" "${cuda[@]}" --out "$OUT/cuda.json"
part "exported model of 450M" 145 "tyro onnxruntime onnxscript" \
  "$PYTHON" -m scripts.bench.providers "${providers[@]}" --out "$OUT/providers.json"
part "simulation" 120 "mujoco lerobot tyro" bash -c simulate
for name in policy cuda providers; do
  [ -f "$OUT/$name.json" ] && numbers "$name" "$OUT/$name.json"
done
exit "$failed"
