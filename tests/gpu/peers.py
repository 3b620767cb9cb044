#!/usr/bin/env python3
"""tests/gpu/peers.py - what torch and transformers do with the model that tests/gpu/bench.cu measures.

Llama-3.1-8B's shape, random bf16 weights, on device 0: one decoded token at batch 1 and at batch 64 after 1,024
positions, and a prompt of 8,192 (for a processor TinyLlama-1.1B's: batch 16, 512 positions), as transformers runs them (static cache, SDPA attention), eager and with
torch.compile (CUDA graphs, mode "reduce-overhead") where the time suffices. Medians of synchronised calls. A line per
figure, printed as it is measured, so that a run that is cut short has said what it knew.

    peers.py [--copy-tbps X --matrix-tflops Y] [--seconds N] [--shape 1.1B|tiny --device cpu]

The two ceilings are bench.cu's of the same run; with them a line says its share of the limit, reckoned as there.
Exit 77 with a word: torch, transformers or a device is missing.
"""

import argparse
import statistics
import sys
import time

SHAPES = {
    "8B": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
               num_key_value_heads=8, vocab_size=128256),
    "1.1B": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                 num_key_value_heads=4, vocab_size=32000),
    "tiny": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, vocab_size=512),
}
RUNS = {"8B": (64, 1024, 8192), "1.1B": (16, 512, 512), "tiny": (64, 32, 64)}  # streams, positions before, prompt


def parse():
    p = argparse.ArgumentParser()
    p.add_argument("--copy-tbps", type=float, default=0.0)
    p.add_argument("--matrix-tflops", type=float, default=0.0)
    p.add_argument("--seconds", type=float, default=100.0)
    p.add_argument("--shape", choices=SHAPES, default="8B")
    p.add_argument("--device", default="cuda")
    return p.parse_args()


ARGS = parse()
BEGAN = time.monotonic()

try:
    import torch
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
except ImportError as missing:
    print(f"peers: skipped: {missing}")
    sys.exit(77)
if ARGS.device == "cuda" and not torch.cuda.is_available():
    print("peers: skipped: torch sees no CUDA device")
    sys.exit(77)


def left():
    return ARGS.seconds - (time.monotonic() - BEGAN)


def wait():
    if ARGS.device == "cuda":
        torch.cuda.synchronize()


def make_model():
    config = LlamaConfig(max_position_embeddings=131072, rms_norm_eps=1e-5, tie_word_embeddings=False,
                         rope_theta=500000.0, attn_implementation="sdpa", **SHAPES[ARGS.shape])
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device=ARGS.device).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
        # Buffers of the meta device hold nothing: rope's frequencies are made again.
        rotary = model.model.rotary_emb
        rotary.to_empty(device=ARGS.device)
        head_dim = config.hidden_size // config.num_attention_heads
        inv = 1.0 / (500000.0 ** (torch.arange(0, head_dim, 2, device=ARGS.device).float() / head_dim))
        rotary.inv_freq = inv
        if hasattr(rotary, "original_inv_freq"):
            rotary.original_inv_freq = inv
    return config, model


def make_cache(config, batch, positions):
    try:
        return StaticCache(config=config, max_batch_size=batch, max_cache_len=positions, device=ARGS.device,
                           dtype=torch.bfloat16)
    except TypeError:  # newer versions allocate on first use
        return StaticCache(config=config, max_cache_len=positions)


def median(call, budget):
    """Seconds of a call: at least 3 runs, at most 50, about `budget` seconds."""
    times = []
    began = time.monotonic()
    while len(times) < 3 or (len(times) < 50 and time.monotonic() - began < budget):
        wait()
        t = time.monotonic()
        call()
        wait()
        times.append(time.monotonic() - t)
    return statistics.median(times)


def limit(config, batch, rows, context, prompt):
    """Seconds that the ceilings allow: (by bytes, by operations), as bench.cu reckons them."""
    if ARGS.copy_tbps <= 0 or ARGS.matrix_tflops <= 0:
        return None
    dim, ffn, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head_dim = dim // config.num_attention_heads
    kv = config.num_key_value_heads * head_dim
    matrices = dim * (dim + 2 * kv) + dim * dim + 3 * dim * ffn
    head = config.vocab_size * dim
    seen = context / 2 if prompt else context
    n_bytes = 2 * (layers * matrices + head) + 4 * layers * batch * context * kv
    heads_out = batch if prompt else rows
    flops = 2 * rows * layers * matrices + 2 * heads_out * head + 4 * rows * layers * seen * dim
    return max(n_bytes / (ARGS.copy_tbps * 1e12), flops / (ARGS.matrix_tflops * 1e12))


def report(what, config, seconds, batch, rows, context, prompt):
    least = limit(config, batch, rows, context, prompt)
    share = f"  {100 * least / seconds:4.0f} % of the limit" if least else ""
    print(f"{ARGS.shape:8s} {what:34s} {seconds * 1e3:9.3f} ms  {rows / seconds:8.0f} tokens/s{share}", flush=True)


def step_of(model, config, batch, context):
    """A decoded token of each of `batch` streams at position `context`."""
    cache = make_cache(config, batch, context + 8)
    ids = torch.randint(0, config.vocab_size, (batch, 1), device=ARGS.device)
    position = torch.tensor([context], device=ARGS.device)

    def step(forward):
        return forward(input_ids=ids, past_key_values=cache, cache_position=position,
                       position_ids=position.expand(batch, 1), use_cache=True).logits

    return step


def decode(model, config, batch, context, compiled):
    step = step_of(model, config, batch, context)
    name = "torch.compile" if compiled else "eager"
    if compiled:
        forward = torch.compile(model.forward, mode="reduce-overhead", dynamic=False)
        for _ in range(4):  # compiles, then records
            step(forward)
    else:
        forward = model.forward
        step(forward)
    seconds = median(lambda: step(forward), 2.0)
    report(f"transformers decode b{batch} ctx {context} {name}", config, seconds, batch, batch, context, False)


def prompt_run(model, config, length):
    ids = torch.randint(0, config.vocab_size, (1, length), device=ARGS.device)

    def call():
        cache = make_cache(config, 1, length + 8)
        position = torch.arange(length, device=ARGS.device)
        return model.model(input_ids=ids, past_key_values=cache, cache_position=position,
                           use_cache=True).last_hidden_state[:, -1:]

    call()
    seconds = median(call, 2.0)
    report(f"transformers prompt {length} eager", config, seconds, 1, length, length, True)


def main():
    print(f"peers: torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    config, model = make_model()
    streams, context, long = RUNS[ARGS.shape]
    plan = [
        ("decode 1 eager", 0, lambda: decode(model, config, 1, context, False)),
        ("prompt", 0, lambda: prompt_run(model, config, long)),
        (f"decode {streams} eager", 0, lambda: decode(model, config, streams, context, False)),
        ("decode 1 compiled", 30, lambda: decode(model, config, 1, context, True)),
        (f"decode {streams} compiled", 30, lambda: decode(model, config, streams, context, True)),
    ]
    failed = False
    with torch.inference_mode():
        for name, needed, run in plan:
            if left() < needed:
                print(f"peers: {name}: not run: {left():.0f} s are left", flush=True)
                continue
            try:
                run()
            except Exception as why:  # another version of theirs is no reason to lose the other figures
                print(f"peers: {name}: {type(why).__name__}: {str(why).splitlines()[0][:160] if str(why) else ''}",
                      flush=True)
                failed = True
    return 1 if failed else 0


sys.exit(main())
