# shellcheck shell=bash
# tests/slurm/lib.sh - a real SLURM for the scripts here: slurmctld and a slurmd per host, on the hosts of tests/common/hosts.sh.
# Sourced, not run.
#
# Needs the packages slurmctld, slurmd, slurm-client and munge too; without them a script says so and exits with 77. Every script has a
# cluster of its own and leaves nothing behind.
# shellcheck source=tests/common/hosts.sh
. "$(dirname "${BASH_SOURCE[0]}")/../common/hosts.sh"

for program in slurmctld slurmd srun munged; do
    command -v "$program" > /dev/null || skip "no $program (Debian: slurmctld slurmd slurm-client munge)"
done
fail_shows=("$dir/job.log" "${fail_shows[@]}")

# cluster HOSTS [CPUS]: up and idle. The first host carries slurmctld.
cluster() {
    hosts_up "$1"
    "$hosts/slurm-up" -c "${2:-4}" "$1" > "$dir/up.log" 2>&1 || fail "the cluster comes up" "$dir/up.log"
}

# kill_wait SECONDS: between SIGTERM and SIGKILL; slurm-up says 5, too few for a machine that is busy.
kill_wait() {
    sed -i "s/^KillWait=.*/KillWait=$(($1 * slow))/" "$GX_STATE/slurm/etc/slurm.conf"
    on_head scontrol reconfigure
}
daemons() { # HOST NAME: pids
    local pid
    for pid in $(ip netns pids "$1"); do
        if [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = "$2" ]; then echo "$pid"; fi
    done
}

# submit SBATCH-OPTIONS... -- SERVE-OPTIONS...: a job that serves the demo model; sets $job. It listens on
# loopback of the first node, which is the head (the job's nodes are taken in order).
submit() {
    local options=()
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    {
        echo '#!/bin/bash'
        printf 'exec'
        printf ' %q' "$GANTRY" serve "$model" --listen "127.0.0.1:$port" --run-dir "$dir/run" "$@"
        echo
    } > "$dir/job.sh"
    queue "${options[@]}" "$dir/job.sh"
}
# queue SBATCH-OPTIONS... SCRIPT [ARGS...]: as job $job
queue() {
    rm -rf "$dir/run" "$dir/job.log"
    job=$(on_head sbatch --parsable -o "$dir/job.log" "$@")
}

job_state() { on_head squeue -h -j "$job" -o %T 2> /dev/null || true; }
job_gone() { [ -z "$(job_state)" ]; }
job_runs() { [ "$(job_state)" = RUNNING ]; }
nodes_idle() { [ "$(on_head sinfo -h -N -t idle -o %N | sort -u | wc -l)" -eq "$1" ]; }
