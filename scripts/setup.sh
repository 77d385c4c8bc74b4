#!/usr/bin/env bash
# Make .venv ready: Python 3.12, the pinned packages, and a GL library for rendering.
# Safe to repeat: with nothing to do it ends at once. VLA_ALLOW_NO_GL=1 accepts a machine without GL.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly STAMP=.venv/.setup-stamp
readonly UV_HOME=.tools/uv
readonly GL_PACKAGES=(libegl1 libgl1-mesa-dri libosmesa6)
readonly NEEDED_KB=$((12 * 1024 * 1024)) # the packages, torch's CUDA libraries first, and their cache

say() { printf '[setup] %s\n' "$*" >&2; }
die() {
  printf '[setup] error: %s\n' "$*" >&2
  exit 1
}

# What the environment was made from; a move of the checkout breaks an editable install, so PWD counts.
fingerprint() {
  { cat pyproject.toml constraints.txt .python-version scripts/setup.sh && pwd; } | cksum
}

# uv needs `pip install --group`; an older one on PATH is passed over.
usable_uv() { "$1" pip install --help 2>/dev/null | grep -q -- '--group'; }

find_uv() {
  local candidate
  for candidate in uv .venv/bin/uv "$HOME/.local/bin/uv" "$UV_HOME/bin/uv"; do
    if usable_uv "$candidate"; then
      printf '%s' "$candidate"
      return
    fi
  done
  say "installing uv into $UV_HOME"
  # --target leaves the system's packages alone, also where they are externally managed.
  python3 -m pip install --quiet --upgrade --target "$UV_HOME" uv >&2 ||
    die "uv is missing and python3 -m pip could not install it; install uv, or pip (Debian: apt-get install python3-pip)"
  printf '%s' "$UV_HOME/bin/uv"
}

is_python312() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in python3.12 python3; do
    if is_python312 "$candidate"; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  say "no Python 3.12 here; uv fetches one"
  "$1" python install 3.12 >&2 || die "Python 3.12 is missing and uv could not fetch it; install Python 3.12"
  printf '3.12'
}

gl_works() {
  .venv/bin/python -c 'import sys; from scripts.doctor import probe_rendering; sys.exit(not probe_rendering().backend)'
}

ensure_gl() {
  gl_works && return
  local fix="apt-get install -y ${GL_PACKAGES[*]}"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "no GL library renders; installing ${GL_PACKAGES[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${GL_PACKAGES[@]}"; } >&2 ||
      say "apt-get failed"
    gl_works && return
  fi
  [ -z "${VLA_ALLOW_NO_GL:-}" ] ||
    { say "no GL library renders: pictures will fail (fix: $fix)" && return; }
  die "no GL library renders (neither EGL nor OSMesa); run as root: $fix"
}

if [ -x .venv/bin/vla ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$(fingerprint)" ]; then
  exit 0
fi

if ! is_python312 .venv/bin/python; then
  free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
  [ "$free_kb" -ge "$NEEDED_KB" ] ||
    die "$((free_kb / 1048576)) GB free in $PWD; the packages need $((NEEDED_KB / 1048576)) GB"
  uv=$(find_uv)
  python=$(find_python "$uv")
  say "making .venv with $python"
  "$uv" venv --quiet --clear --python "$python" .venv
fi
uv=${uv:-$(find_uv)}
rm -f "$STAMP"
say "installing the packages that constraints.txt pins"
"$uv" pip install --python .venv/bin/python --constraints constraints.txt --editable . --group dev >&2 ||
  die "the packages did not install; the lines above say why, and a repeat goes on from here"
ensure_gl
fingerprint >"$STAMP"
say "ready: .venv/bin/vla --help"
