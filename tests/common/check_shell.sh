#!/usr/bin/env bash
# tests/common/check_shell.sh - shellcheck over every script; skipped (77) where it is absent.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/common/files.sh
. tests/common/files.sh

if ! command -v shellcheck > /dev/null; then
    echo "skipped: no shellcheck"
    exit 77
fi
{
    tree_files '*.sh' '*.sbatch'
    echo run
    echo .ci/run
} | xargs shellcheck -x
