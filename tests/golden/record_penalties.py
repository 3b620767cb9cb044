#!/usr/bin/env python3
"""Record greedy answers under penalties, for the C test to compare with.

    python3 tests/golden/record_penalties.py            # writes data/penalties.json
    python3 tests/golden/record_penalties.py --check    # is the record still true?

The repetition penalty is done by transformers' own RepetitionPenaltyLogitsProcessor; presence, frequency
and biases by a few lines here, as OpenAI's reference describes them. Models are loaded and computed as in
record_logits.py (f32, eager attention). Format in README.md.

Needs what record_logits.py needs, but for sentencepiece.
"""
import argparse
import json
import sys

import torch
import transformers
from transformers import RepetitionPenaltyLogitsProcessor

from record_logits import DATA, HERE, agrees, load, number, random_prompt

N = 48
MODELS = {
    "tiny-qwen3-head-norm": ("tests/golden/data/tiny-qwen3-head-norm", 320),
    "tiny-llama3-rope": ("tests/golden/data/tiny-llama3-rope", 256),
    "demo": ("model/demo", 4096),
}
PENALTIES = [
    dict(repetition=1.3), dict(repetition=0.8), dict(presence=1.5), dict(frequency=0.7), dict(frequency=-0.4),
    dict(repetition=1.1, presence=0.5, frequency=0.25, biases=[[40, 2.0], [17, -3.5], [200, 4.0]]),
]


def adjusted(row, prompt, made, p):
    """The row of logits that a token is chosen from."""
    row = row.clone()
    seen = torch.tensor([prompt + made])
    if p.get("repetition", 1.0) != 1.0:
        row = RepetitionPenaltyLogitsProcessor(penalty=p["repetition"])(seen, row[None])[0]
    counts = torch.bincount(torch.tensor(made, dtype=torch.long), minlength=row.numel())
    row = row - counts * p.get("frequency", 0.0) - (counts > 0) * p.get("presence", 0.0)
    for token, bias in p.get("biases", []):
        row[token] += bias
    return row


def answer(model, prompt, p):
    ids, gaps, logprobs, cache, step = [], [], [], None, torch.tensor([prompt])
    rms = 0.0
    for _ in range(N):
        out = model(step, past_key_values=cache, use_cache=True)
        cache, row = out.past_key_values, out.logits[0, -1]
        best = torch.topk(adjusted(row, prompt, ids, p), 2)
        token = int(best.indices[0])
        rms = max(rms, float(row.square().mean().sqrt()))
        gaps.append(number(best.values[0] - best.values[1]))
        logprobs.append(number(row[token].double() - torch.logsumexp(row.double(), 0)))
        ids.append(token)
        step = torch.tensor([[token]])
    return dict(penalties=p, prompt=prompt, rms=number(rms), ids=ids, gaps=gaps, logprobs=logprobs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the record, write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    made = dict(format=1, made_with=f"transformers {transformers.__version__}, torch {torch.__version__}", models=[])
    for name, (folder, vocab) in MODELS.items():
        model = load(HERE.parent.parent / folder, "stored")
        with torch.no_grad():
            cases = [answer(model, random_prompt(vocab, n, n), p) for n in (1, 60) for p in PENALTIES]
        made["models"].append(dict(name=name, dir=folder, cases=cases))
    path = DATA / "penalties.json"
    if args.check:
        same = agrees(json.loads(path.read_text()), made)
        print(f"{path.name}: {'the same' if same else 'DIFFERS'}")
        sys.exit(0 if same else 1)
    path.write_text(json.dumps(made, separators=(",", ":")) + "\n")
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
