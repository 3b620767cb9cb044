#!/usr/bin/env bash
# tests/slurm/test_srun.sh - ranks by srun --mpi=pmix: two replicas over four nodes, one killed rank in mid-stream, and scancel.
# shellcheck source=tests/slurm/lib.sh
. "$(dirname "$0")/lib.sh"

cluster 4
kill_wait 60
wanted 1 2 3 4

code=0
on_head env -u SLURM_JOB_ID "$GANTRY" serve "$model" --launcher srun --dry-run > "$dir/out" 2>&1 || code=$?
[ "$code" -eq 3 ] || fail "outside of a job --launcher srun is refused: code $code" "$dir/out"
grep -q 'inside a job of SLURM' "$dir/out" || fail "it says why" "$dir/out"

# SLURM's PMIx gives up after a few tries where a busy machine is late; such a start hangs and is made again.
submit -N4 --ntasks-per-node=1 -- --tp 1 --pp 2 --launcher srun --hang-timeout 20 --grace $((50 * slow)) --start-timeout $((25 * slow))
serves
grep -q 'starting 2 ranks with srun' "$dir/job.log" || fail "srun starts the ranks"
status > "$dir/status"
for host in "$(host 1)" "$(host 2)" "$(host 3)" "$(host 4)"; do
    grep -q " $host " "$dir/status" || fail "a rank runs on $host" "$dir/status"
done
[ "$(on_head squeue -h -s -j "$job" -o %i | grep -c '\.[0-9]*$')" -eq 2 ] || fail "there is a step per replica"
ok "2 replicas of tp 1 x pp 2 on 4 nodes, a step each"

disturbed killed 1 2 3 4
kill -KILL "$(daemons "$(host 4)" gantry)"
answers_well killed
same killed 1 2 3 4
within 10 grep -q "replica 1\.[0-9]* is lost: rank [01] (host ${GX_PREFIX}[34]" "$dir/job.log" || fail "the loss is named"
serves
ok "a killed rank: 4 streams as they would have been, and its replica is started again: $(sed -n 's/.*replica 1\.[0-9]* is lost: //p' "$dir/job.log" | tail -n 1)"

disturbed cancel 1 2 3 4
on_head scancel "$job"
answers_well cancel
same cancel 1 2 3 4
within 60 job_gone || fail "the job is gone"
grep -q '^stopped' "$dir/job.log" || fail "it ended by itself, before SLURM killed it"
ok "scancel: 4 running streams end with all their tokens"
[ ! -e "$dir/run/hosts-0.ranks" ] || fail "no list of ranks is left"
all_well
