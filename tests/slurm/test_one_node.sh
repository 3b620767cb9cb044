#!/usr/bin/env bash
# tests/slurm/test_one_node.sh - several replicas on one node of a real SLURM: as many as its tasks hold, each with cores of its
# own; more than that are refused, and --dry-run says what would be done.
# shellcheck source=tests/slurm/lib.sh
. "$(dirname "$0")/lib.sh"

cluster 1
kill_wait 60
wanted 1 2
cores=$(nproc)
[ "$cores" -ge 2 ] || skip "one core cannot be divided"

submit -n4 -- --tp 2 --pp 1
serves
grep -q '^SLURM job [0-9]*: 1 node, 4 ranks at most' "$dir/job.log" || fail "the allocation is printed"
grep -q 'listening on .* 2 replicas of 2 ranks' "$dir/job.log" || fail "4 tasks hold 2 replicas of 2 ranks"
masks() { # REPLICA: the cores that its ranks may use
    local pid
    for pid in $(daemons "$(host 1)" gantry); do
        case $(tr '\0' ' ' < "/proc/$pid/cmdline") in
            *" --replica $1 "*) taskset -cp "$pid" | sed 's/.*: //' ;;
        esac
    done | sort -u
}
[ "$(masks 0 | wc -l)" -eq 1 ] || fail "the ranks of a replica share its cores"
[ "$(masks 0)" != "$(masks 1)" ] || fail "replicas have cores of their own: $(masks 0) and $(masks 1)"
for seed in 1 2; do ask one "$seed"; done
answers_well one
same one 1 2
ok "4 tasks on a node: 2 replicas of tp 2, on cores $(masks 0) and $(masks 1), equal streams"
on_head scancel "$job"
within 60 job_gone || fail "the job is gone"

submit -n4 -- --tp 2 --pp 1 --replicas 3 --dry-run
within 30 job_gone || fail "a job that asks for too much ends"
grep -q "3 replicas of 2 ranks need 6 slots, SLURM job $job has 4" "$dir/job.log" || fail "it says why"
ok "3 replicas of tp 2 do not fit 4 tasks, and --dry-run says so"

submit -n4 --mem=0 -- --dry-run
within 30 job_gone || fail "a dry run ends"
grep -q '^  4 ranks = ' "$dir/job.log" || fail "without a shape all tasks are one replica's"
grep -q 'mpirun -n 4 ' "$dir/job.log" || fail "the command is printed"
ok "without a shape: one replica over all tasks"
all_well
