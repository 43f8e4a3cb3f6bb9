#!/usr/bin/env bash
# stop.sh [FOLDER]: ends the jobs and the daemons that start.sh started in the folder.
set -euo pipefail

folder=${1:-${TMPDIR:-/tmp}/accelerando-slurm}
export SLURM_CONF=$folder/slurm.conf

scancel --signal=KILL --full --user="$(id -u)" 2>/dev/null || true
# A node does not end while it has a job to report to the controller.
for _ in $(seq 100); do
    [ -n "$(squeue --noheader 2>/dev/null)" ] || break
    sleep 0.2
done
for pid in "$folder"/*.pid "$folder/munge/pid"; do
    [ -f "$pid" ] && kill "$(cat "$pid")" 2>/dev/null || true
done
