# shellcheck shell=bash
# tests/common/claims.sh - what every test script says and waits with: claims, bounds, processes. Sourced, not run.
#
# A script prints each claim that holds; the first that does not ends it with 1. What it started must be gone afterwards whichever way
# it ends, so each library over this one sets its own trap on EXIT; a signal goes through it as well.
set -euo pipefail

claims=0
# A program under a sanitizer is slower: every wait and bound is so many times as long.
slow=${GANTRY_SLOW:-1}
# What a failure shows besides the files that it names.
fail_shows=()

skip() {
    echo "skipped: $*"
    exit 77
}

ok() {
    claims=$((claims + 1))
    echo "ok    $*"
}

# fail CLAIM [FILE...]: the ends of the files are shown.
fail() {
    local claim=$1 file
    shift
    echo "FAIL  $claim"
    for file in "${fail_shows[@]+"${fail_shows[@]}"}" "$@"; do
        if [ -s "$file" ]; then
            echo "      $(basename "$file"):"
            tail -n 25 "$file" | sed 's/^/      | /'
        fi
    done
    exit 1
}

now_ms() { echo $(($(date +%s%N) / 1000000)); }

# within SECONDS COMMAND...: true as soon as the command is. SECONDS of a program at its own speed.
within() {
    local end=$(($(now_ms) + $1 * 1000 * slow))
    shift
    until "$@"; do
        if [ "$(now_ms)" -ge "$end" ]; then return 1; fi
        sleep 0.05
    done
}

alive() { kill -0 "$1" 2> /dev/null && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2> /dev/null; }
gone() { ! alive "$1"; }
all_alive() {
    local pid
    for pid in "$@"; do alive "$pid" || return 1; done
}
all_gone() {
    local pid
    for pid in "$@"; do gone "$pid" || return 1; done
}

claims_hold() { echo "$claims claims hold, ${SECONDS} s"; }

trap 'exit 130' INT
trap 'exit 143' TERM
