#!/usr/bin/env bash
# stop.sh [FOLDER]: ends the jobs and the daemons that start.sh started in the folder.
set -euo pipefail

folder=${1:-${TMPDIR:-/tmp}/accelerando-slurm}
export SLURM_CONF=$folder/slurm.conf

scancel --signal=KILL --full --user="$(id -u)" 2>/dev/null || true
for pid in "$folder"/*.pid "$folder/munge/pid"; do
    [ -f "$pid" ] && kill "$(cat "$pid")" 2>/dev/null || true
done
