# shellcheck shell=bash
# tests/slurm/lib.sh - a real SLURM for the scripts here: slurmctld and a slurmd per host, the hosts being
# network namespaces (the scripts of GANTRY_SHARED_DIR/hosts). Sourced, not run.
#
# Needs root and the packages slurmctld, slurmd, slurm-client and munge; without them a script says so and
# exits with 77. Every script has a cluster of its own, under a prefix of its own, and leaves nothing
# behind: daemons, namespaces, files. What each claims is printed; the first claim that fails ends it.
set -euo pipefail

: "${GANTRY:?path of the program}"
: "${GANTRY_SOURCE_DIR:=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}"
hosts=$GANTRY_SHARED_DIR/hosts
model=$GANTRY_SOURCE_DIR/model/demo

skip() {
    echo "skipped: $*"
    exit 77
}
PATH=$PATH:/usr/sbin:/sbin
[ -x "$hosts/slurm-up" ] || skip "no $hosts"
[ "$(id -u)" = 0 ] || skip "network namespaces and slurmctld need root"
for program in slurmctld slurmd srun munged; do
    command -v "$program" > /dev/null || skip "no $program (Debian: slurmctld slurmd slurm-client munge)"
done

dir=$(mktemp -d /tmp/gantry-slurm-XXXXXX) # short: a socket's path has 108 bytes
# Of its own, so that two copies of this tree can be tested at once; interfaces have 15 characters.
export GX_PREFIX=${GX_PREFIX:-s$(($$ % 100000))n} GX_NET=${GX_NET:-10.79.0} GX_STATE=$dir/gx
export XDG_CACHE_HOME=$dir/cache # digests of weights
mkdir "$dir/tmp" "$dir/cache"
export TMPDIR=$dir/tmp
unset GANTRY_RUN_DIR
claims=0

ok() {
    claims=$((claims + 1))
    echo "ok    $*"
}

fail() { # CLAIM [FILE...]: the ends of the job's output and of the files are shown
    local file
    echo "FAIL  $1"
    shift
    for file in "$dir/job.log" "$@"; do
        [ -s "$file" ] || continue
        echo "      $(basename "$file"):"
        tail -n 25 "$file" | sed 's/^/      | /'
    done
    exit 1
}

now_ms() { echo $(($(date +%s%N) / 1000000)); }

within() { # SECONDS COMMAND...
    local end=$(($(now_ms) + $1 * 1000))
    shift
    until "$@"; do
        if [ "$(now_ms)" -ge "$end" ]; then return 1; fi
        sleep 0.1
    done
}

finish() {
    local code=$? pid
    trap - EXIT
    for pid in $(jobs -p); do kill "$pid" 2> /dev/null || true; done
    # After a failure jobs and their steps may still run: SLURM goes first, and what a dying step held is tried again.
    "$hosts/slurm-down" > "$dir/down.log" 2>&1 || true
    "$hosts/netns-down" >> "$dir/down.log" 2>&1 || { sleep 2; "$hosts/netns-down" >> "$dir/down.log" 2>&1 || true; }
    wait 2> /dev/null || true
    rm -rf "$dir"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# cluster HOSTS [CPUS]: up and idle. The first host carries slurmctld.
cluster() {
    if ! "$hosts/netns-up" "$1" > "$dir/up.log" 2>&1; then
        skip "no network namespaces here: $(tail -n 1 "$dir/up.log")"
    fi
    "$hosts/slurm-up" -c "${2:-4}" "$1" > "$dir/up.log" 2>&1 || fail "the cluster comes up" "$dir/up.log"
    # shellcheck disable=SC1091
    . "$GX_STATE/mpi.env"
    head=$(host 1)
}

# kill_wait SECONDS: between SIGTERM and SIGKILL; slurm-up says 5, too few for a machine that is busy.
kill_wait() {
    sed -i "s/^KillWait=.*/KillWait=$1/" "$GX_STATE/slurm/etc/slurm.conf"
    on_head scontrol reconfigure
}
host() { echo "$GX_PREFIX$1"; }
on() { "$hosts/netns-rsh" -E "$@"; }
on_head() { on "$head" "$@"; }
daemons() { # HOST NAME: pids
    local pid
    for pid in $(ip netns pids "$1"); do
        if [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = "$2" ]; then echo "$pid"; fi
    done
}

# submit SBATCH-OPTIONS... -- SERVE-OPTIONS...: a job that serves the demo model; sets $job. It listens on
# loopback of the first node, which is the head (the job's nodes are taken in order).
port=50291
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
    rm -rf "$dir/run" "$dir/job.log"
    job=$(on_head sbatch --parsable -o "$dir/job.log" "${options[@]}" "$dir/job.sh")
}

job_state() { on_head squeue -h -j "$job" -o %T 2> /dev/null || true; }
job_gone() { [ -z "$(job_state)" ]; }
job_runs() { [ "$(job_state)" = RUNNING ]; }
status() { on_head "$GANTRY" status --connect "127.0.0.1:$port" 2> /dev/null; }
all_serve() { status | grep -q '^serving '; }
serves() { # waits until every replica of the job does
    within 60 all_serve || fail "the service serves with all its replicas" "$dir/run/mpirun.log" "$dir/run/mpirun-1.log"
}
nodes_idle() { [ "$(on_head sinfo -h -N -t idle -o %N | sort -u | wc -l)" -eq "$1" ]; }

# ask NAME SEED [options]: a stream in the background
clients=()
ask() {
    local name=$1 seed=$2
    shift 2
    on_head "$GANTRY" generate --connect "127.0.0.1:$port" "The whale" --temperature 0.9 --seed "$seed" --max-tokens 900 \
        --ignore-eos --logprobs 2 --json --timeout 60 "$@" > "$dir/$name.$seed" 2> "$dir/$name.$seed.err" &
    clients+=("$!")
}
# What differs from run to run left out: ids and log-probabilities, as printed.
tokens() { grep -o '"tokens":.*' "$1" | grep -oE '"(id|logprob)":[-0-9.e]+'; }
answers_well() { # NAME: the clients end with 0
    local i
    for i in "${!clients[@]}"; do
        wait "${clients[i]}" || fail "$1: stream $((i + 1)) ends well" "$dir/$1.$((i + 1)).err"
    done
    clients=()
}
same() { # NAME SEED...: as in the undisturbed service
    local name=$1 seed
    shift
    for seed in "$@"; do
        tokens "$dir/$name.$seed" > "$dir/have"
        [ "$(grep -c '"id"' "$dir/have")" -ge 900 ] || fail "$name: stream $seed has its 900 tokens"
        cmp -s "$dir/want.$seed.tokens" "$dir/have" || fail "$name: stream $seed has the tokens that it would have had"
    done
}
streams_run() { # none of the clients has ended
    local pid
    for pid in "${clients[@]}"; do kill -0 "$pid" 2> /dev/null || return 1; done
}
begun() { # NAME SEED...
    local name=$1 seed
    shift
    for seed in "$@"; do [ -s "$dir/$name.$seed" ] || return 1; done
}

# wanted SEED...: what one rank without any neighbour says, outside of SLURM.
wanted() {
    local seed pid
    on_head env -u SLURM_JOB_ID "$GANTRY" serve "$model" --tp 1 --pp 1 --threads 1 --listen "127.0.0.1:$port" --run-dir "$dir/run" \
        > "$dir/job.log" 2>&1 &
    pid=$!
    serves
    for seed in "$@"; do ask want "$seed"; done
    answers_well want
    for seed in "$@"; do
        tokens "$dir/want.$seed" > "$dir/want.$seed.tokens"
        [ "$(grep -c '"id"' "$dir/want.$seed.tokens")" -ge 900 ] || fail "900 tokens come"
    done
    kill -INT "$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' "$dir/run/endpoint.json" | head -n 1)"
    wait "$pid" || fail "the undisturbed service ends in order"
}

# The last line of every script.
all_well() {
    echo "$claims claims hold, ${SECONDS} s"
}
