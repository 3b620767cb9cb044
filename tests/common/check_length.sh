#!/usr/bin/env bash
# tests/common/check_length.sh - a C file over 700 lines holds more than one idea: split it.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/common/files.sh
. tests/common/files.sh

max=700
bad=0
while read -r file; do
    lines=$(wc -l < "$file")
    if [ "$lines" -gt "$max" ]; then
        echo "check_length: $file has $lines lines, at most $max are wanted"
        bad=1
    fi
done < <(tree_files '*.c' '*.h')
exit "$bad"
