#!/usr/bin/env python3
"""Make the tokenizer fixtures beside this file: small tokenizers and what the reference libraries say.

    python3 tests/golden/tokenizer_golden.py CORPUS.txt

needs `tokenizers` and `sentencepiece`. Each tests/golden/tokenizer_<name>/ gets the tokenizer's own
file and cases.txt, a line for each case:

    flags <TAB> text in hex <TAB> ids <TAB> decoded text in hex (special tokens shown)

flags: 1 adds BOS and EOS as the file says, 4 lets special tokens in the text match. Training is
deterministic, so running this again changes nothing while the libraries stay the same."""
import json
import os
import random
import sys
import tempfile

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers import processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
HARD = [
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "e\u0301", "A\u030a\u0316", "nai\u0308ve",
    "\u65e5\u672c\u8a9e", "\ud55c\uad6d\uc5b4", "\u05e2\u05d1\u05e8\u05d9\u05ea", "\u0645\u0631\u062d\u0628\u0627",
    "\x01\x7f", "\t", "   ", "      ", "\n\n", "\r\n", " \n \n", "1234567890", "\u0967\u0968\u0969", "\u2163",
    "\ufdfa", "\ufb01", "\u00a0", "\u3000", "\u200b", "\u2581", "\u180e", "\u0085", "\u2028", "<0x41>", "I'LL we'Ve '\u017f",
    "!!!...?", "x" * 40, "  leading", "trailing  ", "\u00df\u01c4", "caf\u00e9 cafe\u0301",
]
SPECIAL = ["<|bos|>", "<|eot|>", "<s>", "</s>", "<unk>", "<tool>", " [TOOL] ", "cat", "scat cat", " <sp> "]


def texts(corpus, seed, n):
    rng = random.Random(seed)
    out = ["", " ", "Hello world", *HARD]
    while len(out) < n:
        parts = []
        for _ in range(rng.randint(1, 6)):
            if rng.random() < 0.4:
                at = rng.randrange(len(corpus) - 40)
                parts.append(corpus[at:at + rng.randint(1, 24)])
            else:
                parts.append(rng.choice(HARD + SPECIAL))
        out.append("".join(parts))
    return out


def place(name):
    path = os.path.join(HERE, "tokenizer_" + name)
    os.makedirs(path, exist_ok=True)
    return path


def write_cases(path, rows):
    with open(os.path.join(path, "cases.txt"), "w", encoding="ascii") as f:
        for flags, text, ids, back in rows:
            f.write("%d\t%s\t%s\t%s\n" % (flags, text.encode().hex(), " ".join(map(str, ids)), back.encode().hex()))


def save(name, tok, corpus):
    path = place(name)
    doc = json.loads(tok.to_str())
    if name == "qwen2_style":  # the older spelling of merges
        doc["model"]["merges"] = [" ".join(m) for m in doc["model"]["merges"]]
    with open(os.path.join(path, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(doc, f, ensure_ascii=False, separators=(",", ":"))
    rows = []
    for i, text in enumerate(texts(corpus, name, 110)):
        flags = (0, 1, 4, 5)[i % 4]
        tok.encode_special_tokens = not flags & 4
        ids = tok.encode(text, add_special_tokens=bool(flags & 1)).ids
        rows.append((flags, text, ids, tok.decode(ids, skip_special_tokens=False)))
    write_cases(path, rows)


def byte_level(name, file, corpus, cut, normalizer=None, ignore_merges=False, bos=False):
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tok.pre_tokenizer, tok.decoder = cut, decoders.ByteLevel()
    if normalizer:
        tok.normalizer = normalizer
    tok.train([file], trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=["<|bos|>"],
                                          initial_alphabet=pre.ByteLevel.alphabet()))
    tok.add_tokens([AddedToken("<|eot|>", special=True, normalized=False), AddedToken("<tool>", normalized=False),
                    AddedToken("[TOOL]", lstrip=True, rstrip=True, normalized=True),
                    AddedToken("cat", single_word=True, normalized=True),
                    AddedToken("<sp>", special=True, lstrip=True, rstrip=True)])
    if bos:
        template = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", tok.token_to_id("<|bos|>"))])
        tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    save(name, tok, corpus)


def split(pattern):
    return pre.Sequence([pre.Split(Regex(pattern), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def piece_style(name, file, corpus, normalizer, cut):
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.pre_tokenizer = pre.Metaspace(prepend_scheme="always", split=True)
    reserved = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(256)]
    tok.train([file], trainers.BpeTrainer(vocab_size=750, special_tokens=reserved, show_progress=False))
    doc = json.loads(tok.to_str())
    doc["added_tokens"] = [a for a in doc["added_tokens"] if not a["content"].startswith("<0x")]
    doc["normalizer"], doc["pre_tokenizer"] = normalizer, cut
    tok = Tokenizer.from_str(json.dumps(doc))
    tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    tok.add_tokens([AddedToken("<|eot|>", special=True), AddedToken("<tool>", normalized=False)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    save(name, tok, corpus)


def fields(data):
    """(number, whole field, payload) of each field of a protobuf message."""
    def varint(at):
        value = shift = 0
        while True:
            value, shift, at = value | (data[at] & 127) << shift, shift + 7, at + 1
            if data[at - 1] < 128:
                return value, at
    at = 0
    while at < len(data):
        start = at
        key, at = varint(at)
        if key & 7 == 2:
            size, begin = varint(at)
            at = begin + size
        else:
            begin = at
            at = varint(at)[1] if key & 7 == 0 else at + (8 if key & 7 == 1 else 4)
        yield key >> 3, data[start:at], data[begin:at]


def without_paths(model):
    """A SentencePiece model without the names of the files that it was made from (trainer_spec's input and
    model_prefix, normalizer_spec's rule file): they tell about the machine, and nothing reads them."""
    drop, out = {2: {1, 2}, 3: {6}}, b""
    for number, whole, payload in fields(model):
        if number in drop:
            kept = b"".join(w for n, w, _ in fields(payload) if n not in drop[number])
            size, left = b"", len(kept)
            while left > 127:
                size, left = size + bytes([left & 127 | 128]), left >> 7
            whole = bytes([number << 3 | 2]) + size + bytes([left]) + kept
        out += whole
    return out


def sentence_piece(name, file, corpus, **how):
    path = place(name)
    with tempfile.TemporaryDirectory() as work:
        rules = os.path.join(work, "rules.tsv")
        with open(rules, "w", encoding="ascii") as f:  # a small character map: fi, full-width A, NBSP, e+acute, tab
            f.write("FB01\t66 69\nFF21\t41\nA0\t20\n65 301\tE9\n9\t20\n3000\t20\n")
        sentencepiece.SentencePieceTrainer.train(
            input=file, model_prefix=os.path.join(work, "t"), model_type="bpe", vocab_size=700, num_threads=1,
            minloglevel=2, normalization_rule_tsv=rules, byte_fallback=True, **how)
        with open(os.path.join(work, "t.model"), "rb") as made, open(os.path.join(path, "tokenizer.model"), "wb") as kept:
            kept.write(without_paths(made.read()))
    sp = sentencepiece.SentencePieceProcessor(model_file=os.path.join(path, "tokenizer.model"))
    rows = []
    for text in texts(corpus, name, 110):
        ids = sp.encode(text)
        rows.append((0, text, ids, sp.decode(ids)))
    write_cases(path, rows)


def main():
    file = sys.argv[1]
    with open(file, encoding="utf-8") as f:
        corpus = f.read()
    byte_level("llama3_style", file, corpus, split(LLAMA3), ignore_merges=True, bos=True)
    byte_level("qwen2_style", file, corpus, split(QWEN2), normalizers.NFC())
    byte_level("falcon_style", file, corpus, pre.Sequence([
        pre.Punctuation("contiguous"), pre.ByteLevel(add_prefix_space=True), pre.Digits(True),
        pre.Split(Regex("[0-9][0-9][0-9]"), "isolated")]))
    piece_style("llama2_style", file, corpus, {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}, None)
    piece_style("metaspace", file, corpus, None, {
        "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False})
    sentence_piece("sentencepiece", file, corpus, user_defined_symbols=["<tool>", "ABC", "the"])
    sentence_piece("sentencepiece_keep", file, corpus, remove_extra_whitespaces=False, split_digits=True)


if __name__ == "__main__":
    main()
