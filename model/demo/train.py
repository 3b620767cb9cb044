#!/usr/bin/env python3
"""Train the demo model of this folder from plain texts.

    python3 model/demo/train.py CORPORA --work /somewhere/demo --minutes 70

CORPORA is a folder of .txt files. The script strips Project Gutenberg's headers and footers, undoes
the hard line wrapping, trains a byte-level BPE tokenizer, then a small Llama, and writes both in
Hugging Face layout to --out (this folder by default). Everything else (token cache, checkpoint, log)
stays in --work: run the same command again and it goes on from the checkpoint.

The schedule follows the clock, not a step count: the learning rate falls to zero when the minutes are
spent, however busy the machine was. The last 5 % of every text is never trained on (nor seen by the
tokenizer's training); its loss decides which weights are exported, so an overfitted end does no harm.

Needs torch, numpy, tokenizers and safetensors. Uses a CUDA device where there is one.
"""
import argparse
import json
import math
import os
import pathlib
import re
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

# 6 layers cut over pp = 1..6; 8 heads and ffn 640 cut over tp = 1, 2, 4, 8. 5.18 M parameters.
DIMS = dict(vocab=4096, dim=256, layers=6, heads=8, kv_heads=4, head_dim=32, ffn=640,
            context=1024, eps=1e-5, theta=10000.0)
BOS, EOS = "<|bos|>", "<|eos|>"

# Llama 3's word splitting: contractions, words with one leading mark or blank, numbers by at most
# three digits, punctuation, line ends, blanks.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")


# ---- texts ----

def read_text(path):
    """One text as a list of paragraphs."""
    text = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    begin = re.search(r"\*\*\* ?START OF TH(?:IS|E) PROJECT GUTENBERG.*", text)
    end = re.search(r"\*\*\* ?END OF TH(?:IS|E) PROJECT GUTENBERG", text)
    if begin and end:
        text = text[begin.end():end.start()]
    # Two of the books use typographic marks, the others ASCII: one spelling for all, else a model
    # this small learns every sentence twice.
    for mark, plain in (("\u201c", '"'), ("\u201d", '"'), ("\u2018", "'"), ("\u2019", "'"),
                        ("\u2014", "--"), ("\u2013", "-"), ("\u00a0", " "), ("_", "")):
        text = text.replace(mark, plain)
    paragraphs = []
    for block in re.split(r"\n[ \t]*\n+", text):
        lines = [re.sub(r"[ \t]+", " ", line).strip() for line in block.split("\n")]
        joined = ""
        for line in filter(None, lines):
            # A full line was wrapped by the typist; a short one (verse, a speaker's name) was meant.
            wrapped = len(joined) - (joined.rfind("\n") + 1) >= 52
            joined += (" " if wrapped else "\n") + line if joined else line
        if joined:
            paragraphs.append(joined)
    return paragraphs


def passages(paragraphs, size=2200):
    """Paragraphs joined to passages of at least `size` characters. Each becomes <bos> text <eos>, so
    that a prompt of <bos> alone is at home and the model knows how to come to an end."""
    out, part = [], []
    for paragraph in paragraphs:
        part.append(paragraph)
        if sum(map(len, part)) >= size:
            out.append("\n\n".join(part))
            part = []
    return out + (["\n\n".join(part)] if part else [])


def load_corpora(folder, held_out=0.05):
    """(training passages, held-out passages)"""
    train, held = [], []
    for path in sorted(pathlib.Path(folder).glob("*.txt")):
        paragraphs = read_text(path)
        total, seen, cut = sum(map(len, paragraphs)), 0, len(paragraphs)
        for i, paragraph in enumerate(paragraphs):
            seen += len(paragraph)
            if seen > (1.0 - held_out) * total:
                cut = i
                break
        train += passages(paragraphs[:cut])
        held += passages(paragraphs[cut:])
        print(f"{path.name}: {total} characters, {len(paragraphs)} paragraphs", flush=True)
    if not train:
        raise SystemExit(f"{folder}: no .txt files")
    return train, held


# ---- tokenizer ----

def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=DIMS["vocab"], special_tokens=[BOS, EOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1",
                                      special_tokens=[(BOS, bos)])])
    return tokenizer


def encode(tokenizer, texts):
    eos = tokenizer.token_to_id(EOS)
    ids = []
    for encoded in tokenizer.encode_batch(texts):
        ids += encoded.ids + [eos]
    return np.array(ids, dtype=np.int32)


# ---- model ----
# Llama as transformers' LlamaForCausalLM computes it (rotary halves, not pairs), with the same tensor
# names, so that the export is the state dict itself.

class Linear(torch.nn.Module):
    def __init__(self, n_in, n_out, scale=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(n_out, n_in) * (scale / math.sqrt(n_in)))

    def forward(self, x):
        return F.linear(x, self.weight)


class Norm(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(dim))

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + DIMS["eps"]) * self.weight


def rotate(x, cos, sin):
    """x [B, H, T, D] turned by its position; cos, sin [T, D/2]."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def attend(q, k, v):
    """Causal attention over [B, H, T, D]. Written out for short windows on a CPU: with torch.compile it
    takes half the time of torch's flash kernel there."""
    t = q.shape[2]
    if q.device.type != "cpu" or t > 512:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    later = torch.ones(t, t, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[3])
    return scores.masked_fill(later, -1e30).softmax(-1).to(v.dtype) @ v


class Attention(torch.nn.Module):
    def __init__(self, d):
        super().__init__()
        self.h, self.k, self.d = d["heads"], d["kv_heads"], d["head_dim"]
        self.q_proj = Linear(d["dim"], self.h * self.d)
        self.k_proj = Linear(d["dim"], self.k * self.d)
        self.v_proj = Linear(d["dim"], self.k * self.d)
        self.o_proj = Linear(self.h * self.d, d["dim"], 1 / math.sqrt(2 * d["layers"]))

    def forward(self, x, cos, sin):
        n, t, _ = x.shape
        q = rotate(self.q_proj(x).view(n, t, self.h, self.d).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(n, t, self.k, self.d).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(n, t, self.k, self.d).transpose(1, 2)
        k, v = (y.repeat_interleave(self.h // self.k, dim=1) for y in (k, v))
        return self.o_proj(attend(q, k, v).transpose(1, 2).reshape(n, t, self.h * self.d))


class Mlp(torch.nn.Module):
    def __init__(self, d):
        super().__init__()
        self.gate_proj = Linear(d["dim"], d["ffn"])
        self.up_proj = Linear(d["dim"], d["ffn"])
        self.down_proj = Linear(d["ffn"], d["dim"], 1 / math.sqrt(2 * d["layers"]))

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(torch.nn.Module):
    def __init__(self, d):
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(d["dim"]), Attention(d)
        self.post_attention_layernorm, self.mlp = Norm(d["dim"]), Mlp(d)

    def forward(self, x, cos, sin, drop):
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), cos, sin), drop, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), drop, self.training)


class Llama(torch.nn.Module):
    def __init__(self, d):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(d["vocab"], d["dim"])
        torch.nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = torch.nn.ModuleList(Layer(d) for _ in range(d["layers"]))
        self.norm = Norm(d["dim"])
        self.drop = 0.0
        freq = d["theta"] ** (-torch.arange(0, d["head_dim"], 2).float() / d["head_dim"])
        angle = torch.outer(torch.arange(d["context"]).float(), freq)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids, targets):
        """Mean cross entropy of targets [B, T] after ids [B, T]."""
        t = ids.shape[1]
        x = F.dropout(self.embed_tokens(ids), self.drop, self.training)
        for layer in self.layers:
            x = layer(x, self.cos[:t], self.sin[:t], self.drop)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


# ---- optimizer ----

class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (five Newton-Schulz steps) for the matrices inside the
    layers. Others found it to need fewer tokens than AdamW; not compared here (--optimizer adamw)."""

    def __init__(self, params, lr, momentum=0.95, decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, decay=decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(state["momentum"], group["momentum"])
                wide = g.shape[0] <= g.shape[1]
                x = g if wide else g.T
                x = (x / (x.norm() + 1e-7)).bfloat16()  # the steps forgive its rounding
                for _ in range(5):
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                x = (x if wide else x.T).float()
                p.mul_(1 - group["lr"] * group["decay"])
                p.add_(x, alpha=-group["lr"] * math.sqrt(max(1.0, p.shape[0] / p.shape[1])))


def make_optimizers(model, args):
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    embedding = [model.embed_tokens.weight]
    adam = [dict(params=norms, lr=args.lr, weight_decay=0.0),
            dict(params=embedding, lr=args.lr, weight_decay=args.decay)]
    out = []
    if args.optimizer == "muon":
        out.append(Muon(matrices, lr=args.lr_muon, decay=args.decay))
    else:
        adam.append(dict(params=matrices, lr=args.lr, weight_decay=args.decay))
    out.append(torch.optim.AdamW(adam, betas=(0.9, 0.95), eps=1e-9))
    for optimizer in out:
        for group in optimizer.param_groups:
            group["lr_peak"] = group["lr"]
    return out


def schedule(done):
    """Factor on the peak rate after the share `done` of the time: 2 % warm-up, then a cosine to 0."""
    if done < 0.02:
        return max(done / 0.02, 0.02)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - 0.02) / 0.98)))


def window(done):
    """Tokens per window. Long ones are dear, and the last steps are enough to make far positions usable."""
    return 256 if done < 0.7 else 512 if done < 0.9 else DIMS["context"]


# ---- batches and evaluation ----

def batch_at(ids, rng, n, t, device):
    """n random windows of t tokens and their successors."""
    starts = rng.integers(0, len(ids) - t - 1, size=n)
    both = torch.from_numpy(np.stack([ids[s:s + t + 1] for s in starts]).astype(np.int64)).to(device)
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def held_out_loss(model, ids, t, cast, device):
    """Mean loss over all whole windows of t tokens, each predicted from its own window only."""
    model.eval()
    total, n = 0.0, (len(ids) - 1) // t
    with torch.no_grad(), cast():
        for i in range(n):
            both = torch.from_numpy(ids[i * t:i * t + t + 1].astype(np.int64)).to(device)[None]
            total += model(both[:, :-1], both[:, 1:]).item()
    model.train()
    return total / n


# ---- export ----

def write_atomically(path, write):
    part = path.with_name(path.name + ".part")
    write(part)
    part.chmod(0o644)  # safetensors makes files that only their owner can read
    os.replace(part, path)


def export(model, tokenizer, out, report):
    out.mkdir(parents=True, exist_ok=True)
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", torch_dtype="bfloat16",
        hidden_size=DIMS["dim"], intermediate_size=DIMS["ffn"], num_hidden_layers=DIMS["layers"],
        num_attention_heads=DIMS["heads"], num_key_value_heads=DIMS["kv_heads"],
        head_dim=DIMS["head_dim"], vocab_size=DIMS["vocab"], max_position_embeddings=DIMS["context"],
        rms_norm_eps=DIMS["eps"], rope_theta=DIMS["theta"], rope_scaling=None, hidden_act="silu",
        tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
        bos_token_id=bos, eos_token_id=eos)
    generation = dict(bos_token_id=bos, eos_token_id=eos, do_sample=True, temperature=0.7, top_p=0.95)
    special = dict(lstrip=False, rstrip=False, normalized=False, single_word=False, special=True)
    tokenizer_config = dict(
        tokenizer_class="PreTrainedTokenizerFast", bos_token=BOS, eos_token=EOS,
        model_max_length=DIMS["context"], clean_up_tokenization_spaces=False,
        added_tokens_decoder={str(bos): dict(content=BOS, **special),
                              str(eos): dict(content=EOS, **special)})
    for name, value in (("config.json", config), ("generation_config.json", generation),
                        ("tokenizer_config.json", tokenizer_config), ("training.json", report)):
        text = json.dumps(value, indent=1) + "\n"
        write_atomically(out / name, lambda part, text=text: part.write_text(text))
    write_atomically(out / "tokenizer.json", lambda part: tokenizer.save(str(part), pretty=False))
    tensors = {"model." + name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
               for name, tensor in model.state_dict().items()}
    write_atomically(out / "model.safetensors",
                     lambda part: save_file(tensors, str(part), metadata={"format": "pt"}))


# ---- the run ----

def arguments():
    here = pathlib.Path(__file__).resolve().parent
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("corpora", type=pathlib.Path)
    p.add_argument("--work", type=pathlib.Path, required=True, help="checkpoint, token cache, log")
    p.add_argument("--out", type=pathlib.Path, default=here)
    p.add_argument("--minutes", type=float, default=70)
    p.add_argument("--threads", type=int, default=0, help="CPU threads; 0: what torch chooses")
    p.add_argument("--batch", type=int, default=3072, help="tokens per step")
    p.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    p.add_argument("--lr", type=float, default=3e-3, help="AdamW")
    p.add_argument("--lr-muon", type=float, default=0.02)
    p.add_argument("--decay", type=float, default=0.1)
    p.add_argument("--dropout", type=float, default=0.1)
    p.add_argument("--dtype", choices=("f32", "bf16"), default="bf16", help="of the products")
    p.add_argument("--compile", action="store_true", help="torch.compile: needs a C++ compiler")
    p.add_argument("--eval-minutes", type=float, default=5)
    p.add_argument("--steps", type=int, default=0, help="stop after so many (for measuring); 0: no bound")
    p.add_argument("--seed", type=int, default=1)
    return p.parse_args()


def prepare(args):
    """Tokenizer, training ids, held-out ids and held-out bytes; cached in args.work."""
    cache, tokenizer_path = args.work / "tokens.npz", args.work / "tokenizer.json"
    if not cache.exists():
        train, held = load_corpora(args.corpora)
        tokenizer = train_tokenizer(train)
        held_bytes = sum(len(text.encode()) for text in held)
        np.savez(cache, train=encode(tokenizer, train), held=encode(tokenizer, held), held_bytes=held_bytes)
        tokenizer.save(str(tokenizer_path))
    data = np.load(cache)
    return Tokenizer.from_file(str(tokenizer_path)), data["train"], data["held"], int(data["held_bytes"])


def main():
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def cast():
        return torch.autocast(device, dtype=torch.bfloat16, enabled=args.dtype == "bf16")

    tokenizer, train, held, held_bytes = prepare(args)
    model = Llama(DIMS).to(device)
    optimizers = make_optimizers(model, args)
    run = dict(step=0, tokens=0, seconds=0.0, best=math.inf, history=[])
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        run = saved["run"]
    model.drop = args.dropout
    forward = torch.compile(model, dynamic=False) if args.compile else model
    n_params = sum(p.numel() for p in model.parameters())
    print(f"{n_params} parameters, {len(train)} training tokens, {len(held)} held out, {device}, "
          f"from step {run['step']}", flush=True)

    def evaluate():
        loss = held_out_loss(model, held, DIMS["context"] // 2, cast, device)
        run["history"].append([run["step"], round(loss, 4)])
        best = loss < run["best"]
        print(f"step {run['step']}: held-out loss {loss:.4f}{' (exported)' if best else ''}", flush=True)
        if best:
            run["best"] = loss
            bits = loss * len(held) / held_bytes / math.log(2)
            export(model, tokenizer, args.out, dict(
                parameters=n_params, steps=run["step"], tokens=run["tokens"],
                epochs=round(run["tokens"] / len(train), 2), minutes=round(run["seconds"] / 60, 1),
                training_tokens=len(train), held_out_tokens=len(held),
                held_out_loss=round(loss, 4), held_out_bits_per_byte=round(bits, 4),
                optimizer=args.optimizer, history=list(run["history"])))
        write_atomically(checkpoint, lambda part: torch.save(dict(
            model=model.state_dict(), optimizers=[o.state_dict() for o in optimizers], run=run), part))

    rng = np.random.default_rng([args.seed, run["step"]])
    budget = args.minutes * 60
    shown = evaluated = run["seconds"]
    model.train()
    began = time.monotonic()
    while run["seconds"] < budget and not (args.steps and run["step"] >= args.steps):
        factor = schedule(run["seconds"] / budget)
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = group["lr_peak"] * factor
        t = window(run["seconds"] / budget)
        ids, targets = batch_at(train, rng, max(1, args.batch // t), t, device)
        with cast():
            loss = forward(ids, targets)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        now = time.monotonic()
        run["step"] += 1
        run["tokens"] += ids.numel()
        run["seconds"] += now - began
        began = now
        if run["seconds"] - shown >= 20:
            shown = run["seconds"]
            print(f"step {run['step']} {run['seconds'] / 60:.1f} min, {run['tokens'] / 1e6:.2f} M tokens, "
                  f"{run['tokens'] / run['seconds']:.0f} tokens/s, loss {loss.item():.3f}", flush=True)
        if run["seconds"] - evaluated >= 60 * args.eval_minutes:
            evaluate()
            evaluated = run["seconds"]
    if not args.steps:
        evaluate()


if __name__ == "__main__":
    main()
