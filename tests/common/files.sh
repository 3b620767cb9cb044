# tests/common/files.sh - sourced: tree_files PATTERN... prints the tree's own files, without build
# folders. Tracked files where git knows them; all files in an unpacked archive.
# shellcheck shell=bash

tree_files() {
    local pattern args=()
    if git rev-parse --is-inside-work-tree > /dev/null 2>&1; then
        git ls-files -- "$@" | while read -r file; do
            if [ -f "$file" ]; then echo "$file"; fi
        done
        return
    fi
    for pattern in "$@"; do
        args+=(-o -name "$pattern")
    done
    find . -path './build*' -prune -o -type f \( "${args[@]:1}" \) -print | sed 's,^\./,,' | sort
}
