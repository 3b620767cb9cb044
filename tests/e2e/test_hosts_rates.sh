#!/usr/bin/env bash
# tests/e2e/test_hosts_rates.sh - hosts that differ: stages are cut by the speed and memory that a file of rates says, the ranks get
# them, and the tokens are those of a single rank.
# shellcheck source=tests/common/hosts.sh
. "$(dirname "$0")/../common/hosts.sh"
n_tokens=60

hosts_up 2
wanted 5

# The second host is said to be three times as fast: of six layers and the head it gets the most.
rest="kv_gb_s=20 decode_gflop_s=200 decode_gscore_s=2 prompt_gflop_s=400 prompt_gscore_s=4 vector_gb_s=10 scan_mid_s=500 layer_us=1"
cat > "$dir/rates" << END
gantry-rates 1
host=$(host 1) device=cpu format=bf16 memory_mib=4096 weights_gb_s=1:20,512:1 $rest
host=$(host 2) device=cpu format=bf16 memory_mib=4096 weights_gb_s=1:60,512:3 $rest
link=network latency_us=50 gb_s=1
END

slots 1=1 2=1
access=(--token-file "$dir/run/token")
serve --listen "0.0.0.0:$port" --hostfile "$dir/hostfile" --tp 1 --pp 2 --rates "$dir/rates"
grep -q "stages by the speed and memory of their hosts" "$dir/serve.log" || fail "the plan says how it was cut"
grep -q "stage 0: [12] layers on $(host 1)" "$dir/serve.log" || fail "the slow host has few layers"
grep -q "stage 1: [45] layers on $(host 2)" "$dir/serve.log" || fail "the fast host has most of them"
ok "stages follow the rates of their hosts"
on_head "$GANTRY" generate --connect "$head:$port" "${access[@]}" "The whale" --temperature 0.9 --seed 5 \
    --max-tokens "$n_tokens" --ignore-eos --logprobs 2 --json > "$dir/uneven.5"
same uneven 5
ok "the same tokens from uneven stages"
on_head "$GANTRY" status --connect "$head:$port" "${access[@]}" > "$dir/status"
grep -q "kernels [0-9.]* ms, predicted [0-9.]* ms" "$dir/status" || fail "predicted beside measured" "$dir/status"
on_head "$GANTRY" status --connect "$head:$port" "${access[@]}" --json > "$dir/status"
grep -Eq '"predicted_step_us": ?[1-9]' "$dir/status" || fail "predicted for programs" "$dir/status"
ok "status shows the predicted step beside the measured one"
stop
ok "it ends in order"
all_well
