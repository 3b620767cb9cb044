#!/usr/bin/env bash
# tests/gpu/llama_cpp.sh - llama.cpp's own bench, where somebody has built it on this machine: GANTRY_LLAMA_CPP is its
# checkout with build/bin/llama-bench, GANTRY_LLAMA_GGUF a model file of Llama-3.1-8B's shape in BF16. A prompt of 8,192,
# one decoded token at batch 1; batch 64 after 1,024 positions by llama-batched-bench. Exit 77 with what is missing:
# building it with CUDA takes longer than the whole of run.sh.
set -uo pipefail
skip() {
    echo "llama.cpp: skipped: $*"
    exit 77
}
dir=${GANTRY_LLAMA_CPP:-}
model=${GANTRY_LLAMA_GGUF:-}
[ -n "$dir" ] || skip "GANTRY_LLAMA_CPP is not set"
bench=$dir/build/bin/llama-bench
batched=$dir/build/bin/llama-batched-bench
[ -x "$bench" ] || skip "$bench is not there"
[ -r "$model" ] || skip "GANTRY_LLAMA_GGUF names no readable file"
"$bench" -m "$model" -ngl 99 -fa 1 -p 8192 -n 128 -r 3 -o md || exit 1
if [ -x "$batched" ]; then
    "$batched" -m "$model" -ngl 99 -fa -c $((64 * 1152)) -b 2048 -npp 1024 -ntg 64 -npl 64 | grep '^|'
fi
