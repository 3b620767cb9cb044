#!/usr/bin/env bash
# tests/e2e/test_emulated.sh - the whole program with the CUDA table, on a machine without a device:
# the kernels' own code as a host compiler takes it (tests/simt), beside a copy of the program. The
# ranks share the one emulated device and exchange by way of the host (--data-plane mpi).
#
# One undisturbed service answers three requests; every other layout must give the same tokens and
# log-probabilities, digit for digit. Steps are recorded where tp is 1 and queued op by op where it
# is not, so that this is compared as well. The products of tensor cores are emulated: the bits are
# not those of a device, the code around them is. Skipped (77) where the emulation was not built.
set -euo pipefail

: "${GANTRY:?path of the program}"
: "${GANTRY_SOURCE_DIR:?the tree}"
plugin=$(dirname "$GANTRY")/simt/gantry_cuda.so
model=$GANTRY_SOURCE_DIR/tests/models/stories260k
[ -d "$model" ] || model=${GANTRY_SHARED_DIR:-$GANTRY_SOURCE_DIR/../shared}/models/stories260k
if [ ! -f "$plugin" ] || [ ! -d "$model" ]; then
    echo "skipped: no $plugin or no $model"
    exit 77
fi
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
dir=$(mktemp -d)
server=
finish() {
    if [ -n "$server" ]; then
        kill -TERM "$server" 2> /dev/null || true
        wait "$server" 2> /dev/null || true
    fi
    rm -rf "$dir"
}
trap finish EXIT
cp "$GANTRY" "$dir/gantry"
cp "$plugin" "$dir/gantry_cuda.so"
gantry=$dir/gantry

fail() {
    echo "FAILED: $1"
    tail -n 5 "$dir"/*.log "$dir"/run-*/mpirun.log 2> /dev/null || true
    exit 1
}

# ask PORT OUT OPTIONS...: one answer as JSON, in a process of its own.
ask() {
    local port=$1 out=$2
    shift 2
    "$gantry" generate --connect "127.0.0.1:$port" --json --timeout 60 --logprobs 3 "$@" > "$out" 2> "$out.err"
}

# serve NAME OPTIONS...: a service from start to end; its answers are in NAME.tokens.
serve() {
    local name=$1 port
    shift
    "$gantry" serve "$model" --memory 3GiB --listen 127.0.0.1:0 --run-dir "$dir/run-$name" "$@" > "$dir/$name.log" 2>&1 &
    server=$!
    for _ in $(seq 200); do
        if [ -f "$dir/run-$name/endpoint.json" ]; then break; fi
        kill -0 "$server" 2> /dev/null || fail "$name did not start"
        sleep 0.1
    done
    port=$(sed -n 's/.*"port": *\([0-9]*\).*/\1/p' "$dir/run-$name/endpoint.json" | head -n 1)
    "$gantry" status --connect "127.0.0.1:$port" --wait 60 > /dev/null || fail "$name is not serving"
    "$gantry" status --connect "127.0.0.1:$port" > "$dir/$name.status" || fail "$name: no status"
    grep -q "profile $want_profile" "$dir/$name.status" || fail "$name: another profile than $want_profile"
    ask "$port" "$dir/$name.a" "Once upon a time there was" --temperature 0.9 --seed 11 --max-tokens 24 --ignore-eos &
    local a=$!
    ask "$port" "$dir/$name.b" "Lily went to the" --temperature 1.2 --top-k 40 --top-p 0.9 --seed 12 \
        --max-tokens 24 --ignore-eos &
    local b=$!
    ask "$port" "$dir/$name.c" "" --temperature 0 --max-tokens 24 || fail "$name: greedy"
    wait "$a" || fail "$name: sampled"
    wait "$b" || fail "$name: filtered"
    kill -TERM "$server"
    wait "$server" || fail "$name ended with $?"
    server=
    # How tokens are spread over messages, and times, may differ; the tokens may not.
    cat "$dir/$name".[abc] | grep -o '{"id": *[0-9]*, *"logprob": *[^,}]*' > "$dir/$name.tokens" || true
    [ "$(wc -l < "$dir/$name.tokens")" -ge 200 ] || fail "$name: $(wc -l < "$dir/$name.tokens") log-probabilities"
}

want_profile=cuda-sm90-bf16-v1
serve whole --tp 1 --pp 1
for layout in "2 1 64" "2 2 3" "1 3 7"; do
    read -r tp pp chunk <<< "$layout"
    name=tp$tp-pp$pp
    serve "$name" --tp "$tp" --pp "$pp" --chunk "$chunk" --device cuda:0 --data-plane mpi
    cmp -s "$dir/whole.tokens" "$dir/$name.tokens" || fail "tp $tp, pp $pp, chunk $chunk: other tokens or log-probabilities"
done

# The other profile is another one indeed.
want_profile=cpu-bf16-v1
serve cpu --tp 1 --pp 1 --device cpu
if cmp -s "$dir/whole.tokens" "$dir/cpu.tokens"; then fail "CPU and CUDA profiles have the same bits: nothing was compared"; fi
# A device's rates have a layer fed op by op and one of a recorded step; a plan lacks nothing then but NCCL.
timeout 300 "$gantry" measure --device cuda --format bf16 -o "$dir/rates" > "$dir/measure.log" 2>&1 || fail "measure on the device"
grep -Eq '^host=[^ ]* device=cuda-sm90 .* layer_us=[0-9.e+]+ recorded_layer_us=[0-9.e+]+$' "$dir/rates" || fail "rates of recorded steps"
"$gantry" plan "$model" --device cuda --tp 2 --pp 1 --rates "$dir/rates" > "$dir/plan.log" || fail "a plan with a device's rates"
grep -q "left out: NCCL's links" "$dir/plan.log" || fail "the plan says that NCCL's links are left out"
if grep -q "launches one by one" "$dir/plan.log"; then fail "recorded steps are not left out"; fi

echo "equal over 4 layouts: $(wc -l < "$dir/whole.tokens") log-probabilities"
