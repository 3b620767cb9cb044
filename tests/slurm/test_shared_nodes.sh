#!/usr/bin/env bash
# tests/slurm/test_shared_nodes.sh - two nodes of four tasks each hold four replicas of tp 2, two on a node, on cores of their own. A
# killed rank's replica comes back to the cores that it had.
# shellcheck source=tests/slurm/lib.sh
. "$(dirname "$0")/lib.sh"

cluster 2
kill_wait 60
wanted 1 2 3 4
[ "$(nproc)" -ge 2 ] || skip "one core cannot be divided"

submit -N2 --ntasks-per-node=4 -- --tp 2 --pp 1 --hang-timeout 20
serves
grep -q "hosts: $(host 1):4 $(host 2):4\$" "$dir/job.log" || fail "the allocation is printed"
replica_pids() { # REPLICA HOST
    local pid
    for pid in $(daemons "$2" gantry); do
        case $(tr '\0' ' ' < "/proc/$pid/cmdline") in *" --replica $1 "*) echo "$pid" ;; esac
    done
}
masks() { # HOST: "replica:cores" of each of its replicas
    local replica pid
    for replica in 0 1 2 3; do
        for pid in $(replica_pids "$replica" "$1"); do echo "$replica:$(taskset -cp "$pid" | sed 's/.*: //')"; done
    done | sort -u
}
for i in 1 2; do
    [ "$(masks "$(host "$i")" | wc -l)" -eq 2 ] || fail "two replicas on node $i: $(masks "$(host "$i")")"
    [ "$(masks "$(host "$i")" | cut -d: -f2 | sort -u | wc -l)" -eq 2 ] || fail "on cores of their own: $(masks "$(host "$i")")"
done
before=$(masks "$(host 2)")
ok "2 nodes of 4 tasks: 4 replicas of tp 2, two on a node, replica:cores $(masks "$(host 1)" | tr '\n' ' ')and ${before//$'\n'/ }"

disturbed shared 1 2 3 4
kill -KILL "$(replica_pids "${before%%:*}" "$(host 2)" | head -n 1)"
answers_well shared
same shared 1 2 3 4
is_lost() { grep -q "replica ${before%%:*}.1 is lost" "$dir/job.log"; }
within 20 is_lost || fail "the loss is named"
within 60 all_serve || fail "its replica is started again"
[ "$(masks "$(host 2)")" = "$before" ] || fail "on the cores that it had: $(masks "$(host 2)"), $before before"
ok "a killed rank: 4 streams as they would have been, its replica comes back to its cores"
on_head scancel "$job"
within 60 job_gone || fail "the job is gone"
all_well
