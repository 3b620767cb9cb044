#!/usr/bin/env bash
# tests/e2e/test_hosts_failover.sh - two replicas over four hosts (network namespaces): a host loses its power in mid-stream.
#
# Each replica gets two hosts of the hostfile, a stage on each. Streams run on both; then the last host is gone, processes and
# link at once. The log must name its rank and host within --hang-timeout and some, every stream must end with the tokens and
# log-probabilities of an undisturbed service, and the service must go on, degraded, with the replica that is left. Needs root and the
# scripts in GANTRY_SHARED_DIR/hosts.
set -euo pipefail
hosts=$GANTRY_SHARED_DIR/hosts
[ -x "$hosts/netns-up" ] || { echo "skipped: no $hosts"; exit 77; }
[ "$(id -u)" = 0 ] || { echo "skipped: network namespaces need root"; exit 77; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/gantry-hosts-XXXXXX")
export GX_PREFIX=gf GX_NET=10.79.0 GX_STATE=$dir/gx
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

if ! "$hosts/netns-up" 4 > "$dir/up.log" 2>&1; then
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
    on gf1 "$GANTRY" serve "$model" --run-dir "$dir/run" --listen 127.0.0.1:50281 --threads 1 "$@" > "$dir/serve.log" 2>&1 &
    pid=$!
    for _ in $(seq 1200); do
        if on gf1 "$GANTRY" status --connect 127.0.0.1:50281 2> /dev/null | grep -q '^serving '; then return 0; fi
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
    on gf1 "$GANTRY" generate --connect 127.0.0.1:50281 "The whale" --temperature 0.9 --seed "$1" --max-tokens 900 --ignore-eos \
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
[ "$(grep -c '"id"' "$dir/want.1")" -ge 900 ] || fail "900 tokens come"
stop

clients=()
printf 'gf1 slots=1\ngf2 slots=1\ngf3 slots=1\ngf4 slots=1\n' > "$dir/hostfile"
serve --replicas 2 --tp 1 --pp 2 --hostfile "$dir/hostfile" --hang-timeout 3 --restarts 1
for seed in 1 2 3 4; do ask "$seed"; done
for _ in $(seq 200); do
    if [ -s "$dir/got.4" ] && [ -s "$dir/got.1" ]; then break; fi
    sleep 0.05
done
"$hosts/netns-fail" gf4 crash
began=$(date +%s%N)
for _ in $(seq 200); do
    if grep -q 'replica 1.1 is lost: rank . (host gf[34]' "$dir/serve.log"; then break; fi
    sleep 0.05
done
grep -q 'replica 1.1 is lost: rank . (host gf[34]' "$dir/serve.log" || fail "the lost replica's rank and host are named"
echo "ok    the loss of a host is named after $((($(date +%s%N) - began) / 1000000)) ms: $(sed -n 's/.*replica 1.1 is lost: //p' "$dir/serve.log")"
for i in "${!clients[@]}"; do wait "${clients[i]}" || fail "stream $((i + 1)) ends well: $(cat "$dir/err.$((i + 1))")"; done
for seed in 1 2 3 4; do
    tokens "$dir/got.$seed" "$dir/have.$seed"
    cmp "$dir/want.$seed" "$dir/have.$seed" || fail "stream $seed has the tokens and log-probabilities that it would have had"
done
echo "ok    4 streams have the tokens and log-probabilities that they would have had"
for _ in $(seq 300); do # known when its job has been tried again
    on gf1 "$GANTRY" status --connect 127.0.0.1:50281 > "$dir/status"
    if grep -q 'did not answer: ' "$dir/status"; then break; fi
    sleep 0.1
done
grep -q '^degraded ' "$dir/status" || fail "status says degraded: $(cat "$dir/status")"
grep -q 'lost .*, the last: ' "$dir/status" || fail "and why"
grep -q 'did not answer: .*gf4' "$dir/status" || fail "and which host did not answer: $(cat "$dir/status")"
echo "ok    the service goes on, degraded, and says why"
stop
echo "ok    it ends in order"
