#!/usr/bin/env bash
# tests/e2e/demo.sh - what ./run demo shows: the demo model on four ranks (two stages of two slices), a streamed text.
#
# GANTRY is the program. Everything it starts ends with it; nothing is left in the file system.
set -euo pipefail
cd "$(dirname "$0")/../.."
gantry=${GANTRY:-build/gantry}
prompt=${1:-"It was a bright morning, and the captain said to his men that"}
dir=$(mktemp -d "${TMPDIR:-/tmp}/gantry-demo-XXXXXX")
pid=

cleanup() {
    if [ -n "$pid" ]; then
        kill -INT "$pid" 2> /dev/null || true
        wait "$pid" 2> /dev/null || true
    fi
    rm -rf "$dir"
}
trap cleanup EXIT

echo "\$ gantry serve model/demo --tp 2 --pp 2"
"$gantry" serve model/demo --tp 2 --pp 2 --listen 127.0.0.1:0 --run-dir "$dir/run" &
pid=$!
for _ in $(seq 600); do
    if [ -f "$dir/run/endpoint.json" ]; then break; fi
    kill -0 "$pid" 2> /dev/null || { wait "$pid" || exit $?; exit 1; }
    sleep 0.05
done
port=$(sed -n 's/.*"port": *\([0-9]*\).*/\1/p' "$dir/run/endpoint.json" | head -1)
target=127.0.0.1:$port
"$gantry" status --connect "$target" --wait 120 > /dev/null

echo
echo "\$ gantry generate --connect $target --temperature 0.7 --seed 1 --max-tokens 160 \"$prompt\""
printf '%s' "$prompt"
"$gantry" generate --connect "$target" --temperature 0.7 --seed 1 --max-tokens 160 --stats "$prompt"
echo
echo "\$ gantry status --connect $target"
sleep 0.5 # heartbeats come four times a second
"$gantry" status --connect "$target"
echo
kill -INT "$pid"
wait "$pid"
pid=
