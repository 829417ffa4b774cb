#!/usr/bin/env bash
# Prepares a TPU VM: a virtual environment with pinned packages, and this package.
#
#   ./setup.sh [--kind jax|tensorflow|step] [--env FOLDER] [--dry-run]
#
# Needs Python 3.11 or newer with the venv module. It takes the newest that is there;
# Ubuntu 22.04 has 3.10, without venv: there uv, or apt, brings one.
#
#   jax         JAX with the TPU runtime it was released with; Keras on JAX.
#   tensorflow  tensorflow-tpu 2.20.0, the last release, with the libtpu it can load:
#               newer ones (0.0.52 was tried) end the process when it is imported.
#   step        JAX and NumPy alone, for run_step.py.
set -euo pipefail

kind=jax
env="$HOME/dlopt-env"
dry=false
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

while [ $# -gt 0 ]; do
  case "$1" in
    --kind) kind="${2:?--kind needs jax, tensorflow or step}"; shift 2 ;;
    --env) env="${2:?--env needs a folder}"; shift 2 ;;
    --dry-run) dry=true; shift ;;
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "setup.sh: unknown argument $1. See --help." >&2; exit 2 ;;
  esac
done

run() {
  echo "+ $*"
  if [ "$dry" = false ]; then "$@"; fi
}

jax_version=0.10.2
tf_version=2.20.0
tf_libtpu=0.0.20
# What keras_dlopt needs besides TensorFlow: that comes as tensorflow-tpu here.
needs=("keras>=3.15,<3.17" "numpy>=2.0" "scikit-learn>=1.5" "matplotlib>=3.9" "rich>=13.7"
  "typer>=0.15" "jinja2>=3.1" "zstandard>=0.23" "pillow>=10.0" "filelock>=4.0")

case "$kind" in
  jax | tensorflow | step) ;;
  *) echo "setup.sh: --kind must be jax, tensorflow or step, not $kind." >&2; exit 2 ;;
esac

# The newest Python that Keras and JAX take and that can make an environment.
found_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3 python; do
    command -v "$name" >/dev/null 2>&1 || continue
    "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
      >/dev/null 2>&1 || continue
    # ensurepip is what Debian and Ubuntu keep in a package of its own.
    "$name" -c 'import venv, ensurepip' >/dev/null 2>&1 || continue
    command -v "$name"
    return
  done
}

# Fetches of a machine that has just started fail now and then.
tried() {
  local times
  for times in 1 2 3; do
    if run "$@"; then return; fi
    sleep "${PAUSE:-5}"
  done
  return 1
}

make_environment() {
  local python
  if [ -x "$env/bin/python" ]; then return; fi  # of a run before
  python="$(found_python)"
  if [ -n "$python" ]; then
    run "$python" -m venv "$env"
    return
  fi
  echo "setup.sh: no Python from 3.11 to 3.13 with the venv module here."
  if ! command -v uv >/dev/null 2>&1 && command -v python3 >/dev/null 2>&1 \
    && python3 -m pip --version >/dev/null 2>&1; then
    tried python3 -m pip install --user --quiet uv || true
    PATH="$HOME/.local/bin:$PATH"
  fi
  if command -v uv >/dev/null 2>&1; then
    # --seed: with pip. uv brings a Python of its own.
    tried uv venv --seed --python 3.12 "$env" && return
  fi
  if command -v apt-get >/dev/null 2>&1; then
    local root=()
    if [ "$(id -u)" != 0 ]; then root=(sudo); fi
    # A machine that has just started holds apt's lock for some minutes.
    local apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get
      -o DPkg::Lock::Timeout=600)
    tried "${apt[@]}" update -q || true
    # Ubuntu 22.04 has 3.11 in its universe; 24.04 has 3.12.
    local version
    for version in 3.12 3.11; do
      if run "${apt[@]}" install -qy "python$version" "python$version-venv"; then
        run "python$version" -m venv "$env"
        return
      fi
    done
  fi
  echo "setup.sh: none could be installed either. Install Python 3.11, 3.12 or 3.13" \
    "with its venv module, and call setup.sh again." >&2
  exit 1
}

make_environment
pip="$env/bin/pip"
tried "$pip" install --upgrade pip
case "$kind" in
  jax)
    tried "$pip" install "jax[tpu]==$jax_version" "tensorflow-cpu>=2.21" "${needs[@]}"
    run "$pip" install --no-deps "$here/.."
    run "$env/bin/python" -c "import jax; print(jax.devices())"
    ;;
  tensorflow)
    tried "$pip" install "tensorflow-tpu==$tf_version" "libtpu==$tf_libtpu" "${needs[@]}"
    run "$pip" install --no-deps "$here/.."
    run "$env/bin/python" -c "import tensorflow as tf; print(tf.__version__)"
    ;;
  step)
    tried "$pip" install "jax[tpu]==$jax_version" numpy
    run "$env/bin/python" -c "import jax; print(jax.devices())"
    ;;
esac
echo "Ready: $env/bin/python $here/train.py --help"
