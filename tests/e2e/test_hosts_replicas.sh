#!/usr/bin/env bash
# tests/e2e/test_hosts_replicas.sh - two replicas over four hosts (network namespaces), once of tp 1 x pp 2 and once of
# tp 2 x pp 1, and once more with a second network between the hosts, named by --network.
#
# All streams must be those of one rank without neighbours, to the last bit of the log-probabilities; the bytes on every
# host's links prove that the ranks talk over TCP, and over which network.
# shellcheck source=tests/common/hosts.sh
. "$(dirname "$0")/../common/hosts.sh"
n_tokens=200

hosts_up 4
# Which network MPI takes is what is tested here.
unset OMPI_MCA_oob_tcp_if_include OMPI_MCA_btl_tcp_if_include

ask_all() { # NAME: four streams at once, those of one rank
    local seed
    for seed in 1 2 3 4; do ask "$1" "$seed"; done
    answers_well "$1"
    same "$1" 1 2 3 4
}

sent() { # HOST INTERFACE: bytes that left it
    on "$(host "$1")" cat /proc/net/dev | awk -v dev="$2:" '$1 == dev { print $10 }'
}
# Of 4 streams some run on each replica, two if their clients start at one moment; a token moves 256 floats
# at least, over every link of the replica.
least=$((n_tokens * 256 * 4))
crossed() { # CLAIM INTERFACE HOST...: at least that much since `before`
    local claim=$1 dev=$2 i n all=()
    shift 2
    for i in "$@"; do
        n=$(($(sent "$i" "$dev") - before[i]))
        [ "$n" -ge "$least" ] || fail "$claim: only $n bytes left host $i by $dev, $least are due"
        all+=("$n")
    done
    ok "$claim: bytes that left hosts $*: ${all[*]}"
}
note() { # INTERFACE
    local i
    before=()
    for i in 1 2 3 4; do before[i]=$(sent "$i" "$1"); done
}

wanted 1 2 3 4

slots 1=1 2=1 3=1 4=1
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
    ip -n "$(host "$i")" addr add "$second_net.$i/24" dev eth1
    ip -n "$(host "$i")" link set eth1 up
done
serve --replicas 2 --tp 2 --pp 1 --hostfile "$dir/hostfile" --network "$second_net.0/24"
rank=$(on_head "$GANTRY" status --connect "127.0.0.1:$port" --json | grep -o '"pid":[0-9]*' | head -n 1 | cut -d: -f2)
tr '\0' ' ' < "/proc/$rank/cmdline" > "$dir/command"
grep -q -- "--coordinator $second_net.1:" "$dir/command" || fail "ranks dial the coordinator over that network: $(cat "$dir/command")"
note eth1
first=()
for i in 1 2 3 4; do first[i]=$(sent "$i" eth0); done
ask_all network
crossed "the same over --network $second_net.0/24" eth1 1 2 3 4
for i in 1 2 3 4; do
    n=$(($(sent "$i" eth0) - first[i]))
    [ "$n" -lt $((least / 2)) ] || fail "$n bytes left host $i by its first network"
done
ok "and next to nothing over the first network"
stop
code=0
on_head "$GANTRY" serve "$model" --hostfile "$dir/hostfile" --network 10.99.0.0/16 --run-dir "$dir/run" > "$dir/serve.log" 2>&1 || code=$?
[ "$code" -eq 3 ] || fail "a network that this host is not in: exit code $code, wanted 3"
grep -q "no address in --network 10.99.0.0/16; it has .*$second_net.1 on eth1" "$dir/serve.log" || fail "it says what there is"
ok "a network that this host is not in is refused with those that it is in"
all_well
