#!/usr/bin/env bash
# Creates a TPU, copies this package to it, trains, and starts again when it is taken
# away. Runs on your own machine, with gcloud set up.
#
#   ./run_pod.sh --name N --zone Z --type v5litepod-8 [--version V] [--spot]
#                [--project P] [--kind jax|tensorflow] [--bucket gs://B] [--retries 10]
#                [--dry-run] -- TRAIN.PY ARGUMENTS
#
# Example:
#   ./run_pod.sh --name dlopt --zone us-west4-a --type v5litepod-8 --spot --dry-run \
#     -- --model resnet20 --data mnist --epochs 30
#
# The TPU is deleted at the end, and on Ctrl-C. With --bucket the checkpoints are copied
# there every two minutes and back after a restart: a machine that was taken away takes
# its disk along.
set -euo pipefail

name='' zone='' type='' version='' project='' kind=jax bucket='' retries=10
spot=false dry=false
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

while [ $# -gt 0 ]; do
  case "$1" in
    --name | --zone | --type | --version | --project | --kind | --bucket | --retries)
      key="${1#--}"
      printf -v "$key" '%s' "${2:?$1 needs a value}"
      shift 2 ;;
    --spot) spot=true; shift ;;
    --dry-run) dry=true; shift ;;
    -h | --help) sed -n '2,17s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --) shift; break ;;
    *) echo "run_pod.sh: unknown argument $1. See --help." >&2; exit 2 ;;
  esac
done
for key in name zone type; do
  if [ -z "${!key}" ]; then
    echo "run_pod.sh: --$key is needed. See --help." >&2
    exit 2
  fi
done
case "$kind" in
  jax) strategy=jax ;;
  tensorflow) strategy=tpu ;;
  *) echo "run_pod.sh: --kind must be jax or tensorflow, not $kind." >&2; exit 2 ;;
esac
if [ -z "$version" ]; then
  case "$type" in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi

run() {
  echo "+ $*"
  if [ "$dry" = false ]; then "$@"; fi
}

where=(--zone "$zone")
if [ -n "$project" ]; then where+=(--project "$project"); fi
tpu=(gcloud compute tpus tpu-vm)
on_all() { run "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all --command "$1"; }

create() {
  local options=(--accelerator-type "$type" --version "$version")
  if [ "$spot" = true ]; then options+=(--spot); fi
  run "${tpu[@]}" create "$name" "${where[@]}" "${options[@]}"
  run "${tpu[@]}" scp --recurse "$here/.." "$name:keras_dlopt" "${where[@]}" --worker=all
  on_all "bash keras_dlopt/tpu/setup.sh --kind $kind"
}

delete() { run "${tpu[@]}" delete "$name" "${where[@]}" --quiet || true; }
trap delete EXIT

train() {
  local command="mkdir -p run"
  if [ -n "$bucket" ]; then
    command+="; gcloud storage rsync --recursive $bucket/$name run || true"
    command+="; (while sleep 120; do gcloud storage rsync --recursive run $bucket/$name; done) & copier=\$!"
  fi
  command+="; ~/dlopt-env/bin/python keras_dlopt/tpu/train.py --strategy $strategy --checkpoint run"
  local word
  for word in "$@"; do command+=" $(printf '%q' "$word")"; done
  command+="; code=\$?"
  if [ -n "$bucket" ]; then
    command+="; kill \$copier; gcloud storage rsync --recursive run $bucket/$name"
  fi
  on_all "$command; exit \$code"
}

attempt=1
create
until train "$@"; do
  if [ "$attempt" -ge "$retries" ]; then
    echo "run_pod.sh: gave up after $attempt attempts." >&2
    exit 1
  fi
  attempt=$((attempt + 1))
  echo "run_pod.sh: attempt $attempt of $retries"
  delete
  create
done
run "${tpu[@]}" scp --recurse "$name:run" "$here/run-$name" "${where[@]}" --worker=0
