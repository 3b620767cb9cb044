#!/usr/bin/env python3
"""Record what Hugging Face transformers computes, for the C tests to compare with.

    python3 tests/golden/record_logits.py --shared ../shared            # everything
    python3 tests/golden/record_logits.py --shared ../shared --only demo
    python3 tests/golden/record_logits.py --shared ../shared --check    # are the records still true?

Three kinds of model: the tiny ones that this script makes itself (random weights, data/<name>/, each
there for something that a reader or a forward pass gets wrong), the demo model of the tree, and
stories260k of the shared folder. Every model is loaded from its files by transformers, computed in f32
with plain ("eager") attention, once with its weights as stored and once with every matrix rounded to
bf16 (norms and biases as stored), and written to data/<name>.<weights>.json: format in README.md.

Needs torch, transformers, safetensors, tokenizers and sentencepiece.
"""
import argparse
import hashlib
import json
import math
import pathlib
import sys

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE / "data"
N_TOP, N_GREEDY = 32, 64


# ---- the tiny models ----

def config(**more):
    base = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=64,
                num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4, head_dim=8,
                intermediate_size=128, vocab_size=512, max_position_embeddings=512, rms_norm_eps=1e-5,
                rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=False,
                attention_bias=False, mlp_bias=False, bos_token_id=1, eos_token_id=2,
                torch_dtype="float32")
    base.update(more)
    return {k: v for k, v in base.items() if v is not None}


TINY = {
    # f16 files; an odd vocabulary; 6 heads of 16 in a model of 66 (head_dim is not dim / heads); an ffn
    # that no power of two but 2 divides.
    "tiny-f16-separate-head": dict(
        dtype=torch.float16, shards=1,
        config=config(hidden_size=66, num_attention_heads=6, num_key_value_heads=3, head_dim=16,
                      num_hidden_layers=2, intermediate_size=90, vocab_size=517,
                      torch_dtype="float16")),
    # Three files and an index; head_dim left to be derived; more than one end of text.
    "tiny-bf16-sharded": dict(
        dtype=torch.bfloat16, shards=3,
        config=config(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=None,
                      intermediate_size=112, vocab_size=300, rms_norm_eps=1e-6,
                      torch_dtype="bfloat16", eos_token_id=[2, 7])),
    # Llama 3.1's stretched rope, with the stretch inside the first hundreds of positions; every bias.
    "tiny-llama3-rope": dict(
        dtype=torch.bfloat16, shards=1,
        config=config(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                      num_hidden_layers=3, intermediate_size=96, vocab_size=256, rope_theta=500000.0,
                      max_position_embeddings=1024, attention_bias=True, mlp_bias=True,
                      rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                        high_freq_factor=4.0, original_max_position_embeddings=64),
                      torch_dtype="bfloat16")),
    # Tied, and the file holds the matrix under the head's name only.
    "tiny-lmhead-only": dict(
        dtype=torch.float32, shards=1,
        config=config(hidden_size=48, num_attention_heads=4, num_key_value_heads=4, head_dim=12,
                      num_hidden_layers=2, intermediate_size=72, vocab_size=384,
                      tie_word_embeddings=True)),
    # Biases on q, k and v only; rope positions divided by 2.
    "tiny-qwen2-linear-rope": dict(
        dtype=torch.bfloat16, shards=1,
        config=config(architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=64,
                      num_attention_heads=4, num_key_value_heads=2, head_dim=None, num_hidden_layers=2,
                      intermediate_size=176, vocab_size=400, rope_theta=1000000.0,
                      attention_bias=None, mlp_bias=None, use_sliding_window=False,
                      rope_scaling=dict(type="linear", factor=2.0), tie_word_embeddings=True,
                      torch_dtype="bfloat16")),
    # A norm per head on q and k; the config as transformers 5 writes it (rope_parameters, dtype).
    "tiny-qwen3-head-norm": dict(
        dtype=torch.bfloat16, shards=1,
        config=config(architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=64,
                      num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_hidden_layers=2,
                      intermediate_size=96, vocab_size=320, rope_theta=None, mlp_bias=None,
                      use_sliding_window=False, torch_dtype=None, dtype="bfloat16",
                      rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
}


def tiny_shapes(c):
    """Tensor name -> shape, in the order of the files. Qwen2 has no bias on the output product."""
    dim, ffn, heads, kv = (c["hidden_size"], c["intermediate_size"], c["num_attention_heads"],
                           c["num_key_value_heads"])
    d = c.get("head_dim") or dim // heads
    qwen2, qwen3 = c["model_type"] == "qwen2", c["model_type"] == "qwen3"
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], dim)}
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes[at + "input_layernorm.weight"] = (dim,)
        for name, n_out, n_in in (("q", heads * d, dim), ("k", kv * d, dim), ("v", kv * d, dim),
                                  ("o", dim, heads * d)):
            shapes[at + f"self_attn.{name}_proj.weight"] = (n_out, n_in)
            if c.get("attention_bias") or (qwen2 and name != "o"):
                shapes[at + f"self_attn.{name}_proj.bias"] = (n_out,)
        if qwen3:
            shapes[at + "self_attn.q_norm.weight"] = (d,)
            shapes[at + "self_attn.k_norm.weight"] = (d,)
        shapes[at + "post_attention_layernorm.weight"] = (dim,)
        for name, n_out, n_in in (("gate", ffn, dim), ("up", ffn, dim), ("down", dim, ffn)):
            shapes[at + f"mlp.{name}_proj.weight"] = (n_out, n_in)
            if c.get("mlp_bias"):
                shapes[at + f"mlp.{name}_proj.bias"] = (n_out,)
    shapes["model.norm.weight"] = (dim,)
    shapes["lm_head.weight"] = (c["vocab_size"], dim)
    return shapes


def save(tensors, path):
    save_file(tensors, str(path), metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def make_tiny(name, spec):
    """Random weights, wide enough that attention is not flat and the best token is clearly the best."""
    torch.manual_seed(sum(name.encode()))
    c, tensors = spec["config"], {}
    for key, shape in tiny_shapes(c).items():
        if key.endswith("norm.weight"):
            value = 1.0 + 0.2 * torch.randn(shape)
        elif key.endswith("bias"):
            value = 0.3 * torch.randn(shape)
        elif "embed" in key or "lm_head" in key:
            value = 0.35 * torch.randn(shape)
        else:
            value = torch.randn(shape) * (1.5 / math.sqrt(shape[1]))
        tensors[key] = value
    # What a conversion of f16 gets wrong first: its denormals and its negative zero.
    tensors["model.embed_tokens.weight"][:, :4] = torch.tensor([6e-8, -3.3e-6, -0.0, 6.1e-5])
    if c["tie_word_embeddings"]:
        tied = tensors.pop("model.embed_tokens.weight")
        tensors["lm_head.weight"] = tied
        if name != "tiny-lmhead-only":
            tensors = {"model.embed_tokens.weight": tensors.pop("lm_head.weight"), **tensors}
    tensors = {k: v.to(spec["dtype"]).contiguous() for k, v in tensors.items()}

    folder = DATA / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(c, indent=1) + "\n")
    if spec["shards"] == 1:
        save(tensors, folder / "model.safetensors")
        return
    keys, weight_map = list(tensors), {}
    for i in range(spec["shards"]):
        part = keys[len(keys) * i // spec["shards"]:len(keys) * (i + 1) // spec["shards"]]
        file = f"model-{i + 1:05d}-of-{spec['shards']:05d}.safetensors"
        save({k: tensors[k] for k in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = dict(metadata=dict(total_size=total), weight_map=weight_map)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


# ---- loading ----

def stored_tensors(folder):
    out = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            for key in file.keys():
                out[key] = file.get_tensor(key).float()
    return out


def load(folder, weights):
    """The model in f32 from its files. Every parameter is compared with the files: a name that
    transformers did not take would leave random numbers behind."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    stored = stored_tensors(folder)
    head, embed = "lm_head.weight", "model.embed_tokens.weight"
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            source = key if key in stored else {head: embed, embed: head}[key]
            if not torch.equal(parameter, stored[source]):
                print(f"{folder.name}: transformers did not take {key} from {source}; set by hand")
                parameter.copy_(stored[source])
            if weights == "bf16" and parameter.ndim == 2:
                parameter.copy_(parameter.bfloat16().float())
    # No pointer comparison: tied means equal.
    if model.config.tie_word_embeddings:
        assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    return model


# ---- recording ----

def number(x):
    return float(f"{float(x):.8g}")


def logits_at(row, pos):
    top = torch.topk(row, min(N_TOP, row.numel()))
    return dict(pos=pos, lse=number(torch.logsumexp(row.double(), 0)), mean=number(row.double().mean()),
                rms=number(row.double().square().mean().sqrt()),
                top=[[int(i), number(v)] for v, i in zip(top.values, top.indices)])


def greedy(model, prompt, n):
    """n tokens after the prompt, ending for nothing; per token its log-probability and the distance of
    its logit to the second best."""
    ids, gaps, logprobs, cache = [], [], [], None
    step = torch.tensor([prompt])
    for _ in range(n):
        out = model(step, past_key_values=cache, use_cache=True)
        cache, row = out.past_key_values, out.logits[0, -1]
        best = torch.topk(row, 2).values
        token = int(row.argmax())
        ids.append(token)
        gaps.append(number(best[0] - best[1]))
        logprobs.append(number(best[0].double() - torch.logsumexp(row.double(), 0)))
        step = torch.tensor([[token]])
    return dict(ids=ids, gaps=gaps, logprobs=logprobs)


def record(name, where, folder, weights, prompts, load=load):
    """The record of one model as a dict; prompts: [(name, ids, greedy tokens)]."""
    model = load(folder, weights)
    cases = []
    with torch.no_grad():
        for case, prompt, n in prompts:
            rows = model(torch.tensor([prompt])).logits[0]
            last = len(prompt) - 1
            at = sorted({0, min(1, last), last // 3, 2 * last // 3, last - 1 if last else 0, last})
            cases.append(dict(name=case, prompt=prompt, logits=[logits_at(rows[i], i) for i in at],
                              greedy=greedy(model, prompt, n)))
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest()
             for p in sorted(folder.iterdir()) if p.suffix == ".safetensors" or p.name == "config.json"}
    return dict(format=1, model=name, where=where, weights=weights, vocab=model.config.vocab_size,
                made_with=f"transformers {transformers.__version__}, torch {torch.__version__}",
                sha256=files, cases=cases)


def random_prompt(vocab, n, seed):
    generator = torch.Generator().manual_seed(seed)
    return [1] + torch.randint(3, vocab, (n - 1,), generator=generator).tolist()


def tiny_jobs():
    for name, spec in TINY.items():
        vocab = spec["config"]["vocab_size"]
        yield name, "golden", DATA / name, [
            ("first token alone", [1], N_GREEDY), ("7 tokens", random_prompt(vocab, 7, 7), N_GREEDY),
            # Over several KV blocks and over the end of an attention span.
            ("300 tokens", random_prompt(vocab, 300, 300), N_GREEDY)]


def stories_job(shared):
    import sentencepiece
    folder = shared / "models" / "stories260k"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    expected = (folder / "expected_greedy_200.txt").read_text()
    long = [1] + pieces.encode(expected + "\n" + expected)
    return "stories260k", "shared/models", folder, [
        ("first token alone", [1], 200),
        ("a sentence", [1] + pieces.encode("Tom and his dog went to the river."), N_GREEDY),
        ("a long story", long[:400], N_GREEDY)]


def check_stories(made, shared):
    """transformers' greedy text must be the text that llama2.c's own program gave."""
    import sentencepiece
    folder = shared / "models" / "stories260k"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    expected = (folder / "expected_greedy_200.txt").read_text().strip()
    ids = made["cases"][0]["greedy"]["ids"]
    for n in (199, 200):
        if pieces.decode(ids[:n]).strip() == expected:
            print(f"stories260k: greedy text of {n} new tokens equals expected_greedy_200.txt")
            return
    raise SystemExit(f"stories260k: expected\n{expected}\ngot\n{pieces.decode(ids)}")


def demo_job(folder):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = tokenizer.encode("").ids
    opening = tokenizer.encode("It is a truth universally acknowledged, that a").ids
    text = (HERE / "passage.txt").read_text()
    return "demo", "model", folder, [
        ("first token alone", bos, N_GREEDY), ("an opening", opening, N_GREEDY),
        ("a long passage", tokenizer.encode(text).ids[:440], N_GREEDY)]


# ---- the run ----

def agrees(old, new, tolerance=1e-4):
    """Are two records the same but for the last digits?"""
    if isinstance(old, dict):
        keys = set(old) | set(new)
        return all(k in old and k in new and agrees(old[k], new[k]) for k in keys if k != "made_with")
    if isinstance(old, list):
        return len(old) == len(new) and all(map(agrees, old, new))
    if isinstance(old, float):
        return abs(old - new) <= tolerance * max(1.0, abs(old))
    return old == new


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shared", type=pathlib.Path, required=True, help="holds models/stories260k")
    p.add_argument("--demo", type=pathlib.Path, default=HERE.parent.parent / "model" / "demo")
    p.add_argument("--only", help="one model by name")
    p.add_argument("--check", action="store_true", help="compare with the records, write nothing")
    args = p.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()

    if not args.check:
        for name, spec in TINY.items():
            if args.only in (None, name):
                make_tiny(name, spec)
    jobs = list(tiny_jobs())
    if args.only in (None, "stories260k"):
        jobs.append(stories_job(args.shared))
    if args.only in (None, "demo"):
        jobs.append(demo_job(args.demo))
    failed = 0
    for name, where, folder, prompts in jobs:
        if args.only not in (None, name):
            continue
        for weights in ("stored", "bf16"):
            made = record(name, where, folder, weights, prompts)
            if name == "stories260k" and weights == "stored":
                check_stories(made, args.shared)
            path = DATA / f"{name}.{weights}.json"
            if args.check:
                same = agrees(json.loads(path.read_text()), made)
                failed += not same
                print(f"{path.name}: {'the same' if same else 'DIFFERS'}")
                continue
            path.write_text(json.dumps(made, separators=(",", ":")) + "\n")
            gap = min(g for c in made["cases"] for g in c["greedy"]["gaps"])
            print(f"{path.name}: {path.stat().st_size} bytes, smallest greedy gap {gap:.2g}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
