#!/usr/bin/env bash
# tests/gpu/run.sh - every check and bench of the CUDA path on this machine's first GPU, in at most 8 minutes, without
# a network; one table last. tests/gpu/README.md says what it needs.
#
# It builds with nvcc and cc alone: gRPC, protobuf-c, MPI, cmocka, jansson and xxHash may be missing (standin/). So the
# whole model runs here too: tests/layout, greedy tokens against the CPU's, equal bits over graphs, chunks, neighbours,
# and ranks that share the device.
#
# run.sh --link builds the programs that need no nvcc, unoptimised, and runs nothing: does the list of files hold?
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
source_dir=$PWD
out=${GANTRY_GPU_OUT:-$(mktemp -d)}
mkdir -p "$out/obj"
seed=${GANTRY_GPU_SEED:-$(date +%s)}
arch=${GANTRY_GPU_ARCH:-}
start=$SECONDS
limit=480
summary=()

say() {
    printf '%s\n' "== $*"
}

# note NAME EXIT_STATUS: a line of the summary.
note() {
    case $2 in
    0) summary+=("$(printf '%-44s ok' "$1")") ;;
    77) summary+=("$(printf '%-44s skipped' "$1")") ;;
    124 | 137) summary+=("$(printf '%-44s FAILED: out of time' "$1")") ;;
    *) summary+=("$(printf '%-44s FAILED (%s)' "$1" "$2")") ;;
    esac
}

# run NAME SECONDS COMMAND...: with the time that is left, its output to a log and the end of it here.
run() {
    local name=$1 most=$2 left=$((limit - (SECONDS - start))) rc
    shift 2
    if [ "$left" -lt 5 ]; then
        summary+=("$(printf '%-44s not run: no time left' "$name")")
        return
    fi
    say "$name"
    timeout -k 5 "$((most < left ? most : left))" "$@" > "$out/$name.log" 2>&1
    rc=$?
    tail -n 400 "$out/$name.log" | grep -E 'FAILED|skipped|checks|ERROR SUMMARY|tokens are' | tail -n 20
    note "$name" "$rc"
}

link_only=${1:-}
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
if [ "$link_only" = --link ]; then
    nvcc=true
    arch=none
elif [ ! -x "$nvcc" ]; then
    echo "skipped: no nvcc on PATH or in /usr/local/cuda/bin"
    exit 77
fi
if [ -z "$link_only" ] && { ! command -v nvidia-smi > /dev/null || ! nvidia-smi -L; }; then
    echo "skipped: no NVIDIA driver or no device"
    exit 77
fi
if [ -z "$arch" ]; then
    arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
fi
case $arch in 90) arch=90a ;; esac

# ---- build ----
say "building for sm_$arch into $out"
cuda_flags=(-std=c++17 -O3 -fmad=false -ftz=true -prec-div=true -prec-sqrt=true -lineinfo
    -gencode "arch=compute_$arch,code=sm_$arch" -Xcompiler -fPIC -Xcompiler -fvisibility=hidden -I.)
c_flags=(-std=gnu17 -D_GNU_SOURCE -O2 -g -ffp-contract=off -fno-strict-aliasing -I.)
level=()
if [ "$link_only" = --link ]; then
    c_flags=(-std=gnu17 -D_GNU_SOURCE -I.)
    level=(-O0)
fi
jobs=()
for file in kernels/cuda/*.cu; do
    "$nvcc" "${cuda_flags[@]}" -c -o "$out/obj/$(basename "$file" .cu).cu.o" "$file" &
    jobs+=($!)
done
nccl_flags=()
if echo '#include <nccl.h>' | cc -I/usr/local/cuda/include -fsyntax-only -x c - 2> /dev/null; then
    nccl_flags=(-DGANTRY_NCCL=1 -isystem /usr/local/cuda/include)
fi
# What the plug-in's checks link, and what a replica of ranks as threads links besides.
shopt -s nullglob
low=(base/*.c kernels/*.c kernels/ref/*.c kernels/x86/*.c)
high=(model/config_*.c model/desc*.c model/json_memory.c model/quant*.c model/safetensors*.c model/weights*.c partition/plan{,_cut,_digest,_speed}.c partition/{predict,rates}.c worker/sched/*.c
    tests/replica/*.c tests/common/{fixture,coll_wrap}.c tests/gpu/standin/jansson.c)
for file in worker/*.c cluster/coll_*.c; do
    case $file in
    worker/args.c | worker/ctrl*.c | worker/device.c | worker/main.c | worker/measure*.c | worker/one_job.c | cluster/coll_mpi*.c) ;;
    *) high+=("$file") ;;
    esac
done
objects=()
model_objects=()
for file in "${low[@]}" "${high[@]}"; do
    isa=()
    case $file in
    *_avx512bf16.c) isa=(-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -O3) ;;
    *_avx512.c) isa=(-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -O3) ;;
    *_avx2.c) isa=(-mavx2 -mfma -mf16c -O3) ;;
    base/hash.c) isa=(-Itests/gpu/standin) ;;
    esac
    object=$out/obj/$(printf '%s' "$file" | tr / _).o
    case " ${low[*]} " in
    *" $file "*) objects+=("$object") ;;
    *)
        model_objects+=("$object")
        isa=(-Itests/gpu/standin -Itests "${nccl_flags[@]}")
        ;;
    esac
    cc "${c_flags[@]}" "${isa[@]}" "${level[@]}" -c -o "$object" "$file" &
    jobs+=($!)
    if [ "$link_only" = --link ] && [ "${#jobs[@]}" -gt 8 ]; then # beside other work, on few cores
        wait "${jobs[-3]}"
    fi
done
failed=0
for job in "${jobs[@]}"; do
    wait "$job" || failed=1
done
if [ "$failed" -ne 0 ]; then
    echo "FAILED: the build"
    exit 1
fi
"$nvcc" -shared -cudart static -o "$out/gantry_cuda.so" "$out"/obj/*.cu.o || exit 1
cc "${c_flags[@]}" -o "$out/check_ops" tests/gpu/check_*.c "${objects[@]}" -ldl -lpthread -lm || exit 1
cc "${c_flags[@]}" -Itests/gpu/standin -Itests -o "$out/check_model" tests/layout/test_bits.c "${model_objects[@]}" \
    "${objects[@]}" -ldl -lpthread -lm || exit 1
cc "${c_flags[@]}" -o "$out/nccl_try" tests/gpu/nccl_try.c "${model_objects[@]}" "${objects[@]}" -ldl -lpthread -lm || exit 1
if [ "$link_only" = --link ]; then
    exit 0
fi
"$nvcc" -std=c++17 -O2 -gencode "arch=compute_$arch,code=sm_$arch" -I. -o "$out/bench" tests/gpu/bench.cu \
    "${objects[@]}" -lcublasLt -ldl -lpthread
bench_built=$?
say "built in $((SECONDS - start)) s"

# ---- checks: two seeds, without overlap of kernels ----
run check_ops 40 "$out/check_ops" "$out/gantry_cuda.so" "$seed"
case ${summary[-1]} in
*FAILED*) # an error of the device ends a process: what the others say, each in its own
    for group in elem gemm attention scan feed peer stream; do
        run "check_ops_$group" 20 "$out/check_ops" "$out/gantry_cuda.so" "$seed" "$group"
    done
    ;;
esac
run check_ops_again 30 "$out/check_ops" "$out/gantry_cuda.so" "$((seed + 1))"
run check_ops_serial 30 env GANTRY_CUDA_SERIAL=1 "$out/check_ops" "$out/gantry_cuda.so" "$seed"

run check_ops_mma 30 env GANTRY_CUDA_WGMMA=0 "$out/check_ops" "$out/gantry_cuda.so" "$seed" gemm

# ---- whole models ----
on_device=(env GANTRY_TEST_DEVICE=cuda GANTRY_TEST_PLUGIN="$out/gantry_cuda.so" GANTRY_SOURCE_DIR="$source_dir")
run model_stories260k 80 "${on_device[@]}" "$out/check_model"
run model_demo_greedy 30 "${on_device[@]}" GANTRY_TEST_MODEL="$source_dir/model/demo" GANTRY_TEST_ONLY=greedy "$out/check_model"
run nccl 45 "$out/nccl_try" "$out/gantry_cuda.so"
cat "$out/nccl.log"

# ---- benches: ours, and others with the same shapes beside the same two ceilings ----
if [ "$bench_built" -eq 0 ]; then
    run bench 110 "$out/bench" "$out/gantry_cuda.so"
else
    : > "$out/bench.log"
    summary+=("$(printf '%-44s skipped: does not build (cuBLASLt?)' bench)")
fi
ceilings=$(sed -n 's|^ceilings: copy \([0-9.]*\) TB/s, bf16 matrix \([0-9.]*\) TFLOP/s.*|--copy-tbps \1 --matrix-tflops \2|p' "$out/bench.log" | head -n 1)
# shellcheck disable=SC2086 # two options and their numbers
run peers 110 "${GANTRY_GPU_PYTHON:-python3}" tests/gpu/peers.py --seconds 100 $ceilings
run llama_cpp 60 tests/gpu/llama_cpp.sh

# ---- under the sanitizer, with what time is left ----
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        run "sanitizer_$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$out/check_ops" "$out/gantry_cuda.so" "$seed" quick
    done
else
    summary+=("$(printf '%-44s skipped: no compute-sanitizer' sanitizer)")
fi

printf '\n==== table ====\n'
if grep -q '^==== table ====$' "$out/bench.log"; then
    sed -n '/^==== table ====$/,$p' "$out/bench.log" | tail -n +2
else # it did not come to its end: the lines that it came to
    cat "$out/bench.log"
fi
cat "$out/peers.log" "$out/llama_cpp.log" 2> /dev/null | grep -vi warn
printf '\n==== checks, seed %s, %s s ====\n' "$seed" "$((SECONDS - start))"
printf '%s\n' "${summary[@]}"
case "${summary[*]}" in *FAILED*) exit 1 ;; esac
