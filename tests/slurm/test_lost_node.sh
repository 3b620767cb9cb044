#!/usr/bin/env bash
# tests/slurm/test_lost_node.sh - two replicas of tp 1 x pp 2 over four nodes of a real SLURM: the last node loses its
# power in mid-stream, processes and link at once. SLURM notices half a minute later, gantry within --hang-timeout.
#
# Every stream must have the tokens and log-probabilities of one rank without neighbours, the job must go on
# (--no-kill), and the service with it.
# shellcheck source=tests/slurm/lib.sh
. "$(dirname "$0")/lib.sh"

cluster 4
wanted 1 2 3 4

submit --no-kill -N4 --ntasks-per-node=1 -- --tp 1 --pp 2 --hang-timeout 3 --restarts 1
serves
grep -q '^SLURM job [0-9]*: 4 nodes, 4 ranks' "$dir/job.log" || fail "the allocation is printed"
grep -q "hosts: $(host 1):1 $(host 2):1 $(host 3):1 $(host 4):1\$" "$dir/job.log" || fail "and its hosts"
status > "$dir/status"
for host in "$(host 1)" "$(host 2)" "$(host 3)" "$(host 4)"; do
    grep -q " $host " "$dir/status" || fail "a rank runs on $host" "$dir/status"
done
ok "without a word about hosts, threads or replicas: 2 replicas of tp 1 x pp 2 on 4 nodes"
disturbed crash 1 2 3 4
"$hosts/netns-fail" "$(host 4)" crash
answers_well crash
same crash 1 2 3 4
ok "a node without power in mid-stream: 4 streams have the tokens and log-probabilities that they would have had"
within 20 grep -q "replica 1.1 is lost: rank . (host ${GX_PREFIX}[34]" "$dir/job.log" || fail "the lost replica's rank and host are named"
job_runs || fail "the job runs on"
status | grep -qE '^(degraded|serving) ' || fail "so does the service"
ok "job and service go on; the log names a rank and a host of the lost replica"
on_head scancel "$job"
"$hosts/netns-fail" "$(host 4)" mend # until then SLURM waits for the node's answer
"$hosts/slurm-up" -c 4 4 > "$dir/up.log" 2>&1 || fail "the cluster comes up again" "$dir/up.log"
within 40 job_gone || fail "the job is gone after scancel"
ok "scancel ends it, and the node comes back"
all_well
