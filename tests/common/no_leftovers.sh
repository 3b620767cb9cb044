#!/usr/bin/env bash
# tests/common/no_leftovers.sh MARKER [SECONDS] - assert that a test has left no process behind.
#
# MARKER is a string that only this test's processes carry in their command line or environment: its
# run folder, or NAME=VALUE that it exported. Processes named gantry, mpirun, orted, prted or srun
# that carry it get SECONDS (default 5) to end; those that are left are printed, with exit 1. They
# are not killed: what is left is the finding, and the caller may want to look at it.
set -euo pipefail

marker=${1:?"no_leftovers.sh MARKER [SECONDS]"}
seconds=${2:-5}

leftovers() {
    local dir comm known
    for dir in /proc/[0-9]*; do
        comm=$(cat "$dir/comm" 2> /dev/null) || continue
        case $comm in
            gantry* | mpirun | mpiexec | orted | prted | prterun | srun | slurm* | munged) ;;
            *) continue ;;
        esac
        # A zombie has ended; its parent, perhaps the test itself, only has not looked yet.
        if grep -q '^State:[[:space:]]*Z' "$dir/status" 2> /dev/null; then continue; fi
        # Into a variable, not a pipe: grep -q leaves at the first hit, tr then dies of SIGPIPE, and
        # pipefail would call that "no hit".
        known=$({ tr '\0' '\n' < "$dir/environ"; tr '\0' ' ' < "$dir/cmdline"; } 2> /dev/null || true)
        case $known in *"$marker"*) ;; *) continue ;; esac
        echo "${dir#/proc/} $(tr '\0' ' ' < "$dir/cmdline" 2> /dev/null || echo "$comm")"
    done
}

for ((i = 0; i < seconds * 10; i++)); do
    if [ -z "$(leftovers)" ]; then exit 0; fi
    sleep 0.1
done
left=$(leftovers)
if [ -z "$left" ]; then exit 0; fi
echo "processes left behind by \"$marker\" after $seconds s:"
printf '%s\n' "$left"
exit 1
