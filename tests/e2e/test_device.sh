#!/usr/bin/env bash
# tests/e2e/test_device.sh - --device as a user types it on a machine without a CUDA device: what is
# planned all the same, what is refused, and with which words. Skipped (77) where a device is.
set -euo pipefail

: "${GANTRY:?path of the program}"
: "${GANTRY_SOURCE_DIR:?the tree}"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0
model=$GANTRY_SOURCE_DIR/model/demo

# expect CODE WORD COMMAND...: the exit code, and a word of its output (both streams).
expect() {
    local want=$1 word=$2 code=0
    shift 2
    "$@" > "$dir/out" 2>&1 || code=$?
    if [ "$code" -ne "$want" ] || ! grep -qF -- "$word" "$dir/out"; then
        echo "FAILED: $* -> exit $code (wanted $want, with \"$word\"):"
        sed 's/^/    /' "$dir/out" | head -n 20
        failed=1
    fi
}

if "$GANTRY" plan "$model" | grep -q '^Device: cuda'; then
    echo "skipped: this machine has a CUDA device"
    exit 77
fi
echo "h1 slots=2" > "$dir/hosts"

# Plans for devices elsewhere.
expect 0 "profile cuda-sm90-bf16-v1" "$GANTRY" plan "$model" --device cuda --memory 141GB --tp 2
expect 0 "profile cuda-sm80-f32-v1" "$GANTRY" plan "$model" --device cuda-sm80 --format f32 --memory 40GiB
expect 0 "cuda-sm90-bf16-free-v1" "$GANTRY" plan "$model" --device cuda --free-order --memory 8GiB
expect 3 "--memory" "$GANTRY" plan "$model" --device cuda
expect 4 "1.50 GiB of reserve" "$GANTRY" plan "$model" --device cuda --memory 1GiB --tp 1 --pp 1

# Which it is, in one line.
expect 0 "Device: cpu (" "$GANTRY" plan "$model"
expect 0 "Device: cpu" "$GANTRY" serve "$model" --device cpu --dry-run
expect 0 "--device cpu" "$GANTRY" serve "$model" --dry-run
expect 0 "--device cuda-sm90 --data-plane nccl" "$GANTRY" serve "$model" --dry-run --device cuda \
    --hostfile "$dir/hosts" --memory 80GiB --tp 2
expect 0 "--device cuda:1 --coordinator" "$GANTRY" serve "$model" --dry-run --device cuda:1 \
    --data-plane mpi --hostfile "$dir/hosts" --memory 80GiB --tp 2

# What cannot be.
expect 3 "--device cuda:" "$GANTRY" serve "$model" --device cuda
expect 2 "--memory" "$GANTRY" serve "$model" --dry-run --device cuda --hostfile "$dir/hosts" --tp 2
expect 2 "--device gpu" "$GANTRY" serve "$model" --device gpu
expect 2 "--data-plane nccl" "$GANTRY" plan "$model" --device cpu --data-plane nccl
expect 2 "--free-order" "$GANTRY" plan "$model" --device cuda --data-plane mpi --free-order

exit "$failed"
