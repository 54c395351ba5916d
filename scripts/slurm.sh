#!/usr/bin/env bash
# A throw-away Slurm of one node, run by this user, for tests and for trying launch=slurm; nothing but DIR is written.
#
#   scripts/slurm.sh fetch DIR    Debian's packages, downloaded and unpacked into DIR: no root, nothing installed
#   scripts/slurm.sh start DIR    daemons on free ports, from DIR or as installed (apt-get install slurm-wlm munge)
#   . DIR/env.sh                  sbatch, squeue and their kind now talk to it
#   scripts/slurm.sh stop DIR
#
# Exit code 3: there is no Slurm to start.
set -euo pipefail
[[ $# -eq 2 ]] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$2"
dir=$(cd "$2" && pwd)
root=$dir/root
export PATH=$root/usr/bin:$root/usr/sbin:$PATH:/usr/sbin

fetch() {
    local debs=$dir/debs deb
    mkdir -p "$debs" "$root"
    (cd "$debs" && apt-get download -q slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libmunge2 \
        libhwloc15 libnuma1 libjson-c5 liblua5.1-0 libyaml-0-2 libdbus-1-3 libgcrypt20 libreadline8)
    for deb in "$debs"/*.deb; do dpkg -x "$deb" "$root"; done
    rm -r "$debs"
}

# Debian calls a daemon slurmd-wlm, and slurmd by an alternative that only an installation makes.
daemon() { command -v "$1" || command -v "$1-wlm"; }

free_ports() {
    python3 -c 'import socket; s = [socket.create_server(("127.0.0.1", 0)) for _ in "12"]
print(*(one.getsockname()[1] for one in s))'
}

environment() {
    local config=$dir/slurm.conf libraries plugins
    libraries=$(dirname "$(find "$root/usr/lib" /usr/lib /usr/lib64 -maxdepth 3 -type d -name slurm-wlm -print -quit \
        2>/dev/null)")
    plugins=$libraries/slurm-wlm
    if [[ $libraries == "$root"/* ]]; then
        printf 'export LD_LIBRARY_PATH=%q\n' "$libraries:$plugins:$root${libraries#"$root/usr"}"
    fi
    printf 'export SLURM_CONF=%q\nexport PATH=%q\n' "$config" "$PATH"
    read -r controller node <<<"$(free_ports)"
    # No accounting: its daemon is a database's. No cgroups: a container has none to give.
    cat > "$config" <<CONF
ClusterName=throwaway
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$controller
SlurmdPort=$node
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
PluginDir=$plugins
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
KillWait=10
SlurmdParameters=config_overrides
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=ALL Default=YES
CONF
}

start() {
    if ! { daemon munged && daemon slurmctld && daemon slurmd; } >/dev/null; then
        echo "no Slurm here: apt-get install slurm-wlm munge, or $0 fetch $dir" >&2
        exit 3
    fi
    mkdir -p "$dir/state" "$dir/spool" "$dir/munge"
    chmod 700 "$dir/munge"
    [[ -f $dir/munge/key ]] || (umask 077 && head -c 128 /dev/urandom > "$dir/munge/key")
    environment > "$dir/env.sh"
    . "$dir/env.sh"
    "$(daemon munged)" --force --socket="$dir/munge.socket" --key-file="$dir/munge/key" --seed-file="$dir/munge/seed" \
        --pid-file="$dir/munged.pid" --log-file="$dir/munged.log"
    "$(daemon slurmctld)" -c
    "$(daemon slurmd)" -N "$(hostname -s)" -d "$(daemon slurmstepd)"
    for _ in {1..100}; do
        [[ $(sinfo --noheader --format=%T 2>/dev/null) == idle ]] && return
        sleep 0.2
    done
    echo "Slurm did not come up; see $dir/*.log" >&2
    stop
    exit 1
}

stop() {
    local name
    for name in slurmd slurmctld munged; do
        [[ -f $dir/$name.pid ]] && kill "$(<"$dir/$name.pid")" 2>/dev/null || true
    done
}

case $1 in
    fetch | start | stop) "$1" ;;
    *) echo "$0: got $1, expected fetch, start or stop" >&2; exit 2 ;;
esac
