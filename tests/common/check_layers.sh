#!/usr/bin/env bash
# tests/common/check_layers.sh - one foreign library, one place: who may include whose header.
#
# Which of our own folders a folder may include is enforced by the build (a folder that is not
# linked is not on the include path); a system header is always on it, hence this check.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/common/files.sh
. tests/common/files.sh

bad=0
# only HEADER-PATTERN ALLOWED-PATH-PATTERN
only() {
    local hits
    hits=$(tree_files '*.c' '*.h' '*.cu' | grep -vE "$2" | xargs -r grep -nE "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($1)" /dev/null || true)
    if [ -n "$hits" ]; then
        printf '%s\n' "$hits"
        printf 'check_layers: <%s> belongs only where the path matches %s\n' "$1" "$2"
        bad=1
    fi
}

only 'mpi\.h' '^(cluster/|tests/mpi/|tests/bench/)'
only 'grpc/' '^(cluster/|tests/)'
only 'hwloc' '^cluster/'
only 'nccl\.h' '^(cluster/|kernels/cuda/)'
only 'cuda|nvml\.h' '^(kernels/cuda/|cluster/|tests/gpu/|tests/simt/)'
only 'google/protobuf-c|protobuf-c/|[a-z_/]*\.pb-c\.h' '^(proto/|tests/unit/proto/|tests/fuzz/)'
only 'pcre2\.h|utf8proc\.h' '^model/'
only 'jansson\.h' '^(model/|partition/|coordinator/|tests/)'
only 'xxhash\.h' '^base/'
only 'immintrin\.h|cpuid\.h' '^(base/|kernels/|tests/kern/|tests/bench/)'
only 'cmocka\.h' '^tests/'
only 'tests/|common/' '^tests/'

# A path that leaves the folder escapes the include directories that make the layers.
if tree_files '*.c' '*.h' | xargs -r grep -nE '#[[:space:]]*include[[:space:]]*"\.\.' /dev/null; then
    echo 'check_layers: include by full path ("folder/file.h"), not by ".."'
    bad=1
fi
exit "$bad"
