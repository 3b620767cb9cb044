#!/usr/bin/env bash
# tests/e2e/test_hosts.sh - one service over several hosts: network namespaces, TCP between them, mpirun's remote launch.
#
# Three hosts, a stage on each; the tokens must be those that a single rank gives, the client is on a host of its own, the token is
# demanded, and the ranks' traffic really crosses the links.
# shellcheck source=tests/common/hosts.sh
. "$(dirname "$0")/../common/hosts.sh"
n_tokens=60

sent() { # bytes that left a host
    on "$(host "$1")" cat /proc/net/dev | awk '/:/ && !/lo:/ { sub(/.*:/, ""); n += $9 } END { print n }'
}
abroad() { on "$(host 3)" "$GANTRY" "$1" --connect "$head:$port" "${@:2}"; }

hosts_up 3
wanted 5

slots 1=1 2=1 3=1
before=$(sent 2)
access=(--token-file "$dir/run/token")
serve --listen "0.0.0.0:$port" --hostfile "$dir/hostfile" --tp 1 --pp 3
abroad generate "${access[@]}" "The whale" --temperature 0.9 --seed 5 --max-tokens "$n_tokens" --ignore-eos --logprobs 2 --json > "$dir/abroad.5"
same abroad 5
ok "the same tokens over three hosts"

moved=$(($(sent 2) - before))
# 60 steps of one row of 256 floats leave the middle stage, at least.
[ "$moved" -gt 61440 ] || fail "only $moved bytes left the middle stage's host"
ok "$moved bytes left the middle stage's host"

abroad status "${access[@]}" > "$dir/status"
for i in 1 2 3; do
    grep -q " $(host "$i") " "$dir/status" || fail "a rank runs on host $i" "$dir/status"
done
code=0
abroad generate "The whale" > /dev/null 2> "$dir/refused" || code=$?
[ "$code" -eq 7 ] || fail "without a token: exit code $code, wanted 7" "$dir/refused"
ok "without the token: refused"
stop
ok "it ends in order"
all_well
