#!/usr/bin/env bash
# The programs of tests/gpu link with the C library alone, from the files that run.sh lists: a source that begins to
# call another one, or a library that the machines with devices lack, shows here and not there.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
GANTRY_GPU_OUT=$out bash tests/gpu/run.sh --link
