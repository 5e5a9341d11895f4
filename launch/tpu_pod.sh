#!/usr/bin/env bash
# A job on a Cloud TPU pod slice, by a queued resource:
#   TPU=my-slice ZONE=us-east5-b TYPE=v6e-32 WORKDIR=/mnt/runs/xl2 \
#     launch/tpu_pod.sh --config=configs/dit.py:imagenet256_xl2
# Requests the slice unless it exists, waits until it is active, copies this checkout to every machine of it, installs
# it and runs the command on all of them; JAX finds the other machines by itself. WORKDIR and the data must be on a file
# system that all machines mount. If the slice was preempted, the same line requests another and resumes.
# VERSION: the runtime of the machines. SPOT=1: preemptible. KEEP=1: keep the slice afterwards.
# Tests check the calls of gcloud that this script makes; it has not been run on a real TPU pod slice.
set -euo pipefail
if [[ -z ${TPU:-} || -z ${ZONE:-} || -z ${TYPE:-} || -z ${WORKDIR:-} || $# -eq 0 ]]; then
  echo "usage: TPU=NAME ZONE=ZONE TYPE=TYPE WORKDIR=DIR [VERSION=...] [SPOT=1] [KEEP=1] $0 --config=FILE.py [FLAG ...]" >&2
  exit 2
fi
version=${VERSION:-v2-alpha-tpuv6e}
root=$(cd "$(dirname "$0")/.." && pwd)

state() {
  gcloud compute tpus queued-resources describe "$TPU" --zone="$ZONE" --format='value(state.state)' 2>/dev/null || echo NONE
}
remove() { gcloud compute tpus queued-resources delete "$TPU" --zone="$ZONE" --force --quiet; }
everywhere() { gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"; }

now=$(state)
if [[ $now == FAILED || $now == SUSPENDED ]]; then # preempted: it has to be removed before it can be requested again
  remove
  now=NONE
fi
if [[ $now == NONE ]]; then
  options=()
  [[ -n ${SPOT:-} ]] && options+=(--spot)
  gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$version" ${options[@]+"${options[@]}"}
fi
until [[ $now == ACTIVE ]]; do
  if [[ $now == FAILED || $now == SUSPENDED ]]; then
    echo "$TPU is $now" >&2
    exit 1
  fi
  sleep "${POLL:-30}"
  now=$(state)
  echo "$TPU is $now"
done

archive=$(mktemp -d)/diffusion_jax.tgz
(cd "$root" && tar --exclude=.git --exclude='.venv*' --exclude=runs --exclude=.jax_cache -czf "$archive" .)
gcloud compute tpus tpu-vm scp "$archive" "$TPU":/tmp/ --zone="$ZONE" --worker=all
everywhere "mkdir -p diffusion_jax && tar -xzf /tmp/diffusion_jax.tgz -C diffusion_jax &&
  cd diffusion_jax && python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu]'"
flags=$(printf ' %q' "$@" "--workdir=$WORKDIR" --coordinator=auto)
code=0
everywhere "cd diffusion_jax && PYTHON=.venv/bin/python JAX_COMPILATION_CACHE_DIR=$WORKDIR/.jax_cache launch/pod.sh$flags" || code=$?
if ((code == 0)) && [[ -z ${KEEP:-} ]]; then
  remove
fi
exit "$code"
