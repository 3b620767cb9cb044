#!/usr/bin/env bash
# tests/common/check_format.sh - every C file is as clang-format writes it. Its versions differ in
# details, so only the one that the tree is formatted with can judge; elsewhere this is skipped (77).
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/common/files.sh
. tests/common/files.sh

want=14
format=$(command -v "clang-format-$want" || command -v clang-format || true)
if [ -z "$format" ]; then
    echo "skipped: no clang-format"
    exit 77
fi
version=$("$format" --version | sed -n 's/.*version \([0-9]*\).*/\1/p')
if [ "$version" != "$want" ]; then
    echo "skipped: clang-format $version, the tree is formatted with $want"
    exit 77
fi
tree_files '*.c' '*.h' | xargs -r "$format" --dry-run -Werror
