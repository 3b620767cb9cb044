#!/usr/bin/env bash
# tests/e2e/test_join.sh - replicas that someone else starts under an mpirun of their own: they attach
# and take traffic, go and come again, end with the service; and every refusal with its sentence and
# exit code (6, a wrong secret 7).
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
export LC_ALL=C

if ! command -v mpirun > /dev/null; then
    echo "no mpirun in PATH: nobody can join"
    exit 77
fi
umask 077
secret=$dir/secret
echo "correct horse battery staple" > "$secret"

# joiner NAME RANKS ARGS...: a job in the background; sets $joiner (pid), $jlog.
joiner() {
    jlog=$dir/$1.log
    local n=$2
    shift 2
    mpirun --oversubscribe --bind-to none -n "$n" "$GANTRY" worker --join "$control" --secret-file "$secret" \
        --threads 1 "$@" > "$jlog" 2>&1 < /dev/null &
    joiner=$!
    started+=("$joiner")
}

# refused CLAIM CODE WORDS RANKS ARGS...: such a job ends by itself.
refused() {
    local claim=$1 want=$2 words=$3 n=$4
    shift 4
    expect "$claim" "$want" "$words" mpirun --oversubscribe --bind-to none -n "$n" "$GANTRY" worker \
        --join "$control" --threads 1 "$@"
}

joiner_ends() { # SECONDS CODE CLAIM
    ends "$joiner" "$1" || fail "$3: it ends within $1 s" "$jlog" "$log"
    [ "$code" -eq "$2" ] || fail "$3: exit code $code, wanted $2" "$jlog" "$log"
    ok "$3"
}

replicas_in() { # STATE: how many
    "$GANTRY" status --connect "$at" --json 2> /dev/null | grep -o "\"state\":\"$1\",\"tp\"" | wc -l
}
serve_count() { [ "$(replicas_in serving)" -eq "$1" ]; }
answer() { "$GANTRY" generate --connect "$at" "Once upon a time" --max-tokens 48 --temperature 0; }

# ---- beside a replica of the service's own ----

serve own "$demo" --threads 1 --secret-file "$secret" --join-max 2 --log-level info
ready
control=127.0.0.1:$(field control_port)
alone=$(answer)

echo wrong > "$dir/wrong"
refused "a wrong secret" 7 "not authenticated|token" 1 --secret-file "$dir/wrong" "$demo"
echo secret > "$dir/open"
chmod 644 "$dir/open"
refused "a secret that others may read" 7 "$dir/open|644" 1 --secret-file "$dir/open" "$demo"
refused "no secret" 2 "--secret-file" 1 "$demo"
refused "another profile" 6 "cpu-f32-v1|cpu-bf16-v1" 2 --secret-file "$secret" "$demo" --format f32 --tp 2
refused "a smaller context" 6 "context of 128 tokens|the service promises 1024|--ctx" 1 --secret-file "$secret" "$demo" --ctx 128

spoilt=$dir/spoilt
cp -r "$demo" "$spoilt"
chmod -R u+w "$spoilt"
sed -i 's/"rope_theta": [0-9.]*/"rope_theta": 20000.0/' "$spoilt/config.json"
! cmp -s "$demo/config.json" "$spoilt/config.json" || fail "the script changes config.json"
refused "another model" 6 "description has digest|the service's has" 2 --secret-file "$secret" "$spoilt" --pp 2
cp "$demo/config.json" "$spoilt/config.json"
size=$(stat -c %s "$spoilt/model.safetensors")
printf '\001\002' | dd of="$spoilt/model.safetensors" bs=1 seek=$((size - 64)) conv=notrunc status=none
refused "other weights" 6 "has loaded weights with digest|the service has" 2 --secret-file "$secret" "$spoilt" --tp 2
refused "a plan that is not the job's size" 6 "is 4 ranks, mpirun started 2" 2 --secret-file "$secret" "$demo" --tp 2 --pp 2

joiner deep 2 "$demo" --tp 1 --pp 2
deep=$joiner
joiner wide 2 "$demo" --tp 2 --pp 1
wide=$joiner
within 60 serve_count 3 || fail "two jobs of 2 ranks have joined" "$log" "$jlog"
ok "two jobs of 2 ranks have joined"
refused "a third where two may join" 6 "2 replicas have joined, and at most 2 may (--join-max)" 1 --secret-file "$secret" "$demo"
for i in 1 2 3 4 5 6; do
    answer > "$dir/answer-$i" &
    started+=("$!")
done
for pid in "${started[@]: -6}"; do ends "$pid" 60 || fail "an answer comes"; done
for i in 1 2 3 4 5 6; do
    [ "$(cat "$dir/answer-$i")" = "$alone" ] || fail "answer $i is that of the service alone" "$dir/answer-$i"
done
ok "six answers at once over three replicas of three shapes are one answer"

kill -KILL "$(pgrep -P "$deep" | head -n 1)"
joiner=$deep
jlog=$dir/deep.log
ends "$joiner" 30 || fail "a job whose rank was killed ends" "$jlog"
within 10 serve_count 2 || fail "a joined replica that is lost leaves" "$log"
"$GANTRY" status --connect "$at" | grep -q "gone  job [0-9a-f]\{32\}: rank" || fail "gantry status says that and why it is gone" "$log"
[ "$("$GANTRY" status --connect "$at" | head -n 1 | cut -d' ' -f1)" = serving ] || fail "nobody misses it" "$log"
ok "a joined replica that is lost leaves, and gantry status says why"
joiner deep2 2 "$demo" --tp 2 --pp 1
deep=$joiner
within 60 serve_count 3 || fail "its owner starts it again" "$log" "$jlog"
[ "$(replicas_in gone)" -eq 0 ] || fail "the slot of the one that left is used again" "$log"
ok "its owner starts it again, in the slot of the one that left"

kill -TERM "$serve"
serve_ends 20 0 "the service stops"
joiner=$deep
joiner_ends 10 0 "then a joined job ends with 0"
joiner=$wide
jlog=$dir/wide.log
joiner_ends 10 0 "and so does the other"

# ---- none of its own ----

# A port that was free a moment ago.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
control=127.0.0.1:$port
refused "nobody at that address" 6 "no coordinator at $control yet|no answer from the coordinator at $control within 6 s" 1 \
    --secret-file "$secret" "$demo" --attach-timeout 6 --ctx 512
joiner early 2 "$demo" --tp 2 --attach-timeout 60
early=$joiner
sleep 2
serve only "$demo" --external-only --control-listen "$control" --secret-file "$secret" --start-timeout "$slow"
ready
[ "$(answer)" = "$alone" ] || fail "the answer is the same" "$log"
ok "a job that was there before its coordinator joins"
kill -TERM "$early"
joiner=$early
ends "$joiner" 30 || fail "a job that is told to end ends" "$jlog"
within 10 has_state recovering || fail "without a replica the service recovers" "$log"
refused "other weights than the ones it served" 6 "has loaded weights with digest" 1 --secret-file "$secret" "$spoilt"
joiner again 1 "$demo"
within 60 has_state serving || fail "it serves again when another joins" "$log" "$jlog"
[ "$(answer)" = "$alone" ] || fail "the answer is the same with one rank" "$log"
ok "a service with none of its own waits for the next to join"
kill -TERM "$serve"
serve_ends 20 0 "it stops"
joiner_ends 10 0 "and takes the joined job along"

serve fresh "$demo" --external-only --secret-file "$secret"
within 30 has_state starting || fail "it waits" "$log"
control=127.0.0.1:$(field control_port)
refused "other weights than MODEL's, though it is the first" 6 "has loaded weights with digest|the service has" 1 --secret-file "$secret" "$spoilt"
kill -TERM "$serve"
serve_ends 20 0 "it stops too"

serve closed "$demo" --threads 1 --join-max 0 --secret-file "$secret"
ready
control=127.0.0.1:$(field control_port)
refused "a service that takes none" 6 "takes no replicas from elsewhere (--join-max 0)" 1 --secret-file "$secret" "$demo"
expect "waiting for nobody" 2 "--external-only|--join-max 0" "$GANTRY" serve "$demo" --replicas 0 --join-max 0
kill -TERM "$serve"
serve_ends 20 0 "it stops as well"
all_well
