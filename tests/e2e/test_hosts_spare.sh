#!/usr/bin/env bash
# tests/e2e/test_hosts_spare.sh - a host loses its power (network namespaces) and its replica comes back on a spare one.
#
# Two replicas of two stages over five hosts in two racks; the fifth is spare. The host of a stage is gone in mid-stream, processes
# and link at once: the replica must come back with that stage on the spare host, and the streams must have the tokens that they would
# have had. Then the spare one goes as well: the replica must come back on the one host that it has left, which has a second slot.
# shellcheck source=tests/common/hosts.sh
. "$(dirname "$0")/../common/hosts.sh"

hosts_up 5
wanted 1 2 3 4

while read -r i rest; do echo "$(host "$i") $rest"; done > "$dir/hostfile" << 'LIST'
1 slots=1 rack=r1
2 slots=1 rack=r1
3 slots=2 rack=r2
4 slots=1 rack=r2
5 slots=1 rack=r2
LIST
on_head "$GANTRY" serve "$model" --tp 1 --pp 2 --replicas 2 --hostfile "$dir/hostfile" --dry-run > "$dir/plan" || fail "--dry-run"
says() { grep -qx "$1" "$dir/plan" || fail "$2" "$dir/plan"; }
says "replica 0: $(host 1) (rank 0) in r1, $(host 2) (rank 1) in r1" "the first replica is in the first rack"
says "replica 1: $(host 3) (ranks 0-1) in r2" "the second one is in the other rack"
says "spare: $(host 4) (1 slot), $(host 5) (1 slot)" "two hosts are spare"
ok "replicas are dealt over racks"

# lose I HOSTS CLAIM: streams run, host I goes, the replica comes back on HOSTS.
lose() {
    disturbed lost 1 2 3 4
    "$hosts/netns-fail" "$(host "$1")" crash
    answers_well lost
    same lost 1 2 3 4
    came_back() {
        status > "$dir/status"
        grep -q '^serving ' "$dir/status" && grep -q "hosts: $1" "$dir/status"
    }
    within 60 came_back "$2" || fail "$3" "$dir/status"
    ok "$3: $(sed -n "s/^  hosts: \($2\)/\1/p" "$dir/status")"
}

slots 1=1 2=1 3=1 4=1 5=2
serve --replicas 2 --tp 1 --pp 2 --hostfile "$dir/hostfile" --hang-timeout 3 --restarts 3
lose 4 "$(host 3) (rank 0), $(host 5) (rank 1); did not answer: $(host 4)" "a stage goes to the spare host"
lose 3 "$(host 5) (ranks 0-1); did not answer: $(host 3), $(host 4)" "no host is spare: both go to the one that is left"
stop
ok "it ends in order"
all_well
