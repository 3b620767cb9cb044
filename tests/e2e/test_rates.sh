#!/usr/bin/env bash
# tests/e2e/test_rates.sh - gantry measure, and what plan makes of its file. How fast this machine is does
# not matter: what is claimed is that the figures are there, add up, and go where they should.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

python=${GANTRY_PYTHON:-python3}
rates=$dir/rates

# ---- measure ----

# measure NAME ARGS...: seconds on a machine that does nothing else.
measure() {
    local name=$1
    shift
    timeout $((120 * slow)) "$GANTRY" measure --format bf16 --threads 1 -o "$dir/$name" "$@" > "$dir/out" 2>&1 < /dev/null ||
        fail "measure writes $name" "$dir/out"
}

measure rates
grep -q "^gantry-rates 1$" "$rates" || fail "the file says what it is" "$rates"
grep -q "^host=[^ ]* device=cpu format=bf16 .* threads=1 " "$rates" || fail "host, device, format" "$rates"
[ ! -e "$rates.part" ] || fail "no half of a file is left"
expect "an unknown format is refused" 2 "none of f32, bf16, fp8" "$GANTRY" measure --format int4
expect "a file that cannot be written is said" 3 "cannot be written" \
    "$GANTRY" measure --format bf16 --threads 1 -o "$dir/none/rates"
measure slowest --cpu-mask scalar
grep -q " kernels=scalar " "$dir/slowest" || fail "the slowest kernels are measured, too" "$dir/slowest"
ok "measure writes a file, by any kernels"

# Two ranks of this host: it is measured once, and what lies between them as well.
timeout $((120 * slow)) mpirun --oversubscribe --bind-to none -n 2 "$GANTRY" measure --format bf16 --threads 1 -o "$dir/links" \
    > "$dir/out" 2>&1 < /dev/null || fail "measure runs under mpirun" "$dir/out"
[ "$(grep -c '^host=' "$dir/links")" -eq 1 ] || fail "a host is measured once" "$dir/links"
grep -Eq '^link=host latency_us=[0-9.e+-]+ gb_s=[0-9.e+-]+$' "$dir/links" || fail "links of a host" "$dir/links"
expect "links that were measured are not assumed" 0 "Predicted from the rates of host" "$GANTRY" plan "$demo" --rates "$dir/links" --tp 2
if grep -q "assumed" "$dir/out"; then fail "nothing is assumed" "$dir/out"; fi

# ---- plan ----

expect "without rates the plan says how to get times" 0 "gantry measure -o FILE" "$GANTRY" plan "$demo"
expect "a plan with rates predicts" 0 "prompt of 512 tokens|one stream at that length|64 streams at that length" \
    "$GANTRY" plan "$demo" --rates "$rates"
"$GANTRY" plan "$demo" --rates "$rates" --prompt 100 --tp 2 --pp 2 --json > "$dir/plan.json"
"$python" - "$dir/plan.json" << 'END' || fail "the predicted times are finite and add up" "$dir/plan.json"
import json, math, sys
p = json.load(open(sys.argv[1]))["predicted"]
for key in ("first_token_s", "prompt_tokens_per_s", "token_s", "round_s", "tokens_per_s"):
    assert math.isfinite(p[key]) and 0 < p[key] < 1e9, key
assert p["prompt_tokens"] == 100
assert abs(p["prompt_tokens_per_s"] * p["first_token_s"] - 100) < 1e-6
assert abs(p["tokens_per_s"] * p["round_s"] - p["streams"]) < 1e-6
assert len(p["stages"]) == 2 and p["ranks_assumed"] == 0
# One stream goes through both stages, and the way between them costs something.
assert sum(s["token_s"] for s in p["stages"]) < p["token_s"] + 1e-9
assert p["round_s"] >= p["token_s"] - 1e-9
END
ok "the predicted times are finite and add up"
expect "a format that was not measured is named" 3 "format=f32|gantry measure" \
    "$GANTRY" plan "$demo" --rates "$rates" --format f32
printf 'gantry-rates 1\nhost=a speed=3\n' > "$dir/wrong"
expect "a wrong file is refused with its line" 3 'line 2: "speed": no such key' \
    "$GANTRY" plan "$demo" --rates "$dir/wrong"
expect "a file that is not there is named" 3 "nowhere" "$GANTRY" plan "$demo" --rates "$dir/nowhere"

# Two hosts, one three times as fast: it gets more layers, and the plan says whose rates they are.
rest="kv_gb_s=20 decode_gflop_s=200 decode_gscore_s=2 prompt_gflop_s=400 prompt_gscore_s=4 vector_gb_s=10 scan_mid_s=500 layer_us=5"
cat > "$dir/two" << END
gantry-rates 1
host=fast device=cpu format=bf16 memory_mib=4096 weights_gb_s=1:60,512:3 $rest
host=slow device=cpu format=bf16 memory_mib=4096 weights_gb_s=1:20,512:1 $rest
link=network latency_us=20 gb_s=1.2
END
printf 'slow slots=1\nfast slots=1\n' > "$dir/hosts"
expect "stages follow the speed of their hosts" 0 "stages by the speed and memory of their hosts|layers on slow|layers on fast" \
    "$GANTRY" plan "$demo" --rates "$dir/two" --hostfile "$dir/hosts" --pp 2
"$GANTRY" plan "$demo" --rates "$dir/two" --hostfile "$dir/hosts" --pp 2 --json > "$dir/plan.json"
"$python" - "$dir/plan.json" << 'END' || fail "the fast host has more layers" "$dir/plan.json"
import json, sys
slow, fast = json.load(open(sys.argv[1]))["predicted"]["stages"]
assert slow["rates_of"] == "slow" and fast["rates_of"] == "fast" and fast["layers"] > slow["layers"], (slow, fast)
END
ok "the fast host has more layers"
printf 'fast\nother\n' > "$dir/hosts"
expect "hosts that were not measured are said to be assumed" 0 "1 of 2 ranks are on hosts that were not measured" \
    "$GANTRY" plan "$demo" --rates "$dir/two" --hostfile "$dir/hosts" --pp 2

# In fp8 the output matrix stays bf16: at the host's rates of that, or, where there are none, it is said.
sed -n '1p; s/format=bf16/format=fp8/p' "$dir/two" > "$dir/fp8"
expect "bf16 in an fp8 plan without rates of its own is said" 0 "1 of 1 ranks hold matrices in bf16" \
    "$GANTRY" plan "$demo" --format fp8 --rates "$dir/fp8" --tp 1 --pp 1
cat "$dir/two" >> "$dir/fp8"
"$GANTRY" plan "$demo" --format fp8 --rates "$dir/fp8" --tp 1 --pp 1 > "$dir/out"
grep -q "Predicted from the rates of host slow" "$dir/out" || fail "a plan for fp8 with rates of both" "$dir/out"
if grep -q "hold matrices in bf16" "$dir/out"; then fail "the bf16 of the same host is found" "$dir/out"; fi
ok "an fp8 plan finds the rates of what it holds in bf16"

# ---- serve ----

serve service "$demo" --tp 2 --pp 2 --threads 1 --rates "$dir/links"
ready
grep -q "one stream at that length" "$log" || fail "serve says how fast it will be" "$log"
predicted() { "$GANTRY" status --connect "$at" --json | grep -Eq '"predicted_step_us": ?[1-9]'; }
within 20 predicted || fail "status shows the predicted step" "$log"
kill -INT "$serve"
serve_ends 30 0 "a service with rates predicts, and ends in order"
expect "serve refuses a wrong file before anything is started" 3 'line 2: "speed": no such key' \
    "$GANTRY" serve "$demo" --listen 127.0.0.1:0 --rates "$dir/wrong"

all_well
