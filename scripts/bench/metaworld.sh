#!/usr/bin/env bash
# A suite of Meta-World from beginning to end, without a network: demonstrations, one policy from images
# and words, and the table of its success. Repeating it goes on where it was.
#
#   bash scripts/bench/metaworld.sh [FOLDER]                # MT10 on the CPU; runs/metaworld by default
#   SUITE=MT50 DEVICE=cuda WORKERS=16 BATCH=1024 UPDATES=6000 bash scripts/bench/metaworld.sh [FOLDER]
#   REFINE=100 bash scripts/bench/metaworld.sh [FOLDER]     # and PPO, so many iterations
#
# PYTHON names the interpreter where there is no .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly SUITE=${SUITE:-MT10} DEVICE=${DEVICE:-cpu} WORKERS=${WORKERS:-2}
readonly DEMONSTRATIONS=${DEMONSTRATIONS:-50} UPDATES=${UPDATES:-20000} BATCH=${BATCH:-128} SEED=${SEED:-0}
readonly EPISODES=${EPISODES:-50} # of each task, for the table
readonly REFINE=${REFINE:-0} HEAD=${HEAD:-flow}
readonly OUT=${1:-runs/metaworld}
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH=$PWD:$PWD/runtime${PYTHONPATH:+:$PYTHONPATH}
vla() { "$PYTHON" -m scripts.cli "$@"; }

tasks=$("$PYTHON" -c 'import sys; from sim.tasks.metaworld import SUITES; print(len(SUITES[sys.argv[1]]))' "$SUITE")
name=$SUITE-$HEAD-$UPDATES-s$SEED
# Some experts let go of what they have reached, hence "reached".
vla collect --task "MetaWorld/$SUITE" --episodes "$DEMONSTRATIONS" --keep reached --workers "$WORKERS" \
  --root "$OUT/$SUITE-data"
vla pretrain --task None --data "$OUT/$SUITE-data" --start scratch --head "$HEAD" --device "$DEVICE" \
  --batch "$BATCH" --updates "$UPDATES" --evaluate-every $(((UPDATES + 3) / 4)) --seed "$SEED" --out "$OUT/$name/clone"
# The last checkpoint: what chooses another one has to be said.
clone=$OUT/$name/clone/step_$(printf %06d "$UPDATES")
policies=(clone="$clone")
if [ "$REFINE" -gt 0 ]; then
  name=$name-refined-$REFINE
  vla refine --task "MetaWorld/$SUITE" --clone "$clone" --device "$DEVICE" --num-envs $((tasks * 5)) \
    --episodes $((tasks * 5)) --iterations "$REFINE" --seed "$SEED" --out "$OUT/$name/ppo"
  policies+=(refined="$OUT/$name/ppo/best")
fi
vla evaluate --task "MetaWorld/$SUITE" --episodes $((tasks * EPISODES)) --films 0 --num-workers "$WORKERS" \
  --device "$DEVICE" --policies "${policies[@]}" --out "$OUT/$name/report"
"$PYTHON" -m scripts.bench.metaworld "$OUT/$name/report/report.json" | tee "$OUT/$name/table.md"
