#!/usr/bin/env python3
"""tests/bench/to_gguf.py DIR FILE - the random weights of make_model as llama.cpp reads them, bf16, without a vocabulary.

For the bench `peers` only: q and k keep Hugging Face's order of dimensions, so what the model says is other nonsense at the same
speed. Needs numpy and gguf (llama.cpp's gguf-py, or PyPI); exit 77 with a word without them.
"""
import json
import pathlib
import struct
import sys

try:
    import gguf
    import numpy
except ImportError as missing:
    print(f"to_gguf: skipped: {missing}")
    sys.exit(77)

NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down"}
OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}


def name_of(name):
    if name in OUTER:
        return OUTER[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def main():
    folder, out = map(pathlib.Path, sys.argv[1:])
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    weights = folder / "model.safetensors"
    with open(weights, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        tensors = json.loads(file.read(size))
    data = numpy.memmap(weights, numpy.uint8, "r", 8 + size)
    for name, tensor in tensors.items():
        begin, end = tensor["data_offsets"]
        values = data[begin:end]
        if len(tensor["shape"]) == 1:  # vectors are f32 there
            wide = values.view(numpy.uint16).astype(numpy.uint32) << 16
            writer.add_tensor(name_of(name), wide.view(numpy.float32))
        else:
            rows, cols = tensor["shape"]
            writer.add_tensor(name_of(name), values.reshape(rows, cols * 2), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
