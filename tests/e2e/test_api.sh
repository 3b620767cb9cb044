#!/usr/bin/env bash
# tests/e2e/test_api.sh - the public API in the hands of a foreign client (client.py, Google's gRPC for
# Python), against a service of two ranks; then every KV block is free and the service ends at once.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
python=${GANTRY_PYTHON:-python3}

if ! "$python" -c "import grpc, google.protobuf" 2> /dev/null || ! command -v protoc > /dev/null; then
    echo "skipped: no gRPC for Python, or no protoc"
    exit 77
fi

api() { # CLAIM ARGS...
    local claim=$1
    shift
    timeout -k 5 200 "$python" "$GANTRY_SOURCE_DIR/tests/e2e/client.py" --run-dir "$run" "$@" > "$dir/client" 2>&1 ||
        fail "$claim" "$dir/client" "$log" "$run/mpirun.log"
    ok "$claim: $(tail -n 1 "$dir/client")"
}

serve open "$demo" --tp 2
ready
api "client.py"
"$GANTRY" generate --connect "$at" "Once" --max-tokens 8 --seed 3 --ignore-eos --presence-penalty 0.5 \
    --repetition-penalty 1.1 --logit-bias 5:-1 > "$dir/one"
"$GANTRY" generate --connect "$at" "Once" --max-tokens 8 --seed 3 --ignore-eos --presence-penalty 0.5 \
    --repetition-penalty 1.1 --logit-bias 5:-1 --n 3 > "$dir/three"
[ "$(grep -c -- '^--- choice [012] of 3 ---$' "$dir/three")" -eq 3 ] || fail "three answers are printed under their numbers" "$dir/three"
sed -n '2,/^--- choice 1/p' "$dir/three" | sed '$d' > "$dir/first"
[ "$(cat "$dir/first")" = "$(cat "$dir/one")" ] || fail "the first is that of one answer" "$dir/one" "$dir/three"
ok "three answers are printed one after the other, the first of them that of --n 1"
within 5 blocks_free || fail "every KV block is free: $("$GANTRY" status --connect "$at" --json)"
ok "every KV block is free"
kill -INT "$serve"
serve_ends 10 0 "the service ends"
! grep -E ' (error|warn) ' "$log" || fail "no warning or error was logged" "$log"
ok "no warning or error was logged"

echo "a secret of the test" > "$dir/token"
chmod 600 "$dir/token"
serve guarded "$demo" --tp 2 --pp 2 --token-file "$dir/token"
ready
api "client.py with a token, four ranks" --token-file "$dir/token" --streams 4
kill -INT "$serve"
serve_ends 10 0 "the service with a token ends"

# A KV cache for less than two of four streams: they wait, or are computed again, and nobody can tell.
serve crowded "$demo" --tp 2 --pp 2 --kv-tokens 1024
ready
tale() { echo "Tale $1: once upon a time"; }
for i in 1 2 3 4; do
    "$GANTRY" generate --connect "$at" "$(tale "$i")" --ignore-eos --seed "$i" --max-tokens 600 > "$dir/alone$i"
done
pids=()
for i in 1 2 3 4; do
    generate "crowd$i" "$(tale "$i")" --ignore-eos --seed "$i" --max-tokens 600
    pids+=("$client")
done
for i in 1 2 3 4; do
    ends "${pids[i - 1]}" 60 || fail "stream $i of a crowd ends within 60 s" "$log"
    [ "$code" -eq 0 ] || fail "stream $i of a crowd ends well" "$dir/crowd$i.err" "$log"
    cmp -s "$dir/alone$i" "$dir/crowd$i.text" || fail "stream $i of a crowd is what it was alone"
done
ok "four streams in a KV cache for less than two are what they were alone"
within 5 blocks_free || fail "every KV block is free" "$log"
kill -INT "$serve"
serve_ends 10 0 "the crowded service ends"

all_well
