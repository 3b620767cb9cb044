#!/usr/bin/env bash
# tests/slurm/test_cancel.sh - scancel in mid-stream: SLURM sends SIGTERM to every process of the job, on every node, and
# SIGKILL KillWait seconds later. What runs must end in between, with all its tokens.
# shellcheck source=tests/slurm/lib.sh
. "$(dirname "$0")/lib.sh"

cluster 4
kill_wait 60
wanted 1 2 3 4

submit -N4 --ntasks-per-node=1 -- --tp 2 --pp 1 --replicas 2 --grace $((50 * slow))
serves
disturbed cancel 1 2 3 4
on_head scancel "$job"
is_stopping() { grep -q '^stopping:' "$dir/job.log"; }
within 5 is_stopping || fail "the service stops"
code=0
on_head "$GANTRY" generate --connect "127.0.0.1:$port" x > /dev/null 2> "$dir/refused" || code=$?
[ "$code" -eq 6 ] || fail "a new request is refused: exit code $code" "$dir/refused"
answers_well cancel
same cancel 1 2 3 4
ok "scancel: 4 running streams over 4 nodes end with all their tokens, a new one is refused"
within 60 job_gone || fail "the job is gone"
grep -q '^stopped' "$dir/job.log" || fail "it ended by itself, before SLURM killed it"
[ ! -e "$dir/run/endpoint.json" ] || fail "nothing is left in the run directory"
for i in 1 2 3 4; do
    [ -z "$(daemons "$(host "$i")" gantry)$(daemons "$(host "$i")" orted)$(daemons "$(host "$i")" mpirun)" ] || fail "nothing is left on $(host "$i")"
done
ok "it ended by itself, and nothing is left on any node"
all_well
