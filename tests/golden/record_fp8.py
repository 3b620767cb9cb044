#!/usr/bin/env python3
"""Record what fp8 weights must give: models of torch whose matrices are code times scale, in f32.

    python3 tests/golden/record_fp8.py --shared ../shared            # everything
    python3 tests/golden/record_fp8.py --shared ../shared --check    # are the records still true?

Two kinds. data/tiny-fp8-*/ are checkpoints in fp8 that this script makes (random weights; scales per
matrix, per row, per block, as they are found in the wild), recorded as data/<name>.stored.json. Models
of record_logits.py that are not fp8 are quantised here by the rule of docs/numerics.md, written anew in
torch, and recorded as data/<name>.fp8.json.

Needs what record_logits.py needs.
"""
import argparse
import json
import math
import pathlib
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

import record_logits as base

DATA = base.DATA
F8 = torch.float8_e4m3fn
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# name -> config of the model, how it is quantised, and what config.json says about it.
TINY = {
    # One number per matrix, of no dimensions; f32.
    "tiny-fp8-tensor": dict(
        strategy="tensor", ending="_scale", scale=torch.float32,
        config=base.config(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                           intermediate_size=96, vocab_size=256, torch_dtype="bfloat16"),
        quantization=dict(quant_method="modelopt", quant_algo="FP8", kv_cache_quant_algo="FP8",
                          ignore=["lm_head"])),
    # A column of scales in bf16; Qwen3's norms; an ffn that leaves cut unevenly.
    "tiny-fp8-channel": dict(
        strategy="channel", ending="_scale", scale=torch.bfloat16,
        config=base.config(architectures=["Qwen3ForCausalLM"], model_type="qwen3", num_hidden_layers=2,
                           num_attention_heads=6, num_key_value_heads=3, head_dim=16, intermediate_size=180,
                           vocab_size=256, mlp_bias=None, use_sliding_window=False, torch_dtype="bfloat16"),
        quantization=dict(
            quant_method="compressed-tensors", format="float-quantized", ignore=["lm_head"],
            config_groups=dict(group_0=dict(
                targets=["Linear"],
                input_activations=dict(dynamic=True, num_bits=8, strategy="token", type="float"),
                weights=dict(dynamic=False, num_bits=8, strategy="channel", symmetric=True, type="float"))))),
    # Blocks of 128 x 128, the last ones cut off both ways; leaves of the ffn end inside blocks.
    "tiny-fp8-block": dict(
        strategy="block", ending="_scale_inv", scale=torch.float32,
        config=base.config(hidden_size=160, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=1,
                           head_dim=32, intermediate_size=208, vocab_size=160, torch_dtype="bfloat16"),
        quantization=dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic",
                          weight_block_size=[128, 128], modules_to_not_convert=["lm_head"])),
    # Layers and matrices left in bf16: all of layer 0, of layer 1 the attention output and the last product, of layer 2
    # gate and up; f32 in one place. Leaves of four heads.
    "tiny-fp8-mixed": dict(
        strategy="block", ending="_scale_inv", scale=torch.float32,
        plain=("layers.0.", "layers.1.self_attn.o_proj", "layers.1.mlp.down_proj", "layers.2.mlp.gate_proj",
               "layers.2.mlp.up_proj"),
        wide=("layers.1.self_attn.o_proj",),
        config=base.config(num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                           intermediate_size=176, vocab_size=256, torch_dtype="bfloat16"),
        quantization=dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[128, 128],
                          modules_to_not_convert=["lm_head", "model.layers.0", "model.layers.1.self_attn.o_proj",
                                                  "model.layers.1.mlp.down_proj", "model.layers.2.mlp.gate_proj",
                                                  "model.layers.2.mlp.up_proj"])),
}
BLOCK = 128


def is_projection(key):
    return key.endswith(".weight") and key.split(".")[-2] in PROJECTIONS


def spread(scale, shape):
    """A scale of any of the layouts, to the shape of its matrix."""
    scale = scale.float()
    if scale.ndim < 2:
        return scale.reshape(1, 1).expand(shape)
    if scale.shape == (shape[0], 1):
        return scale.expand(shape)
    return scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:shape[0], :shape[1]]


def scales_of(w, strategy):
    if strategy == "tensor":
        return w.abs().max() / 448
    if strategy == "channel":
        return w.abs().amax(1, keepdim=True) / 448
    rows, cols = (math.ceil(n / BLOCK) for n in w.shape)
    out = torch.empty(rows, cols)
    for i in range(rows):
        for j in range(cols):
            out[i, j] = w[i * BLOCK:(i + 1) * BLOCK, j * BLOCK:(j + 1) * BLOCK].abs().max() / 448
    return out


def make_tiny(name, spec):
    torch.manual_seed(sum(name.encode()))
    tensors = {}
    for key, shape in base.tiny_shapes(spec["config"]).items():
        if key.endswith("norm.weight"):
            tensors[key] = (1.0 + 0.2 * torch.randn(shape)).bfloat16()
        elif not is_projection(key):
            tensors[key] = (0.35 * torch.randn(shape)).bfloat16()
        else:
            # Rows and columns of different sizes, so that a scale in the wrong place shows.
            w = torch.randn(shape) / math.sqrt(shape[1])
            w *= torch.exp(0.3 * torch.randn(shape[0], 1)) * torch.exp(0.3 * torch.randn(1, shape[1]))
            if any(part in key for part in spec.get("plain", ())):
                wide = any(part in key for part in spec.get("wide", ()))
                tensors[key] = w.bfloat16().float() if wide else w.bfloat16()
                continue
            scale = scales_of(w, spec["strategy"]).to(spec["scale"])
            tensors[key] = (w / spread(scale, shape)).clamp(-448, 448).to(F8)
            tensors[key + spec["ending"]] = scale.contiguous()
            if name == "tiny-fp8-tensor":  # what is not read and not in the way
                tensors[key.replace(".weight", ".input_scale")] = torch.tensor(0.01)
    folder = DATA / name
    folder.mkdir(parents=True, exist_ok=True)
    full = dict(spec["config"], quantization_config=spec["quantization"])
    (folder / "config.json").write_text(json.dumps(full, indent=1) + "\n")
    base.save({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")


# ---- the rule for weights that are not fp8 (docs/numerics.md, "fp8 weights") ----

def leaves(c, key, cols):
    """First columns of the leaves of a matrix, and the end."""
    heads = c["num_attention_heads"]
    r = 1
    while r * 2 <= heads and r * 2 <= (16 if heads >= 64 else 8):
        r *= 2
    if key.endswith("o_proj.weight"):
        return [i * heads // r * (cols // heads) for i in range(r + 1)]
    if key.endswith("down_proj.weight"):
        pairs = (cols + 1) // 2
        return [min(2 * (i * pairs // r), cols) for i in range(r + 1)]
    return [0, cols]


def quantised(c, key, w):
    out = torch.empty_like(w)
    ends = sorted({*leaves(c, key, w.shape[1]), *range(0, w.shape[1], 128)})
    for k0, k1 in zip(ends, ends[1:]):
        group = w[:, k0:k1]
        scale = group.abs().amax(1, keepdim=True) / 448
        codes = (group / scale).clamp(-448, 448).to(F8).float()
        out[:, k0:k1] = torch.where(scale > 0, codes * scale, torch.zeros(()))
    return out


# ---- loading ----

def load(folder, weights):
    """A model of torch in f32 whose matrices are what the fp8 weights stand for. It is built from the
    config without its part on quantisation, because transformers would look for kernels."""
    c = json.loads((folder / "config.json").read_text())
    c.pop("quantization_config", None)
    stored = {}
    for path in sorted(folder.glob("*.safetensors")):
        with base.safe_open(str(path), framework="pt") as file:
            stored.update({key: file.get_tensor(key) for key in file.keys()})
    state = {}
    for key, w in stored.items():
        if key.endswith(("_scale", "_scale_inv")):
            continue
        scale = stored.get(key + "_scale", stored.get(key + "_scale_inv"))
        state[key] = w.float() if scale is None else w.float() * spread(scale, w.shape)
        if weights == "fp8" and is_projection(key):
            state[key] = quantised(c, key, state[key])
        elif weights == "fp8" and w.ndim == 2:
            state[key] = state[key].bfloat16().float()
    head, embed = "lm_head.weight", "model.embed_tokens.weight"
    if c.get("tie_word_embeddings"):
        state.setdefault(head, state.get(embed))
        state.setdefault(embed, state[head])
    model_type = c.pop("model_type")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **c),
                                             attn_implementation="eager").float()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    model.eval()
    return model


# ---- the run ----

def jobs(shared):
    for name, spec in TINY.items():
        vocab = spec["config"]["vocab_size"]
        yield name, "stored", "golden", DATA / name, [
            ("first token alone", [1], base.N_GREEDY),
            ("300 tokens", base.random_prompt(vocab, 300, 300), base.N_GREEDY)]
    for name in ("tiny-bf16-sharded", "tiny-f16-separate-head"):
        vocab = base.TINY[name]["config"]["vocab_size"]
        yield name, "fp8", "golden", DATA / name, [
            ("first token alone", [1], base.N_GREEDY),
            ("300 tokens", base.random_prompt(vocab, 300, 300), base.N_GREEDY)]
    name, where, folder, prompts = base.stories_job(shared)
    yield name, "fp8", where, folder, prompts


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shared", type=pathlib.Path, required=True, help="holds models/stories260k")
    p.add_argument("--check", action="store_true", help="compare with the records, write nothing")
    args = p.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    if not args.check:
        for name, spec in TINY.items():
            make_tiny(name, spec)
    failed = 0
    for name, weights, where, folder, prompts in jobs(args.shared):
        made = base.record(name, where, folder, weights, prompts, load)
        path = DATA / f"{name}.{weights}.json"
        if args.check:
            same = base.agrees(json.loads(path.read_text()), made)
            failed += not same
            print(f"{path.name}: {'the same' if same else 'DIFFERS'}")
            continue
        path.write_text(json.dumps(made, separators=(",", ":")) + "\n")
        gap = min(g for c in made["cases"] for g in c["greedy"]["gaps"])
        print(f"{path.name}: {path.stat().st_size} bytes, smallest greedy gap {gap:.2g}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
