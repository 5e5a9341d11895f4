#!/usr/bin/env bash
# Runs the command as N processes on this machine, for tests and for one process per GPU.
#   launch/local_processes.sh 2 --config=configs/ncsn.py --workdir=runs/two
# Each process takes the devices that CUDA_VISIBLE_DEVICES or XLA_FLAGS gives it. When one fails, the others are
# stopped; its exit code is returned. SIGTERM and Ctrl-C reach all of them.
set -euo pipefail
if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 NUMBER_OF_PROCESSES --config=FILE.py --workdir=DIR [FLAG ...]" >&2
  exit 2
fi
processes=$1
shift
python=${PYTHON:-python}
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
pids=()
stop() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
trap stop TERM INT
for ((i = 0; i < processes; i++)); do
  "$python" -m diffusion_jax.main "$@" --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$i" &
  pids+=($!)
done
code=0
for ((i = 0; i < processes; i++)); do
  # A trapped signal ends `wait` early; then wait again for the processes, which save and exit.
  while true; do
    wait -n "${pids[@]}" && status=0 || status=$?
    alive=()
    for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null && alive+=("$pid"); done
    ((${#alive[@]} < ${#pids[@]})) && break
    ((${#alive[@]} == 0)) && break
  done
  pids=("${alive[@]+"${alive[@]}"}")
  if ((status && !code)); then
    code=$status
    ((${#pids[@]})) && stop
  fi
  ((${#pids[@]})) || break
done
exit "$code"
