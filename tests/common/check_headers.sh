#!/usr/bin/env bash
# tests/common/check_headers.sh - each header of ours compiles alone, so that no file depends on
# what its neighbours happened to include before it. Not those of kernels/x86: they are templates,
# compiled once per instruction set by a file that chooses the vectors first.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/common/files.sh
. tests/common/files.sh

headers=$(tree_files '*.h' | grep -vE '^(kernels/(cuda|x86)|tests)/' || true)
bad=0
for header in $headers; do
    flags=()
    case $header in
        # Private headers of the one folder that may see MPI.
        cluster/*_mpi.h) read -ra flags < <(mpicc -showme:compile 2> /dev/null || true) ;;
    esac
    if ! printf '#include "%s"\n' "$header" |
        "${CC:-cc}" -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -Werror -fsyntax-only -I. "${flags[@]}" -x c -; then
        echo "check_headers: $header does not compile alone"
        bad=1
    fi
done
echo "check_headers: $(wc -w <<< "$headers") headers"
exit "$bad"
