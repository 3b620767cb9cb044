#!/usr/bin/env bash
# tests/gpu/run.sh [BUILD_DIR] - every check and bench of the CUDA table on this machine's first GPU, in
# at most 8 minutes, without a network; one table last. tests/gpu/README.md says what it needs.
#
# Without BUILD_DIR it builds what it can with nvcc and cc alone (base/ and kernels/: gRPC, protobuf-c,
# MPI and cmocka may be missing). With a build folder of CMake, made here or elsewhere, it also
# runs the whole model on the device (tests/layout, greedy tokens against the CPU's).
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
source_dir=$PWD
build=${1:-}
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
    124) summary+=("$(printf '%-44s FAILED: out of time' "$1")") ;;
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
    timeout "$((most < left ? most : left))" "$@" > "$out/$name.log" 2>&1
    rc=$?
    tail -n 400 "$out/$name.log" | grep -E 'FAILED|skipped|checks|ERROR SUMMARY|tokens are' | tail -n 20
    note "$name" "$rc"
}

nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
if [ ! -x "$nvcc" ]; then
    echo "skipped: no nvcc on PATH or in /usr/local/cuda/bin"
    exit 77
fi
if ! command -v nvidia-smi > /dev/null || ! nvidia-smi -L; then
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
jobs=()
for file in kernels/cuda/*.cu; do
    "$nvcc" "${cuda_flags[@]}" -c -o "$out/obj/$(basename "$file" .cu).cu.o" "$file" &
    jobs+=($!)
done
objects=()
for file in base/buf.c base/clock.c base/cpu.c base/cpu_memory.c base/err.c base/team.c kernels/*.c kernels/ref/*.c kernels/x86/*.c; do
    isa=()
    case $file in
    *_avx512bf16.c) isa=(-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -O3) ;;
    *_avx512.c) isa=(-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -O3) ;;
    *_avx2.c) isa=(-mavx2 -mfma -mf16c -O3) ;;
    esac
    object=$out/obj/$(printf '%s' "$file" | tr / _).o
    objects+=("$object")
    cc "${c_flags[@]}" "${isa[@]}" -c -o "$object" "$file" &
    jobs+=($!)
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
"$nvcc" -std=c++17 -O2 -gencode "arch=compute_$arch,code=sm_$arch" -I. -o "$out/bench" tests/gpu/bench.cu \
    "${objects[@]}" -lcublasLt -ldl -lpthread
bench_built=$?
say "built in $((SECONDS - start)) s"

# ---- checks: two seeds, without overlap of kernels, and under the sanitizer ----
run check_ops 60 "$out/check_ops" "$out/gantry_cuda.so" "$seed"
run check_ops_again 60 "$out/check_ops" "$out/gantry_cuda.so" "$((seed + 1))"
run check_ops_serial 60 env GANTRY_CUDA_SERIAL=1 "$out/check_ops" "$out/gantry_cuda.so" "$seed"
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        run "sanitizer_$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$out/check_ops" "$out/gantry_cuda.so" "$seed" quick
    done
else
    summary+=("$(printf '%-44s skipped: no compute-sanitizer' sanitizer)")
fi

# ---- the whole model, from a build folder ----
layout=$build/tests/layout.test_bits
if [ -n "$build" ] && [ -x "$layout" ]; then
    if ldd "$layout" | grep -q 'not found'; then
        summary+=("$(printf '%-44s skipped: %s' layout "$(ldd "$layout" | grep 'not found' | head -n 1 | xargs)")")
    else
        run layout_cuda 120 env GANTRY_TEST_DEVICE=cuda GANTRY_SOURCE_DIR="$source_dir" \
            GANTRY_SHARED_DIR="${GANTRY_SHARED_DIR:-$source_dir/../shared}" "$layout"
    fi
else
    summary+=("$(printf '%-44s skipped: no build folder given' layout)")
fi

# ---- bench: prints its table last ----
if [ "$bench_built" -eq 0 ]; then
    run bench 240 "$out/bench" "$out/gantry_cuda.so"
    sed -n '/^==== table ====$/,$p' "$out/bench.log"
else
    summary+=("$(printf '%-44s skipped: does not build (cuBLASLt?)' bench)")
fi

printf '\n==== checks, seed %s, %s s ====\n' "$seed" "$((SECONDS - start))"
printf '%s\n' "${summary[@]}"
case "${summary[*]}" in *FAILED*) exit 1 ;; esac
