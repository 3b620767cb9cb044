#!/usr/bin/env bash
# tests/e2e/test_plan.sh - gantry plan and gantry inspect as a user types them: exit codes, what is
# printed, and that nothing but config.json is needed to plan.
set -euo pipefail

: "${GANTRY:?path of the program}"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0

# expect CODE WORD COMMAND...: the exit code, and a word of its output (both streams).
expect() {
    local want=$1 word=$2 code=0
    shift 2
    "$@" > "$dir/out" 2>&1 || code=$?
    if [ "$code" -ne "$want" ] || ! grep -qF -- "$word" "$dir/out"; then
        echo "FAILED: $* -> exit $code (wanted $want, with \"$word\"):"
        sed 's/^/    /' "$dir/out" | head -n 20
        failed=1
    fi
}

mkdir "$dir/model"
cat > "$dir/model/config.json" << 'JSON'
{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
 "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
 "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
 "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
 "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}
JSON

expect 0 "usage: gantry plan" "$GANTRY" plan --help
expect 0 "usage: gantry inspect" "$GANTRY" inspect --help
expect 2 "gantry plan:" "$GANTRY" plan
expect 3 "config.json" "$GANTRY" plan "$dir/nowhere"
expect 0 "4 ranks = 2 stages x 2 slices" "$GANTRY" plan "$dir/model" --tp 2 --pp 2 --memory 16GiB
expect 0 "fewest ranks that hold it" "$GANTRY" plan "$dir/model" --memory 8GiB --ctx 8192
expect 0 "layers" "$GANTRY" plan "$dir/model" --tp 1 --stage-layers 20,12 --kv-tokens 4096
expect 2 "tp can be 1, 2, 4, 8" "$GANTRY" plan "$dir/model" --tp 3 --pp 1
expect 2 "the model has 32" "$GANTRY" plan "$dir/model" --tp 1 --stage-layers 20,11
expect 2 "--format" "$GANTRY" plan "$dir/model" --format int4
expect 4 "rank 0 needs" "$GANTRY" plan "$dir/model" --tp 1 --pp 1 --memory 1GiB
expect 0 '"profile": "cpu-f32-v1"' "$GANTRY" plan "$dir/model" --ranks 8 --format f32 --kv-tokens 4096 --json
expect 3 "neither model.safetensors nor" "$GANTRY" inspect "$dir/model"
expect 3 "runs        no" "$GANTRY" inspect "$dir/model"
expect 3 '"runs": false' "$GANTRY" inspect "$dir/model" --json

# The same words give the same bytes.
"$GANTRY" plan "$dir/model" --ranks 8 --memory 8GiB --json > "$dir/a"
"$GANTRY" plan "$dir/model" --ranks 8 --memory 8GiB --json > "$dir/b"
cmp -s "$dir/a" "$dir/b" || { echo "FAILED: two runs of one plan differ"; failed=1; }

stories=${GANTRY_SHARED_DIR:-../shared}/models/stories260k
if [ -d "$stories" ]; then
    expect 0 "runs        yes" "$GANTRY" inspect "$stories"
    expect 0 '"runs": true' "$GANTRY" inspect "$stories" --json
    expect 0 "1 rank = 1 stage x 1 slice" "$GANTRY" plan "$stories"
else
    echo "the stories model is not beside the tree: inspect was not tried on a whole model"
fi
exit "$failed"
