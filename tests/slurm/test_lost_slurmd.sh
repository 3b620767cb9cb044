#!/usr/bin/env bash
# tests/slurm/test_lost_slurmd.sh - two replicas of tp 2 x pp 1 over four nodes of a real SLURM: a node's slurmd is killed.
# Everything runs on, until SLURM takes the node for dead and ends its part of the job; streams run all that while.
#
# Every stream must have the tokens and log-probabilities of one rank without neighbours, the job must go on
# (--no-kill), and the service with it.
# shellcheck source=tests/slurm/lib.sh
. "$(dirname "$0")/lib.sh"

cluster 4
wanted 1 2 3 4

submit --no-kill -N4 --ntasks-per-node=1 -- --tp 2 --pp 1 --hang-timeout 3 --restarts 0
serves
for pid in $(daemons "$(host 4)" slurmd); do kill -KILL "$pid"; done
is_lost() { grep -q 'replica 1.1 is lost' "$dir/job.log"; }
rounds=0
until is_lost; do
    for seed in 1 2 3 4; do ask slurmd "$seed"; done
    answers_well slurmd
    same slurmd 1 2 3 4
    rounds=$((rounds + 1))
    [ "$SECONDS" -lt 150 ] || fail "SLURM ends the part of the job on the node whose slurmd is gone"
done
for seed in 1 2 3 4; do ask slurmd "$seed"; done
answers_well slurmd
same slurmd 1 2 3 4
ok "a killed slurmd: $((4 * (rounds + 1))) streams before, while and after SLURM takes the node for dead, all as they would have been"
job_runs || fail "the job runs on"
on_head scancel "$job"
within 20 job_gone || fail "the job is gone after scancel"
ok "scancel ends it"
all_well
