#!/usr/bin/env bash
# tests/slurm/test_wall.sh - the job's time limit: the service refuses requests and lets running answers end before SLURM
# ends the job, by itself (--wall-margin) or told by sbatch --signal; a job that is too short says so at once.
# shellcheck source=tests/slurm/lib.sh
. "$(dirname "$0")/lib.sh"

cluster 2
kill_wait 40
wanted 1 2

submit -t 1 -N2 --ntasks-per-node=1 -- --tp 1 --pp 2 --wall-margin 80
within 30 job_gone || fail "a job that is shorter than the margin ends"
grep -q 'ends in [0-9]* s, and --wall-margin is 80 s' "$dir/job.log" || fail "it says why"
ok "a job that is shorter than --wall-margin is refused"

submit -t 1 -N2 --ntasks-per-node=1 -- --tp 1 --pp 2 --wall-margin 50
serves
grep -q 'requests are refused from 50 s before that on, and running answers then have 40 s' "$dir/job.log" || fail "the plan for the end is printed"
grep -q "running answers have $((40 * slow - 2)) s (SLURM's KillWait is $((40 * slow)) s)" "$dir/job.log" || fail "and what scancel leaves"
is_stopping() { grep -q "^stopping before the job's end" "$dir/job.log"; }
rounds=0
while ! is_stopping; do
    for seed in 1 2; do ask wall "$seed"; done
    within 20 begun wall 1 2 || break # refused, most likely: looked at below
    within 3 is_stopping || true
    if is_stopping && streams_run; then break; fi
    answers_well wall
    same wall 1 2
    rounds=$((rounds + 1))
    rm -f "$dir"/wall.[12]
done
within 20 is_stopping || fail "it stops by itself"
for i in "${!clients[@]}"; do
    if wait "${clients[i]}"; then
        same wall $((i + 1))
    else
        grep -qE 'Failed to connect|refused|shutting down' "$dir/wall.$((i + 1)).err" ||
            fail "a stream that began too late is refused with a word" "$dir/wall.$((i + 1)).err"
    fi
done
clients=()
within 60 job_gone || fail "the job is gone"
grep -q '^stopped' "$dir/job.log" || fail "it ended by itself, before SLURM ended it"
! grep -q 'DUE TO TIME LIMIT' "$dir/job.log" || fail "SLURM did not have to end it"
ok "it stops by itself 50 s before the job's end; $((2 * rounds)) streams before that, all as they would have been"

submit -t 5 -N2 --ntasks-per-node=1 -- --tp 1 --pp 2
serves
for seed in 1 2; do ask batch "$seed"; done
within 20 begun batch 1 2 || fail "streams begin"
on_head scancel --batch --signal=TERM "$job"
answers_well batch
same batch 1 2
within 40 job_gone || fail "the job is gone"
grep -q '^stopped' "$dir/job.log" || fail "it ended by itself"
ok "SIGTERM to the batch script alone, as sbatch --signal=B:TERM sends it: the same"
all_well
