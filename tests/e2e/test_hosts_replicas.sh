#!/usr/bin/env bash
# tests/e2e/test_hosts_replicas.sh - two replicas over four hosts (network namespaces), once of tp 1 x pp 2 and once of
# tp 2 x pp 1, and once more with a second network between the hosts, named by --network.
#
# All streams must be those of one rank without neighbours, to the last bit of the log-probabilities; the bytes on every
# host's links prove that the ranks talk over TCP, and over which network. Needs root and the scripts in
# GANTRY_SHARED_DIR/hosts.
set -euo pipefail
hosts=$GANTRY_SHARED_DIR/hosts
[ -x "$hosts/netns-up" ] || { echo "skipped: no $hosts"; exit 77; }
[ "$(id -u)" = 0 ] || { echo "skipped: network namespaces need root"; exit 77; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/gantry-hosts-XXXXXX")
export GX_PREFIX=r$(($$ % 100000))n GX_NET=10.81.0 GX_STATE=$dir/gx XDG_CACHE_HOME=$dir/cache
second=10.82.0
pid=

cleanup() {
    if [ -n "$pid" ]; then
        kill -KILL "$pid" 2> /dev/null || true
        wait "$pid" 2> /dev/null || true
    fi
    "$hosts/netns-down" -k > /dev/null 2>&1 || true
    rm -rf "$dir"
}
trap cleanup EXIT

if ! "$hosts/netns-up" 4 > "$dir/up.log" 2>&1; then
    echo "skipped: no network namespaces here: $(tail -1 "$dir/up.log")"
    exit 77
fi
# shellcheck disable=SC1091
. "$GX_STATE/mpi.env"
# Which network MPI takes is what is tested here.
unset OMPI_MCA_oob_tcp_if_include OMPI_MCA_btl_tcp_if_include
model=$GANTRY_SOURCE_DIR/model/demo
host() { echo "$GX_PREFIX$1"; }
on() { "$hosts/netns-rsh" -E "$@"; }
fail() {
    echo "FAIL  $1"
    tail -n 30 "$dir/serve.log"
    exit 1
}

serve() { # options...
    rm -rf "$dir/run"
    on "$(host 1)" "$GANTRY" serve "$model" --run-dir "$dir/run" --listen 127.0.0.1:50301 --threads 1 "$@" > "$dir/serve.log" 2>&1 &
    pid=$!
    for _ in $(seq 1200); do
        if on "$(host 1)" "$GANTRY" status --connect 127.0.0.1:50301 2> /dev/null | grep -q '^serving '; then return 0; fi
        kill -0 "$pid" 2> /dev/null || break
        sleep 0.05
    done
    fail "the service serves with all its replicas"
}

stop() {
    kill -INT "$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' "$dir/run/endpoint.json" | head -1)"
    wait "$pid" || fail "the service ends in order"
    pid=
}

ask_all() { # NAME: four streams at once, ids and log-probabilities into NAME.SEED
    local seed clients=() client
    for seed in 1 2 3 4; do
        on "$(host 1)" "$GANTRY" generate --connect 127.0.0.1:50301 "The whale" --temperature 0.9 --seed "$seed" --max-tokens 200 \
            --ignore-eos --logprobs 2 --json --timeout 120 > "$dir/got.$seed" 2> "$dir/err.$seed" &
        clients+=("$!")
    done
    for client in "${clients[@]}"; do wait "$client" || fail "$1: a stream ends well: $(cat "$dir"/err.*)"; done
    for seed in 1 2 3 4; do
        grep -o '"tokens":.*' "$dir/got.$seed" | grep -oE '"(id|logprob)":[-0-9.e]+' > "$dir/$1.$seed"
        [ "$(grep -c '"id"' "$dir/$1.$seed")" -ge 200 ] || fail "$1: 200 tokens come"
        [ "$1" = want ] || cmp "$dir/want.$seed" "$dir/$1.$seed" || fail "$1: stream $seed has the tokens and log-probabilities of one rank"
    done
}

sent() { # HOST INTERFACE: bytes that left it
    on "$(host "$1")" cat /proc/net/dev | awk -v dev="$2:" '$1 == dev { print $10 }'
}
# Of 4 streams half run on each replica; a token moves 256 floats at least, over every link of the replica.
least=$((2 * 200 * 256 * 4))
crossed() { # CLAIM INTERFACE HOST...: at least that much since `before`
    local claim=$1 dev=$2 i n all=()
    shift 2
    for i in "$@"; do
        n=$(($(sent "$i" "$dev") - before[i]))
        [ "$n" -ge "$least" ] || fail "$claim: only $n bytes left host $i by $dev, $least are due"
        all+=("$n")
    done
    echo "ok    $claim: bytes that left hosts $*: ${all[*]}"
}
note() { # INTERFACE
    local i
    before=()
    for i in 1 2 3 4; do before[i]=$(sent "$i" "$1"); done
}

serve --tp 1 --pp 1
ask_all want
stop

for i in 1 2 3 4; do echo "$(host "$i") slots=1"; done > "$dir/hostfile"
serve --replicas 2 --tp 1 --pp 2 --hostfile "$dir/hostfile"
note eth0
ask_all pp2
# The first stage of each sends the residual on; the tokens that come back are few.
crossed "2 replicas of tp 1 x pp 2, equal streams" eth0 1 3
stop
serve --replicas 2 --tp 2 --pp 1 --hostfile "$dir/hostfile"
note eth0
ask_all tp2
crossed "2 replicas of tp 2 x pp 1, equal streams" eth0 1 2 3 4
stop

# A second cable to each host, on a bridge of its own. The hosts' names still mean the first.
ip -n "${GX_PREFIX}sw" link add br1 type bridge
ip -n "${GX_PREFIX}sw" link set br1 up
for i in 1 2 3 4; do
    ip -n "${GX_PREFIX}sw" link add "b$i" type veth peer name eth1 netns "$(host "$i")"
    ip -n "${GX_PREFIX}sw" link set "b$i" master br1 up
    ip -n "$(host "$i")" addr add "$second.$i/24" dev eth1
    ip -n "$(host "$i")" link set eth1 up
done
serve --replicas 2 --tp 2 --pp 1 --hostfile "$dir/hostfile" --network "$second.0/24"
tr '\0' ' ' < "/proc/$(on "$(host 1)" "$GANTRY" status --connect 127.0.0.1:50301 --json | grep -o '"pid":[0-9]*' | head -n 1 | cut -d: -f2)/cmdline" > "$dir/command"
grep -q -- "--coordinator $second.1:" "$dir/command" || fail "ranks dial the coordinator over that network: $(cat "$dir/command")"
note eth1
first=()
for i in 1 2 3 4; do first[i]=$(sent "$i" eth0); done
ask_all network
crossed "the same over --network $second.0/24" eth1 1 2 3 4
for i in 1 2 3 4; do
    n=$(($(sent "$i" eth0) - first[i]))
    [ "$n" -lt $((least / 4)) ] || fail "$n bytes left host $i by its first network"
done
echo "ok    and next to nothing over the first network"
stop
code=0
on "$(host 1)" "$GANTRY" serve "$model" --hostfile "$dir/hostfile" --network 10.99.0.0/16 --run-dir "$dir/run" > "$dir/serve.log" 2>&1 || code=$?
[ "$code" -eq 3 ] || fail "a network that this host is not in: exit code $code, wanted 3"
grep -q "no address in --network 10.99.0.0/16; it has .*$second.1 on eth1" "$dir/serve.log" || fail "it says what there is"
echo "ok    a network that this host is not in is refused with those that it is in"
