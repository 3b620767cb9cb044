#!/usr/bin/env bash
# tests/e2e/test_hosts.sh - one service over several hosts: network namespaces, TCP between them, mpirun's remote launch.
#
# Three hosts, a stage on each; the text must be the one that a single rank gives, the client is on a host of its own, the
# token is demanded, and the ranks' traffic really crosses the links. Needs root and the scripts in GANTRY_SHARED_DIR/hosts.
set -euo pipefail
hosts=$GANTRY_SHARED_DIR/hosts
[ -x "$hosts/netns-up" ] || { echo "skipped: no $hosts"; exit 77; }
[ "$(id -u)" = 0 ] || { echo "skipped: network namespaces need root"; exit 77; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/gantry-hosts-XXXXXX")
export GX_PREFIX=gh GX_NET=10.78.0 GX_STATE=$dir/gx
pid=

cleanup() {
    if [ -n "$pid" ]; then
        kill -INT "$pid" 2> /dev/null || true
        wait "$pid" 2> /dev/null || true
    fi
    "$hosts/netns-down" > /dev/null 2>&1 || true
    rm -rf "$dir"
}
trap cleanup EXIT

if ! "$hosts/netns-up" 3 > "$dir/up.log" 2>&1; then
    echo "skipped: no network namespaces here: $(tail -1 "$dir/up.log")"
    exit 77
fi
# shellcheck disable=SC1091
. "$GX_STATE/mpi.env"
model=$GANTRY_SOURCE_DIR/model/demo
ask=(--temperature 0.8 --seed 5 --max-tokens 60 "The whale")

start() { # HOST options...
    local host=$1
    shift
    rm -rf "$dir/run"
    "$hosts/netns-rsh" -E "$host" "$GANTRY" serve "$model" --run-dir "$dir/run" "$@" > "$dir/serve.log" 2>&1 &
    pid=$!
    for _ in $(seq 1200); do
        if grep -q '^ready:' "$dir/serve.log"; then return 0; fi
        kill -0 "$pid" 2> /dev/null || break
        sleep 0.05
    done
    cat "$dir/serve.log"
    exit 1
}

stop() {
    # The signal goes to gantry itself, not to the helper that entered the namespace.
    kill -INT "$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' "$dir/run/endpoint.json" | head -1)"
    wait "$pid" || { cat "$dir/serve.log"; exit 1; }
    pid=
}

sent() { # bytes that left a host
    "$hosts/netns-rsh" -E "$1" cat /proc/net/dev | awk '/:/ && !/lo:/ { sub(/.*:/, ""); n += $9 } END { print n }'
}

start gh1 --listen 127.0.0.1:50271 --tp 1 --pp 1
wanted=$("$hosts/netns-rsh" -E gh1 "$GANTRY" generate --connect 127.0.0.1:50271 "${ask[@]}")
stop
[ -n "$wanted" ] || { echo "no text from one rank"; exit 1; }

printf 'gh1 slots=1\ngh2 slots=1\ngh3 slots=1\n' > "$dir/hostfile"
before=$(sent gh2)
start gh1 --listen 0.0.0.0:50271 --hostfile "$dir/hostfile" --tp 1 --pp 3
got=$("$hosts/netns-rsh" -E gh3 "$GANTRY" generate --connect gh1:50271 --token-file "$dir/run/token" "${ask[@]}")
[ "$got" = "$wanted" ] || { printf 'over three hosts: %s\non one: %s\n' "$got" "$wanted"; exit 1; }
echo "same text over three hosts"

moved=$(($(sent gh2) - before))
# 60 steps of one row of 256 floats leave the middle stage, at least.
[ "$moved" -gt 61440 ] || { echo "only $moved bytes left gh2"; exit 1; }
echo "$moved bytes left the middle stage's host"

"$hosts/netns-rsh" -E gh3 "$GANTRY" status --connect gh1:50271 --token-file "$dir/run/token" > "$dir/status"
for host in gh1 gh2 gh3; do
    grep -q " $host " "$dir/status" || { echo "no rank on $host:"; cat "$dir/status"; exit 1; }
done
code=0
"$hosts/netns-rsh" -E gh3 "$GANTRY" generate --connect gh1:50271 "${ask[@]}" > /dev/null 2> "$dir/refused" || code=$?
[ "$code" = 7 ] || { echo "without a token: exit $code, wanted 7: $(cat "$dir/refused")"; exit 1; }
echo "without the token: refused"
stop
trap - EXIT
"$hosts/netns-down" > /dev/null
bash "$GANTRY_SOURCE_DIR/tests/common/no_leftovers.sh" "$dir/run"
rm -rf "$dir"
