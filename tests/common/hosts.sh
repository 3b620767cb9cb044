# shellcheck shell=bash
# tests/common/hosts.sh - hosts that are network namespaces (the scripts of GANTRY_SHARED_DIR/hosts), a service on the first of them,
# and streams that are compared with an undisturbed service's. Sourced by tests/e2e/test_hosts*.sh and tests/slurm/lib.sh, not run.
#
# Needs root; without it a script says so and exits with 77. Every script has hosts of its own: a prefix and a network that nobody else
# on this machine has, whichever tree or user's suite runs beside it (take_network). At the end, however it comes, nothing is left:
# processes, namespaces, files.
# shellcheck source=tests/common/claims.sh
. "$(dirname "${BASH_SOURCE[0]}")/claims.sh"

: "${GANTRY:?path of the program}"
: "${GANTRY_SOURCE_DIR:=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}"
hosts=$GANTRY_SHARED_DIR/hosts
model=$GANTRY_SOURCE_DIR/model/demo

PATH=$PATH:/usr/sbin:/sbin
[ -x "$hosts/netns-up" ] || skip "no $hosts"
[ "$(id -u)" = 0 ] || skip "network namespaces need root"

dir=$(mktemp -d /tmp/gantry-hosts-XXXXXX) # short: a socket's path has 108 bytes
export GX_STATE=$dir/gx
export XDG_CACHE_HOME=$dir/cache # digests of weights
mkdir "$dir/tmp" "$dir/cache"
export TMPDIR=$dir/tmp
unset GANTRY_RUN_DIR SLURM_JOB_ID SLURM_JOB_NUM_NODES
# shellcheck disable=SC2034 # for claims.sh
fail_shows=("$dir/serve.log" "$dir/run/mpirun.log" "$dir/run/mpirun-1.log")
port=50271 # of the service, in the first host's own network
n_tokens=900 # of every stream
access=() # what a client needs, where the service listens beyond loopback

# The namespace of the switch is the claim to a number: only one process can make it, and it goes with the hosts (netns-down). One that
# a killed script has left keeps its number.
take_network() {
    local i n why
    for ((i = 0; i < 256; i++)); do
        n=$((($$ + i) % 256))
        export GX_PREFIX=gt${n}n GX_NET=10.79.$n # interfaces have 15 characters
        # shellcheck disable=SC2034
        second_net=10.80.$n # for a script that gives its hosts another cable
        if why=$(ip netns add "${GX_PREFIX}sw" 2>&1); then
            ip netns exec "${GX_PREFIX}sw" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 2> /dev/null || true
            return
        fi
        [ -e "/run/netns/${GX_PREFIX}sw" ] || skip "no network namespaces here: $why"
    done
    fail "one of 256 networks is free (ip netns list shows whose they are)"
}

# hosts_up N: $head is the first.
hosts_up() {
    if ! "$hosts/netns-up" "$1" > "$dir/up.log" 2>&1; then
        skip "no network namespaces here: $(tail -n 1 "$dir/up.log")"
    fi
    # shellcheck disable=SC1091
    . "$GX_STATE/mpi.env"
    head=$(host 1)
}
host() { echo "$GX_PREFIX$1"; }
on() { "$hosts/netns-rsh" -E "$@"; }
on_head() { on "$head" "$@"; }
# slots I=N...: a hostfile
slots() {
    local pair
    for pair in "$@"; do echo "$(host "${pair%=*}") slots=${pair#*=}"; done > "$dir/hostfile"
}

# ---- the end ----

# After a failure jobs and their steps may still run: SLURM goes first, where there is one (netns-down does so), and what a dying
# process held is tried again.
hosts_down() {
    "$hosts/netns-down" >> "$dir/down.log" 2>&1 || { sleep 2; "$hosts/netns-down" >> "$dir/down.log" 2>&1; } || true
}

finish() {
    local code=$? pid
    trap - EXIT
    trap '' INT TERM # a second signal must not leave half of it
    for pid in $(jobs -rp); do kill "$pid" 2> /dev/null || true; done
    hosts_down
    wait 2> /dev/null || true
    rm -rf "$dir"
    exit "$code"
}
trap finish EXIT

# The last line of every script.
all_well() {
    hosts_down
    bash "$GANTRY_SOURCE_DIR/tests/common/no_leftovers.sh" "$GX_STATE" || fail "no process is left behind"
    claims_hold
}

# ---- a service on the first host ----

# serve OPTIONS...: on loopback of the first host unless they say another --listen; returns when every replica serves.
serve() {
    rm -rf "$dir/run"
    on_head env -u SLURM_JOB_ID "$GANTRY" serve "$model" --run-dir "$dir/run" --listen "127.0.0.1:$port" --threads 1 "$@" > "$dir/serve.log" 2>&1 &
    serve=$!
    serves
}
status() { on_head "$GANTRY" status --connect "127.0.0.1:$port" "${access[@]+"${access[@]}"}" 2> /dev/null; }
all_serve() { status | grep -q '^serving '; }
all_serve_or_gone() { all_serve || { [ -n "${serve:-}" ] && gone "$serve"; }; }
serves() {
    if ! within 60 all_serve_or_gone || ! all_serve; then
        fail "the service serves with all its replicas"
    fi
}
stop() {
    # The signal goes to gantry itself, not to the helper that entered the namespace.
    kill -INT "$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' "$dir/run/endpoint.json" | head -n 1)"
    wait "$serve" || fail "the service ends in order"
    serve=
}

# ---- streams ----

clients=()
# ask NAME SEED [options]: a stream in the background
ask() {
    local name=$1 seed=$2
    shift 2
    on_head "$GANTRY" generate --connect "127.0.0.1:$port" "The whale" --temperature 0.9 --seed "$seed" --max-tokens "$n_tokens" \
        --ignore-eos --logprobs 2 --json --timeout $((120 * slow)) "${access[@]+"${access[@]}"}" "$@" > "$dir/$name.$seed" 2> "$dir/$name.$seed.err" &
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
        tokens "$dir/$name.$seed" > "$dir/have" || true
        [ "$(grep -c '"id"' "$dir/have")" -ge "$n_tokens" ] || fail "$name: stream $seed has its $n_tokens tokens"
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

# wanted SEED...: what one rank without any neighbour says.
wanted() {
    local seed
    serve --tp 1 --pp 1
    for seed in "$@"; do ask want "$seed"; done
    answers_well want
    for seed in "$@"; do
        tokens "$dir/want.$seed" > "$dir/want.$seed.tokens"
        [ "$(grep -c '"id"' "$dir/want.$seed.tokens")" -ge "$n_tokens" ] || fail "$n_tokens tokens come"
    done
    stop
}

# disturbed NAME SEED...: their streams run, every one of them
disturbed() {
    local name=$1 seed
    for seed in "${@:2}"; do
        rm -f "$dir/$name.$seed"
        ask "$name" "$seed"
    done
    within 20 begun "$@" || fail "$name: streams begin" "$dir/$name.$2.err"
    streams_run || fail "$name: streams run when they are disturbed"
}

take_network
