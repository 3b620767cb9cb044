#!/usr/bin/env bash
# tests/slurm/test_sbatch.sh - the shipped script (cluster/deploy/gantry.sbatch): from a submission to tokens; USR1 to it
# alone; a service that fails goes back to the queue and starts again there, under the same job id.
# shellcheck source=tests/slurm/lib.sh
. "$(dirname "$0")/lib.sh"

cluster 3
kill_wait 60
wanted 1 2
script=$GANTRY_SOURCE_DIR/cluster/deploy/gantry.sbatch
export GANTRY GANTRY_MODEL=$model GANTRY_DIR=$dir/run GANTRY_LISTEN=127.0.0.1:$port

shipped() { # SBATCH-OPTIONS... -- SERVE-OPTIONS...
    local options=()
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    queue "${options[@]}" "$script" "$@"
}

shipped -N2 -t 10 -- --tp 1 --pp 2 --grace $((50 * slow))
on_head "$GANTRY" status --run-dir "$GANTRY_DIR" --wait 90 || fail "the run directory says where the service is, once it is there"
serves
on_head "$GANTRY" generate --run-dir "$GANTRY_DIR" Once --max-tokens 4 > "$dir/once" || fail "and holds its token"
[ -s "$dir/once" ] || fail "an answer"
disturbed usr1 1 2
on_head scancel --batch --signal=USR1 "$job"
answers_well usr1
same usr1 1 2
within 60 job_gone || fail "the job is gone"
grep -q '^stopped' "$dir/job.log" || fail "it ended by itself"
! grep -q 'back to the queue' "$dir/job.log" || fail "a stopped service stays stopped"
ok "sbatch gantry.sbatch serves; USR1 to the script drains it, and it stays stopped"

shipped -N2 -t 10 -- --tp 2 --pp 1 --restarts 0
serves
for i in 1 2; do
    for pid in $(daemons "$(host "$i")" gantry); do
        case $(tr '\0' ' ' < "/proc/$pid/cmdline") in *" worker "*) kill -KILL "$pid" 2> /dev/null || true ;; esac
    done
done
requeued() { grep -q 'back to the queue: it ended with code 6' "$dir/job.log"; }
within 30 requeued || fail "a service that cannot go on gives its job back to the queue"
within 90 all_serve || fail "it is started again, and serves"
grep -q "^SLURM job $job (requeued, start 2)" "$dir/job.log" || fail "under the same job id"
for seed in 1 2; do ask again "$seed"; done
answers_well again
same again 1 2
ok "a service that has failed starts again under the same job id, with the same answers"
on_head scancel "$job"
within 60 job_gone || fail "the job is gone"
all_well
