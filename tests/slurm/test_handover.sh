#!/usr/bin/env bash
# tests/slurm/test_handover.sh - a service outlives its job's time limit: shortly before the end it hands its streams over in the
# journal (--on-term handover), gantry.sbatch gives the job back to the queue (GANTRY_GO_ON), and the next start goes on with them.
# The clients only wait; their tokens are those of one undisturbed rank.
# shellcheck source=tests/slurm/lib.sh
. "$(dirname "$0")/lib.sh"

cluster 2
kill_wait 30
wanted 1 2 3 4
script=$GANTRY_SOURCE_DIR/cluster/deploy/gantry.sbatch
export GANTRY GANTRY_MODEL=$model GANTRY_DIR=$dir/run GANTRY_LISTEN=127.0.0.1:$port GANTRY_GO_ON=1

# 15 s to the end; under a sanitizer two minutes, in which a stream ends
minutes=$((slow > 1 ? 4 : 1)) margin=$((slow > 1 ? 120 : 45))
queue -t "$minutes" -N2 --ntasks-per-node=1 "$script" --tp 1 --pp 2 --wall-margin "$margin" --grace 0 \
    --journal "$dir/journal" --on-term handover --resume-window 120
serves
# Streams without a pause until the end of the time: each round compares, the last one is cut in two (unless the end falls between
# two rounds; the last line says which).
handed_over() { grep -q '^stopping' "$dir/job.log"; }
refused='Failed to connect|shutting down'
rounds=0 cut=''
until handed_over; do
    for seed in 1 2 3 4; do ask over "$seed" --request-id "round-$rounds-$seed" --timeout 150; done
    while streams_run; do
        if handed_over; then
            cut="with those that ran when it stopped, "
            break
        fi
        sleep 0.05
    done
    while streams_run; do sleep 0.05; done
    # A request that comes while the service goes down was never accepted; the others of its round go on as ever.
    if handed_over && grep -qsE "$refused" "$dir"/over.*.err; then
        for client in "${clients[@]}"; do wait "$client" || true; done
        clients=()
        for seed in 1 2 3 4; do grep -qE "$refused" "$dir/over.$seed.err" || same over "$seed"; done
        break
    fi
    answers_well over
    same over 1 2 3 4
    rounds=$((rounds + 1))
    [ "$rounds" -lt 400 ] || fail "the service stops before its job's end"
done
grep -q 'back to the queue: its time is over' "$dir/job.log" || within 20 grep -q 'back to the queue: its time is over' "$dir/job.log" ||
    fail "the job goes back to the queue"
within 90 all_serve || fail "it is started again, and serves"
grep -q "^SLURM job $job (requeued, start 2)" "$dir/job.log" || fail "under the same job id"
for seed in 1 2 3 4; do ask after "$seed"; done
answers_well after
same after 1 2 3 4
ok "$((4 * rounds)) streams up to the end of the job's time, ${cut}4 after it, all as they would have been"
export GANTRY_GO_ON=0
on_head scancel "$job"
within 60 job_gone || fail "the job is gone"
all_well
