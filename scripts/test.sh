#!/usr/bin/env bash
# Set up, then lint, types, import rules and tests. Arguments go to pytest: scripts/test.sh tests/vla -k spec
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh || exit 1
export PATH="$PWD/.venv/bin:$PATH"
# Tests start dozens of processes: modules are compiled once, not once more in each of them.
unset PYTHONDONTWRITEBYTECODE

failed=()
check() {
  printf '\n== %s\n' "$*"
  "$@" || failed+=("$*")
}
check ruff check .
check ruff format --check .
check pyright
check lint-imports
[ ${#failed[@]} = 0 ] || printf '\nFAILED before the tests: %s\n' "$(printf '[%s] ' "${failed[@]}")"
# Two processes; a file's tests stay together, since they share trained models and data sets.
check pytest --numprocesses 2 --dist loadfile -m "not slow and not gpu" "$@"
[ ${#failed[@]} = 0 ]
