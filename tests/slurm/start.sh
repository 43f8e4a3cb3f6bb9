#!/usr/bin/env bash
# start.sh [FOLDER]: starts a real SLURM on this one machine, as root, from Debian's packages slurm-wlm and munge, and
# prints the path by which sbatch and the others find it. It has two nodes, both of which are this machine. Everything
# lies in the folder; where it runs already, nothing happens. It needs no systemd.
#
#     apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge
#     export SLURM_CONF=$(tests/slurm/start.sh)
#     sbatch --wait --wrap hostname
#     tests/slurm/stop.sh
set -euo pipefail

folder=${1:-${TMPDIR:-/tmp}/accelerando-slurm}
export SLURM_CONF=$folder/slurm.conf
nodes=(127.0.0.2 127.0.0.3) # names that resolve, and to this machine

fail() {
    echo "start.sh: $1" >&2
    exit 1
}
running() { [ -f "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

[ "$(id -u)" = 0 ] || fail "started by user $(id -un); expected root, who may start slurmctld and slurmd"
for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || fail "there is no $program; apt-get install slurm-wlm munge"
done

mkdir -p "$folder"/{state,munge} "${nodes[@]/#/$folder/spool-}"
if ! running "$folder/munge/pid"; then
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
    # It would refuse a folder below one that others can write, such as /tmp.
    munged --force --key-file "$folder/munge/key" --socket "$folder/munge/socket" --pid-file "$folder/munge/pid" \
        --log-file "$folder/munge/log" --seed-file "$folder/munge/seed"
fi

# A requeued job waits for cred_expire seconds, by default 120. The nodes claim CPUs that may not be there.
cat >"$SLURM_CONF" <<END
ClusterName=tests
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmdLogFile=$folder/slurmd-%n.log
SlurmdSpoolDir=$folder/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=2
NodeName=${nodes[0]} Port=16818 CPUs=8
NodeName=${nodes[1]} Port=16819 CPUs=8
PartitionName=tests Nodes=ALL Default=YES MaxTime=60 State=UP
END
running "$folder/slurmctld.pid" || slurmctld
for node in "${nodes[@]}"; do
    running "$folder/slurmd-$node.pid" || slurmd -N "$node"
done

for _ in $(seq 150); do
    ready=$(sinfo --noheader --Node --states idle,mixed,allocated 2>/dev/null | wc -l)
    [ "$ready" = "${#nodes[@]}" ] && echo "$SLURM_CONF" && exit
    sleep 0.2
done
fail "the nodes are not ready; see the logs in $folder"
