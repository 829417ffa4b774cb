#!/usr/bin/env bash
# Prepares a TPU VM: a virtual environment with pinned packages, and this package.
#
#   ./setup.sh [--kind jax|tensorflow|step] [--env FOLDER] [--dry-run]
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
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
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
needs=("keras>=3.15" "numpy>=2.0" "scikit-learn>=1.5" "matplotlib>=3.9" "rich>=13.7"
  "typer>=0.15" "jinja2>=3.1" "zstandard>=0.23" "pillow>=10.0")

run python3 -m venv "$env"
pip="$env/bin/pip"
run "$pip" install --upgrade pip
case "$kind" in
  jax)
    run "$pip" install "jax[tpu]==$jax_version" "tensorflow-cpu>=2.21" "${needs[@]}"
    run "$pip" install --no-deps "$here/.."
    run "$env/bin/python" -c "import jax; print(jax.devices())"
    ;;
  tensorflow)
    run "$pip" install "tensorflow-tpu==$tf_version" "libtpu==$tf_libtpu" "${needs[@]}"
    run "$pip" install --no-deps "$here/.."
    run "$env/bin/python" -c "import tensorflow as tf; print(tf.__version__)"
    ;;
  step)
    run "$pip" install "jax[tpu]==$jax_version" numpy
    run "$env/bin/python" -c "import jax; print(jax.devices())"
    ;;
  *) echo "setup.sh: --kind must be jax, tensorflow or step, not $kind." >&2; exit 2 ;;
esac
echo "Ready: $env/bin/python $here/train.py --help"
