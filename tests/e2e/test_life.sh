#!/usr/bin/env bash
# tests/e2e/test_life.sh - how a service lives and ends: on signals, with streams under way, when a
# rank, mpirun, the coordinator or a client is killed, when a rank hangs; and as one MPI job. After each
# of them no process is left.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

# The demo model with room for streams that last: 32,768 positions at about a thousand a second.
long=$dir/long
mkdir "$long"
cp "$demo"/*.json "$demo"/*.safetensors "$long"
sed -i 's/"max_position_embeddings": [0-9]*/"max_position_embeddings": 32768/' "$long/config.json"
# Without restarts: what is lost ends the service. test_failover.py is about the others.
four=("$long" --tp 2 --pp 2 --kv-tokens 40000 --restarts 0)

stream() { # NAME: one that does not end by itself
    generate "$1" "Once upon a time" --ignore-eos --seed 1
    within 10 has_text "$1" || fail "$1: text comes" "$dir/$1.err" "$log"
}

# client_ends NAME PID SECONDS CODE WORD CLAIM
client_ends() {
    ends "$2" "$3" || fail "$6: the client ends within $3 s" "$log"
    [ "$code" -eq "$4" ] || fail "$6: the client's exit code is $code, wanted $4" "$dir/$1.err" "$log"
    [ -z "$5" ] || grep -qF -- "$5" "$dir/$1.err" || fail "$6: no \"$5\" in what the client says" "$dir/$1.err"
    ok "$6"
}

left_nothing() { # CLAIM
    nothing_left
    ok "$1: no process is left"
}

# ---- start, serve, stop ----

serve plain "${four[@]}"
ready
[ "$("$GANTRY" generate --connect "$at" "Once" --max-tokens 5 --json | grep -o '"id":' | wc -l)" -eq 5 ] ||
    fail "5 tokens come" "$log"
ok "5 tokens come"
"$GANTRY" status --connect "$at" > "$dir/out"
grep -qE "^  5 links tested: round trips up to [0-9.]+ us \(rank [0-3] - [0-3]\), bandwidth from [0-9]+ MiB/s" "$dir/out" ||
    fail "every pair of ranks that talks was tested: 2 of slices, 2 of stages, the leader and rank 3" "$dir/out"
ok "the links were tested"
kill -INT "$serve"
serve_ends 5 0 "an idle service ends on SIGINT"
grep -q '^stopped$' "$log" || fail "it says that it has stopped" "$log"
left_nothing "SIGINT"

for delay in 0 0.1 0.3 0.6 1; do
    serve "early$delay" "$demo" --tp 2
    sleep "$delay"
    kill -TERM "$serve"
    ends "$serve" 10 || fail "SIGTERM $delay s after the start ends it" "$log"
    # Before the signals are held back, which is before it says anything, the code is the system's.
    case $code in 0) ;; 143) [ ! -s "$log" ] || fail "its code is 0, not 143" "$log" ;; *) fail "its code is 0, not $code" "$log" ;; esac
    nothing_left
done
ok "SIGTERM while it starts: it ends, nothing is left"

for i in 1 2 3; do
    serve "quick$i" "$demo" --tp 2
    ready
    kill -INT "$serve"
    ends "$serve" 5 || fail "start and stop number $i" "$log"
    [ "$code" -eq 0 ] || fail "start and stop number $i: code $code" "$log"
    nothing_left
done
ok "three quick starts and stops"

# ---- draining ----

n=$((slow > 1 ? 1500 : 2000)) # they must run when the signal comes
serve drain "${four[@]}" --grace $((200 * slow))
ready
pids=()
for i in 1 2 3; do
    generate "drain$i" "Once" --ignore-eos --max-tokens "$n" --json
    pids+=("$client")
done
within 10 streams_run 3 || fail "three streams run" "$log"
kill -TERM "$serve"
sleep 0.2
expect "a request while it drains" 6 "shutting down" "$GANTRY" generate --connect "$at" x
for i in 1 2 3; do
    client_ends "drain$i" "${pids[i - 1]}" 150 0 "" "SIGTERM: running stream $i goes on"
    [ "$(grep -o '"id":' "$dir/drain$i.text" | wc -l)" -eq "$n" ] || fail "it has all its $n tokens" "$dir/drain$i.err"
done
serve_ends 5 0 "then the service ends"
left_nothing "a drain"

serve again "${four[@]}" --grace 60 --self-test off
ready
! "$GANTRY" status --connect "$at" | grep -q "links tested" || fail "--self-test off tests no link" "$log"
stream again
pid=$client
kill -INT "$serve"
sleep 1
all_alive "$serve" "$pid" || fail "after one SIGINT the stream goes on" "$log"
kill -INT "$serve"
client_ends again "$pid" 3 6 "shutting down" "a second SIGINT ends streams at once"
serve_ends 5 0 "and the service"
left_nothing "a second SIGINT"

serve grace "${four[@]}" --grace 1
ready
stream grace
pid=$client
kill -INT "$serve"
client_ends grace "$pid" 4 6 "shutting down" "when --grace is over, streams end"
serve_ends 5 0 "and the service"

# ---- clients that go ----

serve clients "${four[@]}" --queue 1
ready
stream killed
expect "a stream too many" 4 "1 streams are open|--queue" "$GANTRY" generate --connect "$at" x
kill -KILL "$client"
ends "$client" 2 || fail "the client is dead"
within 2 blocks_free || fail "a killed client's blocks are free within 2 s: $("$GANTRY" status --connect "$at")" "$log"
ok "a killed client's blocks are free"
stream interrupted
kill -INT "$client"
client_ends interrupted "$client" 2 9 "interrupted" "SIGINT ends a client"
within 2 blocks_free || fail "its blocks are free within 2 s" "$log"
ok "its blocks are free"
generate late "Once" --ignore-eos --timeout 1
client_ends late "$client" 3 8 "" "a deadline ends a stream"
within 2 blocks_free || fail "its blocks are free within 2 s" "$log"
ok "its blocks are free too"
"$GANTRY" generate --connect "$at" "Once" --ignore-eos 2> "$dir/out" | head -c 20 > "$dir/head" || true
[ "$(wc -c < "$dir/head")" -eq 20 ] || fail "20 bytes come through a pipe" "$dir/out"
within 2 blocks_free || fail "a client whose reader left frees its blocks" "$log"
ok "a client whose reader left ends, its blocks are free"

# ---- deaths, in the same and further services ----

# lost NAME VICTIM-PID WORD CLAIM: the service of the last `serve` loses a process in mid-stream.
lost() {
    local name=$1 victim=$2 word=$3 claim=$4 began
    stream "$name"
    began=$(now_ms)
    kill -KILL "$victim"
    client_ends "$name" "$client" 5 6 "$word" "$claim: the client is told \"$word\""
    echo "      after $(($(now_ms) - began)) ms"
    [ $(($(now_ms) - began)) -lt $((2000 * slow)) ] || fail "$claim: within 2 s" "$log"
    serve_ends 5 6 "$claim: the service ends"
    grep -qF -- "gantry serve: $word" "$log" || fail "$claim: it says \"$word\"" "$log"
    left_nothing "$claim"
}

mapfile -t ranks < <(rank_pids)
[ "${#ranks[@]}" -eq 4 ] || fail "status shows 4 ranks"
lost rank2 "${ranks[2]}" "rank 2 (host" "rank 2 killed"
grep -q "gantry serve: rank 2 .* was ended by signal 9 (Killed)" "$log" || fail "the signal is named" "$log"
[ -s "$run/mpirun.log" ] || fail "mpirun.log stays after a failure"
[ ! -e "$run/endpoint.json" ] || fail "endpoint.json is gone after a failure"
serve leader "${four[@]}"
ready
mapfile -t ranks < <(rank_pids)
lost rank0 "${ranks[0]}" "rank 0 (host" "the leader killed"
serve crash "${four[@]}"
ready
mapfile -t ranks < <(rank_pids)
stream crash
kill -SEGV "${ranks[1]}"
client_ends crash "$client" 10 6 "rank 1 (host" "a rank crashes: the client is told"
serve_ends 10 6 "a rank crashes: the service ends"
grep -qE "trail r1 signal 11: [0-9]+ steps" "$run/mpirun.log" || fail "a rank that crashes leaves its last steps" "$run/mpirun.log"
left_nothing "a rank crashes"
serve draining "${four[@]}" --grace $((60 * slow))
ready
mapfile -t ranks < <(rank_pids)
stream draining
kill -INT "$serve"
within 5 grep -q "stopping:" "$log" || fail "it drains" "$log"
kill -KILL "${ranks[1]}"
client_ends draining "$client" 3 6 "rank 1 (host" "a rank killed in a drain: the client is told"
serve_ends 5 6 "a rank killed in a drain: the service does not wait for --grace"
left_nothing "a rank killed in a drain"

serve launcher "${four[@]}"
ready
stream launcher
victim=$(mpirun_pid)
mapfile -t ranks < <(rank_pids)
kill -KILL "$victim"
client_ends launcher "$client" 8 6 "the replica was lost" "mpirun killed: the client is told"
serve_ends 8 6 "mpirun killed: the service ends"
within 5 all_gone "${ranks[@]}" || fail "mpirun killed: its ranks are gone" "$run/mpirun.log"
rm -f "$shm"/* # this much a killed mpirun leaves behind (docs/operations.md)
left_nothing "mpirun killed"

serve coordinator "${four[@]}"
ready
stream coordinator
victim=$(mpirun_pid)
mapfile -t ranks < <(rank_pids)
kill -KILL "$serve"
client_ends coordinator "$client" 3 6 "" "the coordinator killed: the client is told"
within 5 all_gone "$victim" "${ranks[@]}" || fail "the coordinator killed: mpirun and ranks are gone within 5 s"
ends "$serve" 1 || fail "it is dead"
rm -f "$shm"/* # its mpirun may not come to tidy up
left_nothing "the coordinator killed"
# What it left in the run directory is no hindrance.
serve coordinator "${four[@]}"
ready
kill -HUP "$serve"
serve_ends 5 0 "a new service in the same run directory, ended by SIGHUP"

# ---- a rank that hangs ----

serve hang "$demo" --tp 2
ready
mapfile -t ranks < <(rank_pids)
kill -STOP "${ranks[1]}"
within 10 grep -q "rank 1 .*has been silent for" "$log" || fail "a stopped rank is reported as silent" "$log"
ok "a stopped rank is reported as silent"
restarted() { has_state serving && ! all_alive "${ranks[@]}" && grep -q '^serving again' "$log"; }
within 30 restarted || fail "its replica is ended and started again" "$log" "$run/mpirun.log"
ok "its replica is ended and started again"
kill -INT "$serve"
serve_ends 15 0 "and the service ends on SIGINT"
left_nothing "a stopped rank"

# In mid-step: who waits for whom. Rank 3 is in the last stage with rank 2.
serve waits "${four[@]}" --hang-timeout 3
ready
mapfile -t ranks < <(rank_pids)
stream waits
kill -USR2 "${ranks[1]}"
within 10 grep -q "trail r1 on SIGUSR2: [0-9]* steps" "$run/mpirun.log" || fail "SIGUSR2 shows a rank's last steps" "$run/mpirun.log"
kill -STOP "${ranks[3]}"
within 15 grep -qE "rank 2 \(host [^)]*\) waits [0-9.]+ s in (sum|gather) #[0-9]+ for rank 3 \(host [^)]*\), which is silent since [0-9.]+ s" "$log" ||
    fail "the rank that waits for the stopped one is named, with its exchange" "$log"
grep -qE "rank 3 \(host [^)]*, pid ${ranks[3]}\) has been silent for" "$log" || fail "the stopped rank is named" "$log"
client_ends waits "$client" 10 6 "rank 3 (host" "a rank stopped in mid-step: the client is told, and who waited for whom"
serve_ends 15 8 "a rank stopped in mid-step: the service ends"
grep -qE "trail r2 .* (in (sum|gather) #[0-9]+ for rank 3|runs, exchanges)" "$run/mpirun.log" ||
    fail "the rank that waited leaves its last steps in the log" "$run/mpirun.log"
ok "and the ranks leave their last steps in the log"
left_nothing "a rank stopped in mid-step"

# ---- as one MPI job ----

if ! command -v mpirun > /dev/null; then
    echo "no mpirun in PATH: the one-job mode was not tried"
    all_well
    exit 0
fi

"$GANTRY" serve "$demo" --tp 2 --dry-run --run-dir "$dir/it's dry" > "$dir/dry" 2>&1 || fail "a dry run" "$dir/dry"
line=$(grep -A1 'would be started as:' "$dir/dry" | tail -n 1)
expect "--dry-run prints a command that runs" 0 "usage: gantry worker" bash -c "$line --help"
[ ! -e "$dir/it's dry" ] || fail "a dry run makes no run directory"

job() { # NAME ARGS...: in place of `serve`
    run=$dir/$1
    log=$dir/$1.log
    shift
    mpirun --oversubscribe --bind-to none -n 4 "$GANTRY" serve "$@" --listen 127.0.0.1:0 --run-dir "$run" \
        > "$log" 2>&1 < /dev/null &
    serve=$!
    owner= # a child of rank 0
    started+=("$serve")
}

job one "${four[@]}" --grace $((10 * slow))
ready
[ "$("$GANTRY" generate --connect "$at" "Once" --max-tokens 5 --json | grep -o '"id":' | wc -l)" -eq 5 ] ||
    fail "one job: 5 tokens come" "$log"
ok "one job: 5 tokens come"
generate one "Once" --ignore-eos --max-tokens 600
within 10 has_text one || fail "one job: a stream runs" "$log"
kill -USR1 "$serve"
client_ends one "$client" 20 0 "" "one job: SIGUSR1 lets a stream end"
serve_ends 10 0 "one job: and then the job, with code 0"
left_nothing "one job, SIGUSR1"

job interrupted "$demo" --tp 2 --pp 2
ready
kill -INT "$serve"
ends "$serve" 10 || fail "one job: it ends on SIGINT" "$log"
ok "one job: it ends on SIGINT"
left_nothing "one job, SIGINT"

job death "${four[@]}"
ready
mapfile -t ranks < <(rank_pids)
stream death
kill -KILL "${ranks[3]}"
client_ends death "$client" 5 6 "" "one job, a rank killed: the client is told"
ends "$serve" 10 || fail "one job, a rank killed: it ends" "$log"
[ "$code" -ne 0 ] || fail "one job, a rank killed: its code is not 0" "$log"
left_nothing "one job, a rank killed"

job refused "$demo" --tp 3
ends "$serve" 15 || fail "one job: a plan that fails ends it" "$log"
[ "$code" -ne 0 ] || fail "one job: a plan that fails: its code is not 0" "$log"
[ "$(grep -c 'tp 3: 8 heads' "$log")" -eq 1 ] || fail "one job: a plan that fails says so once" "$log"
left_nothing "one job, a plan that fails"

all_well
