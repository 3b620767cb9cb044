# shellcheck shell=bash
# tests/e2e/lib.sh - what the scripts here share: a folder of their own, claims, services that are
# started and must end. Sourced, not run.
#
# Every process that a script starts carries GANTRY_E2E=<its folder> in its environment, mpirun and
# ranks included; that is how tests/common/no_leftovers.sh knows them. At the end the script's own
# processes are ended by pid, and the folder goes. The first failed claim ends the script.
# shellcheck source=tests/common/claims.sh
. "$(dirname "${BASH_SOURCE[0]}")/../common/claims.sh"

: "${GANTRY:?path of the program}"
: "${GANTRY_SOURCE_DIR:=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}"
# shellcheck disable=SC2034 # for the scripts
demo=$GANTRY_SOURCE_DIR/model/demo
# shellcheck disable=SC2034
tiny=$GANTRY_SOURCE_DIR/tests/golden/data

dir=$(mktemp -d "${TMPDIR:-/tmp}/gantry-e2e.XXXXXX")
export GANTRY_E2E=$dir
export XDG_CACHE_HOME=$dir/cache # digests of weights
mkdir "$dir/tmp" "$dir/cache"
export TMPDIR=$dir/tmp # sessions of Open MPI
shm=$(mktemp -d /dev/shm/gantry-e2e.XXXXXX 2> /dev/null || mktemp -d) # its shared memory
export OMPI_MCA_btl_vader_backing_directory=$shm
unset GANTRY_RUN_DIR SLURM_JOB_ID SLURM_JOB_NUM_NODES
# Only for the scripts that call mpirun themselves: gantry says these words to its mpirun.
if [ "$(id -u)" -eq 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi

started=() # pids that this script started and that may still run

# ---- claims ----

# expect CLAIM CODE WORDS COMMAND...: the exit code, within 20 s (times $slow), and every word (parted by '|') in the
# output of both streams.
expect() {
    local claim=$1 want=$2 words=$3 code=0 word
    shift 3
    timeout -k 2 $((20 * slow)) "$@" > "$dir/out" 2>&1 < /dev/null || code=$?
    if [ "$code" -ne "$want" ]; then
        echo "$*" >> "$dir/out"
        fail "$claim: exit code $code, wanted $want" "$dir/out"
    fi
    while IFS= read -r -d '|' word; do
        grep -qF -- "$word" "$dir/out" || fail "$claim: no \"$word\" in what it says" "$dir/out"
    done <<< "$words|"
    ok "$claim"
}

# ---- processes ----

# ends PID SECONDS: collects a child of this script; its exit code is in $code.
ends() {
    local pid=$1 other left=()
    within "$2" gone "$pid" || return 1
    code=0
    wait "$pid" 2> /dev/null || code=$?
    for other in "${started[@]}"; do [ "$other" = "$pid" ] || left+=("$other"); done
    started=("${left[@]+"${left[@]}"}")
}

nothing_left() {
    bash "$GANTRY_SOURCE_DIR/tests/common/no_leftovers.sh" "GANTRY_E2E=$dir" 5 > "$dir/left" ||
        fail "no process is left behind" "$dir/left"
    [ -z "$(ls "$shm")" ] || fail "no shared memory is left behind: $(ls -x "$shm")" "$log"
}

# ---- a service ----

# serve NAME ARGS...: starts one with the run directory $dir/NAME; sets $serve (pid), $run, $log.
serve() {
    run=$dir/$1
    log=$dir/$1.log
    shift
    "$GANTRY" serve "$@" --listen 127.0.0.1:0 --run-dir "$run" > "$log" 2>&1 < /dev/null &
    serve=$!
    owner=$serve # whose endpoint.json counts; a killed service leaves its own behind
    started+=("$serve")
}

field() { sed -n 's/^ *"'"$1"'": *"\{0,1\}\([^",]*\)"\{0,1\},\{0,1\}$/\1/p' "$run/endpoint.json" 2> /dev/null; }
has_state() { [ "$(field state)" = "$1" ] && [ "$(field pid)" = "${owner:-$(field pid)}" ]; }
serving_or_gone() { has_state serving || gone "$serve"; }

# Waits until the service of the last `serve` answers; sets $at (HOST:PORT).
ready() {
    within 60 serving_or_gone || fail "the service is serving within 60 s" "$log" "$run/mpirun.log"
    has_state serving || fail "the service starts" "$log" "$run/mpirun.log"
    at=$(field host):$(field port)
}

status_number() { # FIELD: its first value in gantry status --json
    "$GANTRY" status --connect "$at" --json 2> /dev/null | grep -o "\"$1\":[0-9]*" | head -n 1 | cut -d: -f2
}
rank_pids() { "$GANTRY" status --connect "$at" --json | grep -o '"pid":[0-9]*' | cut -d: -f2; }
mpirun_pid() { sed -n 's/.*with mpirun (pid \([0-9]*\)).*/\1/p' "$log"; }
blocks_free() { [ "$(status_number kv_blocks_used)" = 0 ] && [ "$(status_number streams)" = 0 ]; }
streams_run() { [ "$(status_number running)" = "$1" ]; }

# stop_service SECONDS CODE CLAIM: after a signal was sent.
serve_ends() {
    ends "$serve" "$1" || fail "$3: it ends within $1 s" "$log" "$run/mpirun.log"
    [ "$code" -eq "$2" ] || fail "$3: exit code $code, wanted $2" "$log" "$run/mpirun.log"
    ok "$3"
}

# generate NAME ARGS...: in the background; sets $client; text in $dir/NAME.text, words in .err
generate() {
    local name=$1
    shift
    rm -f "$dir/$name.text"
    "$GANTRY" generate --connect "$at" "$@" > "$dir/$name.text" 2> "$dir/$name.err" < /dev/null &
    client=$!
    started+=("$client")
}
has_text() { [ -s "$dir/$1.text" ]; }

# ---- the end ----

# A number in $started may be somebody else's by now: the shell collects its children whenever they end.
is_ours() { grep -qs "^PPid:[[:space:]]*$$\$" "/proc/$1/status"; }
gone_or_foreign() { gone "$1" || ! is_ours "$1"; }

finish() {
    local pid status=$?
    trap - EXIT
    trap '' INT TERM # a second signal must not leave half of it
    for pid in "${started[@]+"${started[@]}"}"; do
        if is_ours "$pid"; then kill -TERM "$pid" 2> /dev/null || true; fi
    done
    for pid in "${started[@]+"${started[@]}"}"; do
        within 15 gone_or_foreign "$pid" || kill -KILL "$pid" 2> /dev/null || true
        wait "$pid" 2> /dev/null || true
    done
    rm -rf "$dir" "$shm"
    exit "$status"
}
trap finish EXIT

# The last line of every script.
all_well() {
    nothing_left
    ok "no process is left behind"
    claims_hold
}
