#!/usr/bin/env bash
# tests/slurm/test_spare.sh - five nodes of a real SLURM for two replicas of tp 1 x pp 2: one is spare. A node loses its power in
# mid-stream; its replica comes back on the spare node, although the job's environment still names the dead one.
# shellcheck source=tests/slurm/lib.sh
. "$(dirname "$0")/lib.sh"

cluster 5
wanted 1 2 3 4

submit --no-kill -N5 --ntasks-per-node=1 -- --tp 1 --pp 2 --hang-timeout 3
serves
[ "$(status | grep -c '^replica .* serving ')" -eq 2 ] || fail "5 nodes hold 2 replicas of 2 ranks"
used=$(status | grep -o " ${GX_PREFIX}[1-5] " | sort -u | tr -d ' \n')
lost='' spare=''
for i in 2 3 4 5; do
    case $used in
        *"$(host "$i")"*) lost=$i ;;
        *) spare=$i ;;
    esac
done
[ -n "$spare" ] || fail "one node is spare: $used"
disturbed spare 1 2 3 4
"$hosts/netns-fail" "$(host "$lost")" crash
answers_well spare
same spare 1 2 3 4
ok "node $lost without power in mid-stream: 4 streams as they would have been"
on_spare() { all_serve && status | grep -q " $(host "$spare") "; }
within 60 on_spare || fail "the replica comes back on node $spare"
! status | grep -q " $(host "$lost") " || fail "and no rank on node $lost"
for seed in 1 2 3 4; do ask again "$seed"; done
answers_well again
same again 1 2 3 4
ok "its replica comes back on node $spare, and answers the same"
on_head scancel "$job"
"$hosts/netns-fail" "$(host "$lost")" mend # until then SLURM waits for the node's answer
"$hosts/slurm-up" -c 4 5 > "$dir/up.log" 2>&1 || fail "the cluster comes up again" "$dir/up.log"
within 60 job_gone || fail "the job is gone after scancel"
all_well
