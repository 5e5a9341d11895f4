#!/usr/bin/env bash
# One process of a job in a pod or on a preemptible machine:
#   launch/pod.sh --config=FILE.py --workdir=DIR [FLAG ...]
# Runs the command, passes SIGTERM on to it, and exits with its code, or with 75 if it was stopped before the last
# step. A scheduler that restarts failed jobs then restarts it, and training resumes from the newest checkpoint.
set -uo pipefail
workdir=
for argument in "$@"; do
  [[ $argument == --workdir=* ]] && workdir=${argument#--workdir=}
done
if [[ -z $workdir ]]; then
  echo "usage: $0 --config=FILE.py --workdir=DIR [FLAG ...]" >&2
  exit 2
fi
python=${PYTHON:-python}
"$python" -m diffusion_jax.main "$@" &
process=$!
trap 'kill -TERM "$process" 2>/dev/null' TERM INT
while kill -0 "$process" 2>/dev/null; do # a trapped signal ends `wait` early
  wait "$process"
  code=$?
done
((code)) && exit "$code"
"$python" - "$workdir" <<'PYTHON' || exit 75
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
sys.exit(max(steps, default=0) < json.loads((folder / "config.json").read_text())["training"]["num_steps"])
PYTHON
