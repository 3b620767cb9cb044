#!/usr/bin/env bash
# tests/bench/run.sh [NAME...] - measure this machine and Gantry on it, in one run; figures are only compared within it.
#
#   kernels   memory bandwidth and VDPBF16PS peak; products and attention of TinyLlama's shapes against them
#   coll      microseconds of a sum over two ranks, and of send/recv
#   step      a decode step of the demo model over MPI: what is left outside kernels, for tp 2 and for pp 2
#   model     random weights of TinyLlama-1.1B's shape: decode at batch 1 and prefill of 512 tokens, as shares of the
#             bandwidth and the peak that `kernels` measured in this run
#   predict   what gantry plan predicts from rates measured in this run, beside what happens: the demo model and the 1.1B shape
#   serve     start to SERVING; time to first token and tokens/s for 1 and 16 streams through gRPC
#
#   peers     the 1.1B shape in bf16 here, in llama.cpp and in transformers, one after the other, twice: batch 1, batch 16, a prompt
#             of 512 (not among "all"). GANTRY_LLAMA_CPP: a folder with llama-bench and llama-batched-bench; GANTRY_PEERS_PYTHON
#             (python3): a Python with torch and transformers, numpy and gguf. What is missing is left out with a word
#   chaos --seed S --kills N ...   faults at random under streams that must not notice (chaos.py; not among "all")
#   chaos-hosts --seed S --faults N ...   hosts and links as well (chaos_hosts.py; root and ../shared/hosts)
#   sim --seeds N [--seed S] [--replicas R] [--trace]   simulated clusters (tests/sim; not among "all")
#
# Without NAME all of them. BUILD is the build folder (default build); GANTRY_BENCH_DIR keeps the 2.2 GB of random weights
# between runs (default: under TMPDIR, removed at the end). Needs mpirun; as root, says so to Open MPI.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${BUILD:-build}
if [ "${1:-}" = chaos ] || [ "${1:-}" = chaos-hosts ]; then
    script=tests/bench/${1/-/_}.py
    shift
    python=python3
    "$python" -c 'import grpc' 2> /dev/null || python=/usr/bin/python3
    GANTRY=$(realpath "$build/gantry") GANTRY_PY=$(realpath "$build/py") GANTRY_SOURCE_DIR=$PWD PYTHONDONTWRITEBYTECODE=1 \
        GANTRY_SHARED_DIR=${GANTRY_SHARED_DIR:-$PWD/../shared} exec "$python" "$script" "$@"
fi
if [ "${1:-}" = sim ]; then
    shift
    exec "$build/tests/sim" "$@"
fi
gantry=$build/gantry
threads=${THREADS:-$(nproc)}
tmp=$(mktemp -d "${TMPDIR:-/tmp}/gantry-bench-XXXXXX")
pid=

cleanup() {
    if [ -n "$pid" ]; then
        kill -INT "$pid" 2> /dev/null || true
        wait "$pid" 2> /dev/null || true
    fi
    rm -rf "$tmp"
}
trap cleanup EXIT

if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi

title() { printf '\n== %s\n' "$*"; }
ranks() { # N PROGRAM ARGS...
    local n=$1
    shift
    mpirun --oversubscribe --bind-to none -n "$n" "$@"
}

bench_kernels() {
    title "kernels ($threads threads)"
    "$build/tests/bench.kern_bench" "$threads" | tee "$tmp/kernels"
}

bench_coll() {
    title "collectives (2 ranks, this host)"
    ranks 2 "$build/tests/bench.coll_bench"
}

bench_step() {
    local shape
    for shape in "1 1" "2 1" "1 2"; do
        # shellcheck disable=SC2086
        set -- $shape
        title "a decode step of the demo model, tp $1 pp $2, one thread a rank"
        ranks $(($1 * $2)) "$build/tests/bench.step_bench" model/demo "$1" "$2" 1 1 16 900
    done
}

bench_model() {
    local dir=${GANTRY_BENCH_DIR:-$tmp}/tinyllama-1.1b
    title "random weights of TinyLlama-1.1B's shape, bf16, $threads threads"
    [ -f "$dir/model.safetensors" ] || "$build/tests/bench.make_model" "$dir" tinyllama-1.1b
    [ -f "$tmp/kernels" ] || "$build/tests/bench.kern_bench" "$threads" machine > "$tmp/kernels"
    ranks 1 "$build/tests/bench.step_bench" "$dir" 1 1 "$threads" 1 512 64 | tee "$tmp/model"
    # Bytes that a token must read: all weights but the embedding, once (KV of 512 positions is 1 % of that).
    # Operations of the prefill: 2 per weight of the layers and token; the head only for the last row; attention left out.
    awk '
        /^machine/ { bandwidth = $4; peak = $8 }
        /^prefill/ { prefill_s = $6 }
        /^step/ { step_us = $2 }
        END {
            layers = 22 * (2048 * 2560 + 2048 * 2048 + 3 * 2048 * 5632); head = 32000 * 2048
            printf "decode     %.1f GB/s of %.1f measured: %.0f %%\n", 2 * (layers + head) / step_us / 1e3, bandwidth,
                200 * (layers + head) / step_us / 1e3 / bandwidth
            printf "prefill    %.0f Gflop/s of %.0f measured: %.0f %%\n", 2 * layers * 512 / prefill_s / 1e9, peak,
                200 * layers * 512 / prefill_s / 1e9 / peak
        }' "$tmp/kernels" "$tmp/model"
}

# MODEL STREAMS PROMPT TOKENS: predicted for the middle of the answer, then measured.
predict_one() {
    "$gantry" plan "$1" --rates "$tmp/rates" --seqs "$2" --prompt "$3" | grep -E '^  prompt of'
    "$gantry" plan "$1" --rates "$tmp/rates" --seqs "$2" --prompt $(($3 + $4 / 2)) | grep -E "^  $(if [ "$2" = 1 ]; then echo one; else echo "$2"; fi) stream"
    ranks 1 "$build/tests/bench.step_bench" "$1" 1 1 "$threads" "$2" "$3" "$4" | grep -E '^(prefill|step)'
}

bench_predict() {
    local dir=${GANTRY_BENCH_DIR:-$tmp}/tinyllama-1.1b
    title "predicted and measured, bf16, $threads threads"
    [ -f "$dir/model.safetensors" ] || "$build/tests/bench.make_model" "$dir" tinyllama-1.1b
    "$gantry" measure --format bf16 --threads "$threads" -o "$tmp/rates"
    predict_one "$dir" 1 512 64
    predict_one model/demo 1 512 500
    predict_one model/demo 16 512 500
}

# One decoded token of N streams that have 512 positions; the first line of all is a prompt of 512.
peers_ours() {
    ranks 1 "$build/tests/bench.step_bench" "$1" 1 1 "$threads" 1 512 64 |
        awk '/^prefill/ { print "gantry       prompt 512        " $(NF - 1) " tokens/s" } /^decode/ { print "gantry       decode b1 ctx 512 " $2 " tokens/s" }'
    ranks 1 "$build/tests/bench.step_bench" "$1" 1 1 "$threads" 16 512 64 |
        awk '/^decode/ { print "gantry       decode b16 ctx 512 " $2 " tokens/s" }'
}

peers_llama() { # DIR GGUF
    "$1/llama-bench" -m "$2" -t "$threads" -p 512 -n 0 -r 3 -o md 2> /dev/null | awk -F '|' '/pp512/ { print "llama.cpp    prompt 512        " $(NF - 1) }'
    "$1/llama-bench" -m "$2" -t "$threads" -p 0 -n 64 -d 512 -r 2 -o md 2> /dev/null | awk -F '|' '/tg64/ { print "llama.cpp    decode b1 ctx 512 " $(NF - 1) }'
    "$1/llama-batched-bench" -m "$2" -t "$threads" -tb "$threads" -c $((16 * 544)) -b 2048 -npp 512 -ntg 32 -npl 16 2> /dev/null |
        awk -F '|' '$2 + 0 == 512 { print "llama.cpp    decode b16 ctx 512" $9 " tokens/s" }'
}

bench_peers() {
    local dir=${GANTRY_BENCH_DIR:-$tmp}/tinyllama-1.1b python=${GANTRY_PEERS_PYTHON:-python3} llama=${GANTRY_LLAMA_CPP:-} i
    title "the 1.1B shape, bf16, $threads threads: ours and others'"
    [ -f "$dir/model.safetensors" ] || "$build/tests/bench.make_model" "$dir" tinyllama-1.1b
    if [ ! -x "$llama/llama-bench" ] || [ ! -x "$llama/llama-batched-bench" ]; then
        echo "llama.cpp: skipped: GANTRY_LLAMA_CPP names no folder with llama-bench and llama-batched-bench"
        llama=
    elif ! "$python" tests/bench/to_gguf.py "$dir" "$tmp/model.gguf"; then
        llama=
    fi
    for i in 1 2; do
        peers_ours "$dir"
        if [ -n "$llama" ]; then peers_llama "$llama" "$tmp/model.gguf"; fi
        OMP_NUM_THREADS=$threads "$python" tests/gpu/peers.py --shape 1.1B --device cpu --seconds $((i * 120 - 60)) || [ $? = 77 ]
    done
}

now_ms() { echo $(($(date +%s%N) / 1000000)); }

start_service() { # serve options...
    rm -rf "$tmp/run"
    "$gantry" serve model/demo --listen 127.0.0.1:0 --run-dir "$tmp/run" "$@" > "$tmp/serve.log" 2>&1 &
    pid=$!
    until [ -f "$tmp/run/endpoint.json" ]; do
        kill -0 "$pid" 2> /dev/null || { cat "$tmp/serve.log"; exit 1; }
        sleep 0.002
    done
    target=127.0.0.1:$(sed -n 's/.*"port": *\([0-9]*\).*/\1/p' "$tmp/run/endpoint.json" | head -1)
    "$gantry" status --connect "$target" --wait 60 > /dev/null
}

stop_service() {
    kill -INT "$pid"
    wait "$pid" || { cat "$tmp/serve.log"; exit 1; }
    pid=
}

# N streams at once; the slowest first token, and all tokens over the time in which they came.
bench_streams() {
    local n=$1 i began ended
    local jobs=()
    began=$(now_ms)
    for ((i = 0; i < n; i++)); do
        "$gantry" generate --connect "$target" --seed "$i" --max-tokens 200 --ignore-eos --stats "It was a bright morning" \
            > /dev/null 2> "$tmp/stats.$i" &
        jobs+=($!)
    done
    wait "${jobs[@]}"
    ended=$(now_ms)
    cat "$tmp"/stats.* | awk -v n="$n" -v ms=$((ended - began)) '
        { for (i = 1; i < NF; i++) if ($i == "after" && $(i + 1) > first) first = $(i + 1); tokens += 200 }
        END { printf "%2d streams  first token %.1f ms (the slowest), %.0f tokens/s together\n", n, first, tokens * 1000 / ms }'
    rm -f "$tmp"/stats.*
}

bench_serve() {
    local began i
    for shape in "1 1" "2 1" "1 2" "2 2"; do
        # shellcheck disable=SC2086
        set -- $shape
        title "gantry serve model/demo --tp $1 --pp $2"
        for i in 1 2 3; do
            began=$(now_ms)
            start_service --tp "$1" --pp "$2"
            echo "start      $(($(now_ms) - began)) ms to SERVING"
            [ "$i" = 3 ] || stop_service
        done
        bench_streams 1
        bench_streams 1
        bench_streams 16
        stop_service
    done
}

if [ $# = 0 ]; then set -- kernels coll step model predict serve; fi
for name in "$@"; do
    case $name in
        kernels | coll | step | model | predict | serve | peers) "bench_$name" ;;
        *)
            echo "run.sh: no bench \"$name\": kernels, coll, step, model, predict, serve, peers" >&2
            exit 2
            ;;
    esac
done
