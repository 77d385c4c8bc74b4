#!/usr/bin/env bash
# Set up a fresh machine and run the main job: collect, clone, refine, plan, compare, report.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/vla demo "$@"
