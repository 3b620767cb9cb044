#!/usr/bin/env bash
# tests/e2e/test_errors.sh - what goes wrong at the start, and requests that are refused: each with an
# exit code of base/err.h and a sentence that names the file, field, value and limit; nothing hangs,
# nothing is left.
#   2 usage  3 model or file  4 does not fit  5 in use  6 launch or service  7 refused  8 deadline
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
export LC_ALL=C

# refused CLAIM CODE WORDS ARGS...: gantry serve ARGS ends at once.
refused() {
    local claim=$1 want=$2 words=$3
    shift 3
    expect "$claim" "$want" "$words" "$GANTRY" serve "$@" --listen 127.0.0.1:0 --run-dir "$dir/refused"
}

# model_copy NAME FROM: a model that may be spoilt, at $m.
model_copy() {
    m=$dir/$1
    cp -r "$2" "$m"
    chmod -R u+w "$m"
}

# ---- the model ----

refused "no directory" 3 "model directory|$dir/nowhere|No such file" "$dir/nowhere"
mkdir "$dir/empty"
refused "an empty directory" 3 "$dir/empty|config.json" "$dir/empty"
refused "a file in place of a directory" 3 "tokenizer.json" "$demo/tokenizer.json"

model_copy config "$demo"
spoilt() { # CLAIM CODE WORDS SED-SCRIPT
    sed "$4" "$demo/config.json" > "$m/config.json"
    ! cmp -s "$demo/config.json" "$m/config.json" || fail "$1: the script changes config.json"
    refused "config.json: $1" "$2" "$3" "$m"
}
config() { spoilt "$1" "$2" "$m/config.json|$3" "$4"; }
# shellcheck disable=SC2016 # $ is sed's
config "cut in the middle" 3 "line" '5,$d'
# shellcheck disable=SC2016
config "not an object" 3 "object" '1s/.*/[]/;2,$d'
config "an architecture nobody knows" 3 "WarpForCausalLM|not one of" 's/LlamaForCausalLM/WarpForCausalLM/'
config "layers as text" 3 "num_hidden_layers" 's/"num_hidden_layers": 6/"num_hidden_layers": "six"/'
config "no layers" 4 "num_hidden_layers|0" 's/"num_hidden_layers": 6/"num_hidden_layers": 0/'
config "a billion layers" 4 "num_hidden_layers|1000000000" 's/"num_hidden_layers": 6/"num_hidden_layers": 1000000000/'
config "negative width" 4 "hidden_size|-256" 's/"hidden_size": 256/"hidden_size": -256/'
config "width is missing" 3 "hidden_size is missing" '/"hidden_size"/d'
config "heads that do not divide" 3 "num_key_value_heads" 's/"num_key_value_heads": 4/"num_key_value_heads": 3/'
config "a number beyond 64 bits" 3 "config.json" 's/"vocab_size": 4096/"vocab_size": 99999999999999999999/'
config "an activation nobody knows" 3 "hidden_act|warp" 's/"silu"/"warp"/'
spoilt "more layers than the weights have" 3 "$m|model.layers.6." 's/"num_hidden_layers": 6/"num_hidden_layers": 7/'
spoilt "more words than the weights have" 3 "model.embed_tokens.weight|4097" 's/"vocab_size": 4096/"vocab_size": 4097/'

model_copy weights "$demo"
w=$m/model.safetensors
truncate -s 4 "$w"
refused "weights of 4 bytes" 3 "model.safetensors|4 bytes" "$m"
cp "$demo/model.safetensors" "$w"
truncate -s -100 "$w"
refused "weights truncated" 3 "model.safetensors" "$m"
cp "$demo/model.safetensors" "$w"
printf '\377\377\377\377\377\377\377\177' | dd of="$w" conv=notrunc status=none
refused "a header that claims 2^63 bytes" 3 "model.safetensors|header" "$m"
cp "$demo/model.safetensors" "$w"
sed -i '1s/"data_offsets":\[0,/"data_offsets":[8,/' "$w"
refused "a header that lies about a place" 3 "model.safetensors" "$m"
cp "$demo/model.safetensors" "$w"
sed -i 's/model.layers.1.mlp.up_proj/model.layers.1.mlp.xx_proj/' "$w"
refused "a tensor missing" 3 "model.layers.1.mlp.up_proj.weight" "$m"
rm "$w"
refused "no weights" 3 "$m|model.safetensors" "$m"

model_copy shards "$tiny/tiny-bf16-sharded"
cp "$demo/tokenizer.json" "$demo/tokenizer_config.json" "$m"
rm "$m/model-00002-of-00003.safetensors"
refused "a shard missing" 3 "model-00002-of-00003.safetensors" "$m"

model_copy tokenizer "$demo"
rm "$m/tokenizer.json"
refused "no tokenizer" 3 "$m|tokenizer.json" "$m"
head -c 1000 "$demo/tokenizer.json" > "$m/tokenizer.json"
refused "tokenizer.json cut" 3 "tokenizer.json" "$m"
sed 's/"type": *"BPE"/"type":"Unigram"/' "$demo/tokenizer.json" > "$m/tokenizer.json"
refused "a kind of tokenizer that Gantry has not" 3 "tokenizer.json|Unigram" "$m"

# ---- the plan ----

refused "tp 3" 2 "tp|3|1, 2, 4, 8" "$demo" --tp 3
refused "tp 16, over the model's 8 leaves" 2 "16|1, 2, 4, 8" "$demo" --tp 16
refused "more stages than layers" 2 "7|6" "$demo" --pp 7
refused "stages that do not add up" 2 "5 layers|6" "$demo" --stage-layers 3,2
refused "a stage of nothing" 2 "stage-layers" "$demo" --stage-layers 6,0
refused "stages that are no numbers" 2 "stage-layers" "$demo" --stage-layers 3,three
refused "a context over the model's" 2 "context|2048|1024" "$demo" --ctx 2048
refused "1 MiB of memory" 4 "MiB|memory" "$demo" --tp 1 --pp 1 --memory 1M
refused "a format that Gantry has not" 2 "format|int3" "$demo" --format int3
echo "localhost slots=2" > "$dir/hosts"
refused "4 ranks on 2 slots" 4 "4 ranks|2 slots|$dir/hosts" "$demo" --tp 4 --hostfile "$dir/hosts"
echo "localhost slots=many" > "$dir/hosts"
refused "a hostfile that cannot be read" 3 "$dir/hosts|many" "$demo" --hostfile "$dir/hosts"
refused "no hostfile" 3 "$dir/nohosts" "$demo" --hostfile "$dir/nohosts"

# ---- command line ----

expect "no command" 2 "usage: gantry" "$GANTRY"
expect "a command that is not one" 2 "sreve|serve" "$GANTRY" sreve
expect "no model" 2 "MODEL" "$GANTRY" serve
refused "an option misspelt" 2 "--thread|--threads" "$demo" --thread 2
refused "a queue of 0" 2 "--queue|0|1" "$demo" --queue 0
expect "an address that is none" 2 "listen|nonsense" "$GANTRY" serve "$demo" --listen nonsense --run-dir "$dir/refused"
expect "a port over 65535" 2 "65536" "$GANTRY" serve "$demo" --listen 127.0.0.1:65536 --run-dir "$dir/refused"
touch "$dir/file"
expect "no HOME" 2 "HOME is not set|--run-dir" env -u HOME "$GANTRY" serve "$demo" --listen 127.0.0.1:0
expect "a file as run directory" 2 "$dir/file" "$GANTRY" serve "$demo" --listen 127.0.0.1:0 --run-dir "$dir/file"

# ---- secrets ----

echo secret > "$dir/token"
chmod 644 "$dir/token"
refused "a token file that others may read" 7 "$dir/token|644|chmod 600" "$demo" --token-file "$dir/token"
refused "no token file" 3 "$dir/notoken" "$demo" --token-file "$dir/notoken"
: > "$dir/token"
chmod 600 "$dir/token"
refused "an empty token file" 3 "$dir/token|empty" "$demo" --token-file "$dir/token"
refused "a certificate without its key" 2 "--tls-cert|--tls-key" "$demo" --tls-cert "$dir/token"
mkdir -m 777 "$dir/open"
chmod 777 "$dir/open"
expect "a run directory that others may write" 7 "$dir/open|777|chmod 700" \
    "$GANTRY" serve "$demo" --listen 127.0.0.1:0 --run-dir "$dir/open"

# ---- mpirun ----

refused "an mpirun that is not there" 3 "/nonexistent/mpirun" "$demo" --mpirun /nonexistent/mpirun
mkdir "$dir/bin"
expect "no mpirun in PATH" 3 "mpirun|PATH|openmpi-bin" \
    env PATH="$dir/bin" "$GANTRY" serve "$demo" --listen 127.0.0.1:0 --run-dir "$dir/refused"
refused "an mpirun that is no mpirun" 3 "/bin/false|Open MPI" "$demo" --mpirun /bin/false
printf '#!/bin/sh\nexit 1\n' > "$dir/bin/mute"
printf '#!/bin/sh\nsleep 100\n' > "$dir/bin/slow"
chmod 755 "$dir/bin/mute" "$dir/bin/slow"
refused "an mpirun that says nothing" 3 "$dir/bin/mute|says nothing" "$demo" --mpirun "$dir/bin/mute"
refused "an mpirun that does not answer" 8 "$dir/bin/slow|5 s" "$demo" --mpirun "$dir/bin/slow"
refused "an mpirun that is something else" 3 "/bin/echo|Open MPI" "$demo" --mpirun /bin/echo
cat > "$dir/bin/mpirun" << 'SH'
#!/bin/sh
if [ "$1" = --version ]; then echo "mpirun (Open MPI) 4.1.4"; exit 0; fi
echo "no slots on Tuesdays" >&2
exit 213
SH
chmod 755 "$dir/bin/mpirun"
refused "an mpirun that fails at once" 6 "exit code 213|no slots on Tuesdays" "$demo" --mpirun "$dir/bin/mpirun"
refused "an option that mpirun does not know" 6 "mpirun|--no-such-thing" "$demo" --mpirun-args --no-such-thing
nothing_left

# ---- ranks by hand, and a second service ----

chmod 600 "$dir/token"
echo right > "$dir/token"
serve main "$demo" --tp 2
ready
control=127.0.0.1:$(field control_port)
expect "a port in use" 5 "$at" "$GANTRY" serve "$demo" --listen "$at" --run-dir "$dir/second"
expect "a run directory in use" 5 "$run|$serve" "$GANTRY" serve "$demo" --listen 127.0.0.1:0 --run-dir "$run"
expect "a worker without a coordinator" 2 "--coordinator" "$GANTRY" worker "$demo"
expect "a worker whose coordinator is not there" 6 "127.0.0.1:1|1 s" \
    "$GANTRY" worker "$demo" --tp 1 --coordinator 127.0.0.1:1 --token-file "$dir/token" --attach-timeout 1
expect "a worker with a wrong token" 7 "$control|token" \
    "$GANTRY" worker "$demo" --tp 1 --coordinator "$control" --token-file "$dir/token"
expect "a worker with another plan" 6 "$control|plan" \
    "$GANTRY" worker "$demo" --tp 1 --coordinator "$control" --token-file "$run/token"
expect "a worker with another model" 6 "$control|plan" \
    "$GANTRY" worker "$tiny/tiny-bf16-sharded" --tp 1 --coordinator "$control" --token-file "$run/token"
expect "a worker with too few ranks" 6 "tp 2 x pp 1 is 2 ranks|started 1" \
    "$GANTRY" worker "$demo" --tp 2 --coordinator "$control" --token-file "$run/token"
[ "$(status_number kv_blocks_used)" = 0 ] || fail "the service still answers" "$log"
ok "after these visitors the service still answers"

# ---- requests ----

# asked CLAIM CODE WORDS ARGS...
asked() {
    local claim=$1 want=$2 words=$3
    shift 3
    expect "$claim" "$want" "$words" "$GANTRY" generate --connect "$at" "$@"
}
asked "temperature nan" 2 "temperature|nan" x --temperature nan
asked "temperature inf" 2 "temperature|inf" x --temperature inf
asked "temperature -1" 2 "temperature|-1|0 .. 100" x --temperature -1
asked "temperature 101" 2 "temperature|101|0 .. 100" x --temperature 101
asked "top_p 0" 2 "top_p|0" x --top-p 0
asked "top_p 1.1" 2 "top_p|1.1" x --top-p 1.1
asked "min_p -0.1" 2 "min_p|-0.1|0 (off) .. 1" x --min-p -0.1
asked "min_p 1.5" 2 "min_p|1.5|0 (off) .. 1" x --min-p 1.5
asked "top_k 1025" 2 "top_k|1025|1024" x --top-k 1025
asked "max_tokens 0" 2 "max_tokens|0" x --max-tokens 0
asked "max_tokens over the context" 2 "max_tokens|1025|1024" x --max-tokens 1025
asked "max_tokens that is no number" 2 "--max-tokens|many" x --max-tokens many
stops=()
for i in $(seq 17); do stops+=(--stop "s$i"); done
asked "17 stop strings" 2 "stop|17|16" x "${stops[@]}"
asked "a stop string of 257 bytes" 2 "stop[0]|257|256" x --stop "$(printf '%0257d' 0)"
asked "a stop string of nothing" 2 "stop[0]|0 bytes" x --stop ""
asked "logprobs 21" 2 "logprobs|21|20" x --logprobs 21
asked "a prompt longer than the context" 2 "prompt|context|1024" "$(printf 'q %.0s' $(seq 3000))"
asked "a prompt that is not UTF-8" 2 "prompt|UTF-8" "$(printf 'caf\351')"
asked "a stop string that is not UTF-8" 2 "stop|UTF-8" x --stop "$(printf '\303(')"
asked "an id past the vocabulary" 2 "prompt_ids[1]|4096|4095" --prompt-ids 1,4096
asked "a stop id past the vocabulary" 2 "stop_ids|4096|4095" x --stop-id 4096
asked "ids that are none" 2 "prompt-ids|x" --prompt-ids 1,x
asked "neither prompt nor ids" 2 "PROMPT"
asked "a request id with a space" 2 "request_id" x --request-id "a b"
asked "a certificate that is none" 3 "$demo/config.json|PEM" x --tls-ca "$demo/config.json"
expect "nobody listens there" 6 "127.0.0.1:1" "$GANTRY" generate --connect 127.0.0.1:1 x
expect "nobody to show a status" 6 "127.0.0.1:1" "$GANTRY" status --connect 127.0.0.1:1
expect "nobody to wait for" 8 "1 s" "$GANTRY" status --connect 127.0.0.1:1 --wait 1
asked "after all that it still answers" 0 "" "Once" --max-tokens 4
within 5 blocks_free || fail "every KV block is free"
ok "every KV block is free"
kill -INT "$serve"
serve_ends 10 0 "the service ends"
if [ -e "$run/token" ] || [ -e "$run/endpoint.json" ]; then fail "token and endpoint.json are gone"; fi
ok "token and endpoint.json are gone"

# A rank that does not match ends a start: waiting would not change it.
serve external "$demo" --external-ranks 1
within 10 has_state starting || fail "the service waits for its ranks" "$log"
expect "a first worker with another model" 6 "plan" \
    "$GANTRY" worker "$tiny/tiny-bf16-sharded" --tp 1 --coordinator "127.0.0.1:$(field control_port)" \
    --token-file "$run/token"
serve_ends 10 6 "the start ends with it"
grep -q "rank 0 on .* has plan .*same directory" "$log" || fail "the rank and both digests are named" "$log"

# ---- TLS ----

if command -v openssl > /dev/null; then
    for name in one two; do
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
            -addext subjectAltName=IP:127.0.0.1 -keyout "$dir/$name.key" -out "$dir/$name.pem" 2> "$dir/openssl"
    done
    refused "a key of another certificate" 2 "certificate|key" "$demo" --tls-cert "$dir/one.pem" --tls-key "$dir/two.key"
    serve tls "$demo" --tls-cert "$dir/one.pem" --tls-key "$dir/one.key"
    ready
    asked "a client with TLS" 0 "" x --tls-ca "$dir/one.pem" --max-tokens 2
    asked "a client that trusts somebody else" 6 "$at|certificate verify failed" x --tls-ca "$dir/two.pem" --timeout 5
    asked "a client without TLS" 6 "$at" x --timeout 5
    printf -- '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n' > "$dir/bad.pem"
    asked "a CA that cannot be read" 6 "the CA or certificate is unusable" x --tls-ca "$dir/bad.pem" --timeout 5
    kill -INT "$serve"
    serve_ends 10 0 "the service with TLS ends"
else
    echo "no openssl: TLS was not tried"
fi

# ---- a token ----

serve guarded "$demo" --token-file "$dir/token" --kv-tokens 512
ready
asked "no token" 7 "token" x
echo wrong > "$dir/wrong"
chmod 600 "$dir/wrong"
asked "a wrong token" 7 "token" x --token-file "$dir/wrong"
asked "more than the KV memory leaves of the context" 2 "max_tokens|1000|512" x --token-file "$dir/token" --max-tokens 1000
asked "the right token" 0 "" x --token-file "$dir/token" --max-tokens 2
kill -INT "$serve"
serve_ends 10 0 "the service with a token ends"

# Beyond loopback nobody is let in without one, said or not.
"$GANTRY" serve "$demo" --listen 0.0.0.0:0 --run-dir "$dir/wide" > "$dir/wide.log" 2>&1 < /dev/null &
serve=$! owner=$!
started+=("$serve")
run=$dir/wide log=$dir/wide.log
ready
at=127.0.0.1:$(field port)
grep -qF "clients need the token in $run/token" "$log" || fail "the token is named" "$log"
asked "beyond loopback, no token" 7 "token" x
asked "beyond loopback, the run directory's token" 0 "" x --token-file "$run/token" --max-tokens 2
kill -INT "$serve"
serve_ends 10 0 "the service beyond loopback ends"

all_well
