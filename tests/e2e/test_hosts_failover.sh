#!/usr/bin/env bash
# tests/e2e/test_hosts_failover.sh - two replicas over four hosts (network namespaces): a host loses its power in mid-stream.
#
# Each replica gets two hosts of the hostfile, a stage on each. Streams run on both; then the last host is gone, processes and
# link at once. The log must name its rank and host within --hang-timeout and some, every stream must end with the tokens and
# log-probabilities of an undisturbed service, and the service must go on, degraded, with the replica that is left.
# shellcheck source=tests/common/hosts.sh
. "$(dirname "$0")/../common/hosts.sh"

hosts_up 4
wanted 1 2 3 4

slots 1=1 2=1 3=1 4=1
serve --replicas 2 --tp 1 --pp 2 --hostfile "$dir/hostfile" --hang-timeout 3 --restarts 1
disturbed lost 1 2 3 4
"$hosts/netns-fail" "$(host 4)" crash
began=$(now_ms)
is_named() { grep -q "replica 1.1 is lost: rank . (host ${GX_PREFIX}[34]" "$dir/serve.log"; }
within 10 is_named || fail "the lost replica's rank and host are named"
ok "the loss of a host is named after $(($(now_ms) - began)) ms: $(sed -n 's/.*replica 1.1 is lost: //p' "$dir/serve.log")"
answers_well lost
same lost 1 2 3 4
ok "4 streams have the tokens and log-probabilities that they would have had"
is_known() { # when its job has been tried again
    status > "$dir/status"
    grep -q 'did not answer: ' "$dir/status"
}
within 30 is_known || fail "status says which host did not answer" "$dir/status"
grep -q '^degraded ' "$dir/status" || fail "status says degraded" "$dir/status"
grep -q 'lost .*, the last: ' "$dir/status" || fail "and why" "$dir/status"
grep -q "did not answer: .*$(host 4)" "$dir/status" || fail "and which host did not answer" "$dir/status"
ok "the service goes on, degraded, and says why"
stop
ok "it ends in order"
all_well
