#!/usr/bin/env bash
# Make .venv ready: Python 3.12, the pinned packages, and a GL library for rendering.
# Safe to repeat: with nothing to do it ends at once. VLA_ALLOW_NO_GL=1 accepts a machine without GL.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly STAMP=.venv/.setup-stamp
readonly UV_HOME=$PWD/.tools/uv
readonly EXTRAS=sim,metaworld,language,train,lerobot,export,dev
# Both ask for old packages, but run on ours: numpy 2 (the tests' peer), MuJoCo 3.11 (tasks).
readonly WITHOUT_DEPENDENCIES=(openpi-client==0.1.2 metaworld==3.1.1)
readonly GL_PACKAGES=(libegl1 libgl1-mesa-dri libosmesa6)
readonly NEEDED_KB=$((12 * 1024 * 1024)) # the packages, torch's CUDA libraries first, and their cache

say() { printf '[setup] %s\n' "$*" >&2; }
die() {
  printf '[setup] error: %s\n' "$*" >&2
  exit 1
}

# What the environment was made from; a move of the checkout breaks an editable install, so PWD counts.
fingerprint() {
  { cat pyproject.toml runtime/pyproject.toml constraints.txt .python-version scripts/setup.sh && pwd; } | cksum
}

usable_uv() { "$1" pip --help >/dev/null 2>&1; }

find_uv() {
  local candidate python
  for candidate in uv .venv/bin/uv "${HOME:-}/.local/bin/uv" "$UV_HOME/bin/uv"; do
    if usable_uv "$candidate"; then
      printf '%s' "$candidate"
      return
    fi
  done
  say "installing uv into $UV_HOME"
  # --target leaves the system's packages alone, also where they are externally managed; from /,
  # because a version manager that lacks 3.12 refuses any python3 beside our .python-version.
  # The first python3 may be that of an activated environment without pip.
  while read -r python; do
    (cd / && PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --upgrade --target "$UV_HOME" uv) >&2 </dev/null && break
  done < <(type -ap python3)
  usable_uv "$UV_HOME/bin/uv" ||
    die "uv is missing and python3 -m pip could not install it; install uv, or pip (Debian: apt-get install python3-pip)"
  printf '%s' "$UV_HOME/bin/uv"
}

is_python312() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; }

# Prints why nothing can be rendered; an empty line when it can be.
gl_trouble() {
  .venv/bin/python -c 'from scripts.doctor import probe_rendering; print(probe_rendering().reason)'
}

ensure_gl() {
  local trouble fix="apt-get update && apt-get install -y ${GL_PACKAGES[*]}"
  trouble=$(gl_trouble)
  if [ -n "$trouble" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "nothing can be rendered; installing ${GL_PACKAGES[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
      --no-install-recommends "${GL_PACKAGES[@]}"; } >&2 || say "apt-get failed"
    trouble=$(gl_trouble)
  fi
  [ -n "$trouble" ] || return 0
  trouble="nothing can be rendered ($trouble); run as root: $fix"
  [ -n "${VLA_ALLOW_NO_GL:-}" ] || die "$trouble"
  say "$trouble"
}

if [ -x .venv/bin/vla ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$(fingerprint)" ]; then
  exit 0
fi

if ! is_python312 .venv/bin/python; then
  free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
  [ "$free_kb" -ge "$NEEDED_KB" ] ||
    die "$((free_kb / 1048576)) GB free in $PWD; the packages need $((NEEDED_KB / 1048576)) GB"
  uv=$(find_uv)
  say "making .venv"
  # uv takes the Python 3.12 of this machine, and fetches one where there is none.
  "$uv" venv --clear --python 3.12 .venv >&2 ||
    die "Python 3.12 is missing and uv could not fetch it; install it (Debian: apt-get install python3.12-venv)"
fi
uv=${uv:-$(find_uv)}
rm -f "$STAMP"
say "installing the packages that constraints.txt pins"
"$uv" pip install --python .venv/bin/python --constraints constraints.txt --editable ./runtime --editable ".[$EXTRAS]" >&2 ||
  die "the packages did not install; the lines above say why, and a repeat goes on from here"
"$uv" pip install --python .venv/bin/python --no-deps "${WITHOUT_DEPENDENCIES[@]}" >&2 ||
  die "${WITHOUT_DEPENDENCIES[*]} did not install; the lines above say why, and a repeat goes on from here"
ensure_gl
fingerprint >"$STAMP"
say "ready: .venv/bin/vla --help"
