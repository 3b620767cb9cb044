#!/usr/bin/env bash
# tests/e2e/test_hosts_spare.sh - a host loses its power (network namespaces) and its replica comes back on a spare one.
#
# Two replicas of two stages over five hosts in two racks; the fifth is spare. The host of a stage is gone in mid-stream, processes
# and link at once: the replica must come back with that stage on the spare host, and the streams must have the tokens that they would
# have had. Then the spare one goes as well: the replica must come back on the one host that it has left, which has a second slot.
# Needs root and the scripts in GANTRY_SHARED_DIR/hosts.
set -euo pipefail
hosts=$GANTRY_SHARED_DIR/hosts
[ -x "$hosts/netns-up" ] || { echo "skipped: no $hosts"; exit 77; }
[ "$(id -u)" = 0 ] || { echo "skipped: network namespaces need root"; exit 77; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/gantry-hosts-XXXXXX")
export GX_PREFIX=gq GX_NET=10.87.0 GX_STATE=$dir/gx
pid=

cleanup() {
    if [ -n "$pid" ]; then
        kill -KILL "$pid" 2> /dev/null || true
        wait "$pid" 2> /dev/null || true
    fi
    "$hosts/netns-down" -k > /dev/null 2>&1 || true
    rm -rf "$dir"
}
trap cleanup EXIT

if ! "$hosts/netns-up" 5 > "$dir/up.log" 2>&1; then
    echo "skipped: no network namespaces here: $(tail -1 "$dir/up.log")"
    exit 77
fi
# shellcheck disable=SC1091
. "$GX_STATE/mpi.env"
model=$GANTRY_SOURCE_DIR/model/demo
fail() {
    echo "FAIL  $1"
    tail -n 30 "$dir/serve.log"
    exit 1
}
on() { "$hosts/netns-rsh" -E "$@"; }

serve() { # options...
    rm -rf "$dir/run"
    on gq1 "$GANTRY" serve "$model" --run-dir "$dir/run" --listen 127.0.0.1:50291 --threads 1 "$@" > "$dir/serve.log" 2>&1 &
    pid=$!
    for _ in $(seq 1200); do
        if on gq1 "$GANTRY" status --connect 127.0.0.1:50291 2> /dev/null | grep -q '^serving '; then return 0; fi
        kill -0 "$pid" 2> /dev/null || break
        sleep 0.05
    done
    fail "the service serves with all its replicas"
}

stop() {
    kill -INT "$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' "$dir/run/endpoint.json" | head -1)"
    wait "$pid" || fail "the service ends in order"
    pid=
}

ask() { # SEED: in the background
    on gq1 "$GANTRY" generate --connect 127.0.0.1:50291 "The whale" --temperature 0.9 --seed "$1" --max-tokens 900 --ignore-eos \
        --logprobs 2 --json --timeout 120 > "$dir/got.$1" 2> "$dir/err.$1" &
    clients+=("$!")
}

# Ids and log-probabilities, as printed, without what differs from run to run.
tokens() { grep -o '"tokens":.*' "$1" | grep -oE '"(id|logprob)":[-0-9.e]+' > "$2"; }

clients=()
serve --tp 1 --pp 1
for seed in 1 2 3 4; do ask "$seed"; done
for client in "${clients[@]}"; do wait "$client" || fail "an undisturbed stream ends"; done
for seed in 1 2 3 4; do tokens "$dir/got.$seed" "$dir/want.$seed"; done
stop

printf 'gq1 slots=1 rack=r1\ngq2 slots=1 rack=r1\ngq3 slots=2 rack=r2\ngq4 slots=1 rack=r2\ngq5 slots=1 rack=r2\n' > "$dir/hostfile"
on gq1 "$GANTRY" serve "$model" --tp 1 --pp 2 --replicas 2 --hostfile "$dir/hostfile" --dry-run > "$dir/plan" || fail "--dry-run"
grep -qx 'replica 0: gq1 (rank 0) in r1, gq2 (rank 1) in r1' "$dir/plan" || fail "the first replica is in the first rack: $(cat "$dir/plan")"
grep -qx 'replica 1: gq3 (ranks 0-1) in r2' "$dir/plan" || fail "the second one is in the other rack: $(cat "$dir/plan")"
grep -qx 'spare: gq4 (1 slot), gq5 (1 slot)' "$dir/plan" || fail "two hosts are spare: $(cat "$dir/plan")"
echo "ok    replicas are dealt over racks"

# lose HOST HOSTS CLAIM: streams run, HOST goes, the replica comes back on HOSTS.
lose() {
    clients=()
    for seed in 1 2 3 4; do
        rm -f "$dir/got.$seed"
        ask "$seed"
    done
    for _ in $(seq 200); do
        if [ -s "$dir/got.4" ] && [ -s "$dir/got.1" ]; then break; fi
        sleep 0.05
    done
    "$hosts/netns-fail" "$1" crash
    for i in "${!clients[@]}"; do wait "${clients[i]}" || fail "$3: stream $((i + 1)) ends well: $(cat "$dir/err.$((i + 1))")"; done
    for seed in 1 2 3 4; do
        tokens "$dir/got.$seed" "$dir/have.$seed"
        cmp "$dir/want.$seed" "$dir/have.$seed" || fail "$3: stream $seed has the tokens that it would have had"
    done
    for _ in $(seq 1200); do
        on gq1 "$GANTRY" status --connect 127.0.0.1:50291 > "$dir/status" 2>&1 || true
        if grep -q '^serving ' "$dir/status" && grep -q "hosts: $2" "$dir/status"; then
            echo "ok    $3: $(sed -n "s/^  hosts: \($2\)/\1/p" "$dir/status")"
            return
        fi
        sleep 0.05
    done
    fail "$3: $(cat "$dir/status")"
}

printf 'gq1 slots=1\ngq2 slots=1\ngq3 slots=1\ngq4 slots=1\ngq5 slots=2\n' > "$dir/hostfile"
serve --replicas 2 --tp 1 --pp 2 --hostfile "$dir/hostfile" --hang-timeout 3 --restarts 3
lose gq4 'gq3 (rank 0), gq5 (rank 1); did not answer: gq4' "a stage goes to the spare host"
lose gq3 'gq5 (ranks 0-1); did not answer: gq3, gq4' "no host is spare: both go to the one that is left"
stop
echo "ok    it ends in order"
