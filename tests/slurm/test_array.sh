#!/usr/bin/env bash
# tests/slurm/test_array.sh - a coordinator as one job, its replicas as the elements of an array job (the scripts of
# cluster/deploy), each of tp 1 x pp 2 over two nodes of its own. One element is cancelled in mid-stream; it loses no token.
# shellcheck source=tests/slurm/lib.sh
. "$(dirname "$0")/lib.sh"

cluster 5
kill_wait 10
wanted 1 2 3 4
deploy=$GANTRY_SOURCE_DIR/cluster/deploy
export GANTRY GANTRY_MODEL=$model GANTRY_DIR=$dir/run GANTRY_LISTEN=127.0.0.1:$port GANTRY_REQUEUES=0
rm -rf "$dir/run" "$dir/job.log"
mkdir -m 700 "$dir/run"
(umask 077 && echo "array of replicas" > "$dir/run/secret")

job=$(on_head sbatch --parsable -o "$dir/job.log" "$deploy/gantry-coordinator.sbatch")
array=$(on_head sbatch --parsable --array=0-1 -N2 -o "$dir/replica-%a.log" "$deploy/gantry-replica.sbatch" --tp 1 --pp 2 --threads 1)
serving() { [ "$(status | grep -c '^replica .* serving ')" -eq "$1" ]; }
within 60 serving 2 || fail "both replicas serve" "$dir/replica-0.log" "$dir/replica-1.log"
ok "two elements of an array have joined a coordinator that is a job of its own"

disturbed lost 1 2 3 4
on_head scancel "${array}_1"
answers_well lost
same lost 1 2 3 4
within 40 serving 1 || fail "one replica is left"
ok "one element is cancelled in mid-stream: 4 streams as they would have been"

on_head scancel "$job"
within 60 job_gone || fail "the coordinator's job is gone"
array_gone() { [ -z "$(on_head squeue -h -j "$array" -o %T 2> /dev/null)" ]; }
within 40 array_gone || fail "the replica's job ends with the service" "$dir/replica-0.log"
ok "the coordinator's end is the end of what has joined it"
all_well
