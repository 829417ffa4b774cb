#!/usr/bin/env bash
# Creates a TPU, copies this package to it, trains, and starts again when it is taken
# away. Runs on your own machine, with gcloud set up.
#
#   ./run_pod.sh --name N --zone Z --type v5litepod-8 [--version V] [--spot]
#                [--project P] [--kind jax|tensorflow] [--bucket gs://B] [--retries 10]
#                [--wait 60] [--dry-run] -- TRAIN.PY ARGUMENTS
#
# Example:
#   ./run_pod.sh --name dlopt --zone us-west4-a --type v5litepod-8 --spot --dry-run \
#     -- --model resnet20 --data mnist --epochs 30
#
# Where no machine is free it asks again, after --wait seconds, then twice as long, up
# to half an hour. What training itself refuses is not tried again. The TPU is deleted at
# the end, and on Ctrl-C. With --bucket the checkpoints are copied
# there every two minutes and back after a restart: a machine that was taken away takes
# its disk along.
set -euo pipefail

name='' zone='' type='' version='' project='' kind=jax bucket='' retries=10 wait=60
spot=false dry=false
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

while [ $# -gt 0 ]; do
  case "$1" in
    --name | --zone | --type | --version | --project | --kind | --bucket | --retries | --wait)
      key="${1#--}"
      printf -v "$key" '%s' "${2:?$1 needs a value}"
      shift 2 ;;
    --spot) spot=true; shift ;;
    --dry-run) dry=true; shift ;;
    -h | --help) sed -n '2,20s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --) shift; break ;;
    *) echo "run_pod.sh: unknown argument $1. See --help." >&2; exit 2 ;;
  esac
done
for key in retries wait; do
  if ! [[ "${!key}" =~ ^[0-9]+$ ]]; then
    echo "run_pod.sh: --$key must be a whole number, not ${!key}." >&2
    exit 2
  fi
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

# What the machine needs, in one file: scp before 9.0 refuses a source that ends in
# "..", and the repository may hold gigabytes of data and environments.
scratch="$(mktemp -d)"
packed="$scratch/keras_dlopt.tar.gz"
pack() {
  if [ -e "$packed" ]; then return; fi
  run tar -czf "$packed" --exclude=__pycache__ -C "$here/.." \
    pyproject.toml README.md LICENSE keras_dlopt tpu
}

create() {
  local options=(--accelerator-type "$type" --version "$version")
  if [ "$spot" = true ]; then options+=(--spot); fi
  run "${tpu[@]}" create "$name" "${where[@]}" "${options[@]}" || return 1
  pack || return 1
  # ssh is not up on all workers the moment that they exist.
  again run "${tpu[@]}" scp "$packed" "$name:keras_dlopt.tar.gz" "${where[@]}" \
    --worker=all || return 1
  on_all "mkdir -p keras_dlopt && tar -xzf keras_dlopt.tar.gz -C keras_dlopt" || return 1
  on_all "bash keras_dlopt/tpu/setup.sh --kind $kind"
}

again() {
  local times
  for times in 1 2 3 4 5; do
    if "$@"; then return; fi
    sleep "$((wait < 15 ? wait : 15))"
  done
  return 1
}

# Also what a failed creation left: it stands in the way of the next of that name.
delete() { run "${tpu[@]}" delete "$name" "${where[@]}" --quiet || true; }

if [ "$dry" = false ] && "${tpu[@]}" describe "$name" "${where[@]}" >/dev/null 2>&1; then
  rm -rf "$scratch"
  echo "run_pod.sh: a TPU named $name is there already. It would be deleted at the" \
    "end: choose another --name, or delete it yourself." >&2
  exit 2
fi
trap 'delete; rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

train() {
  local command="rm -f exit-code; mkdir -p run"
  if [ -n "$bucket" ]; then
    command+="; gcloud storage rsync --recursive $bucket/$name run || true"
    command+="; (while sleep 120; do gcloud storage rsync --recursive run $bucket/$name; done) & copier=\$!"
  fi
  command+="; ~/dlopt-env/bin/python keras_dlopt/tpu/train.py --strategy $strategy --checkpoint run"
  local word
  for word in "$@"; do command+=" $(printf '%q' "$word")"; done
  command+="; code=\$?; echo \$code > exit-code"
  if [ -n "$bucket" ]; then
    command+="; kill \$copier; gcloud storage rsync --recursive run $bucket/$name"
  fi
  on_all "$command; exit \$code"
}

# Whether train.py itself ended, with 1 (what it refuses) or 2 (wrong arguments): it
# would do so again. A machine that was taken away cannot be asked, and gcloud has exit
# codes of its own.
refused() {
  local told
  told="$("${tpu[@]}" ssh "$name" "${where[@]}" --worker=0 --command 'cat exit-code' \
    2>/dev/null || true)"
  [[ "$told" =~ ^[12]$ ]]
}

pause="$wait"
for ((attempt = 1; ; attempt++)); do
  code=0
  if create; then
    pause="$wait"
    train "$@" || code=$?
    if [ "$code" = 0 ]; then break; fi
    if refused; then
      echo "run_pod.sh: training ended by itself; see above." >&2
      exit "$code"
    fi
  else
    echo "run_pod.sh: no machine, or it could not be set up." >&2
  fi
  delete
  if [ "$attempt" -ge "$retries" ]; then
    echo "run_pod.sh: gave up after $attempt attempts." >&2
    exit 1
  fi
  echo "run_pod.sh: attempt $((attempt + 1)) of $retries, in $pause s"
  sleep "$pause"
  pause=$((pause * 2 < 1800 ? pause * 2 : 1800))
done
run "${tpu[@]}" scp --recurse "$name:run" "$here/run-$name" "${where[@]}" --worker=0
