#!/usr/bin/env bash
# tests/slurm/test_switches.sh - four nodes of a real SLURM on two switches (topology/tree), in such an order that the host list alone
# would put each replica over both: two replicas of tp 1 x pp 2 must get a switch each.
# shellcheck source=tests/slurm/lib.sh
. "$(dirname "$0")/lib.sh"

cluster 4
kill_wait 60
# slurmctld reads the plug-in's name only when it starts.
etc=$GX_STATE/slurm/etc
printf 'SwitchName=left Nodes=%s,%s\nSwitchName=right Nodes=%s,%s\nSwitchName=top Switches=left,right\n' \
    "$(host 1)" "$(host 3)" "$(host 2)" "$(host 4)" > "$etc/topology.conf"
echo "TopologyPlugin=topology/tree" >> "$etc/slurm.conf"
for pid in $(daemons "$head" slurmctld); do kill "$pid"; done
no_ctld() { [ -z "$(daemons "$head" slurmctld)" ]; }
within 10 no_ctld || fail "slurmctld ends"
setsid "$hosts/netns-rsh" -E "$head" env -i PATH="$PATH" HOME=/root slurmctld -D -f "$etc/slurm.conf" < /dev/null > "$dir/ctld.log" 2>&1 &
knows() { on_head scontrol show topology 2> /dev/null | grep -q 'SwitchName=left Level=0'; }
within 20 knows || fail "slurmctld knows the switches" "$dir/ctld.log"
all_idle() { nodes_idle 4; }
within 40 all_idle || fail "all nodes are idle"

submit -N4 --ntasks-per-node=1 -- --tp 1 --pp 2
serves
pair() { # REPLICA: its hosts, by number
    status | awk -v r="replica $1." -v p="$GX_PREFIX" 'index($0, "replica ") == 1 { on = index($0, r) == 1 } on && index($4, p) == 1 { print $4 }' | sort | tr '\n' ' '
}
left="$(host 1) $(host 3) " right="$(host 2) $(host 4) "
got="$(pair 0)/$(pair 1)"
[ "$got" = "$left/$right" ] || [ "$got" = "$right/$left" ] || fail "a switch for each replica: $got"
ok "hosts of the replicas: $got: a switch each"
on_head scancel "$job"
within 60 job_gone || fail "the job is gone"
all_well
