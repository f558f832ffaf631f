"""GGUF files in every block format that is read, written by the `gguf` package: imported, each tensor equals what that package
dequantises, bit for bit; and formats that are not read are refused by name.

    SHARP_BIN=target/release/sharp python3 tests/interop/gguf_quantised.py
"""
# Quick: `cargo xtask test` runs it.

import os
import pathlib
import subprocess
import tempfile

from support import scratch

scratch.inside("gguf==0.19.0", "numpy==2.4.6", "safetensors==0.8.0")

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import load_file
from support.scratch import sharp

TOKENIZER = pathlib.Path(__file__).parents[1] / "golden" / "gguf" / "qwen2" / "model.gguf"
HIDDEN, INNER, HEADS = 256, 768, 4
# Where the 16-bit floats of a block lie: they are kept sensible, all else is random bytes.
FLOATS = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.IQ4_NL: [0], T.Q4_K: [0, 2],
          T.Q5_K: [0, 2], T.Q6_K: [208]}
NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def stored(rng, kind, rows, columns):
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
    for at in FLOATS[kind]:
        scales = (rng.standard_normal(len(blocks)) * 0.01).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def tokenizer(writer):
    """The tokenizer's keys of a golden file; returns the size of its vocabulary."""
    for key, field in gguf.GGUFReader(TOKENIZER).fields.items():
        if key.startswith("tokenizer."):
            kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), kind, inner)
    return len(gguf.GGUFReader(TOKENIZER).fields["tokenizer.ggml.tokens"].contents())


def write(path, kind, rng):
    """A Qwen2 of two layers, its matrices in `kind`; returns what its tensors are under Hugging Face names."""
    writer = gguf.GGUFWriter(path, "qwen2")
    vocab = tokenizer(writer)
    writer.add_name("Quantised")
    writer.add_license("apache-2.0")
    for add, value in [(writer.add_block_count, 2), (writer.add_embedding_length, HIDDEN),
                       (writer.add_feed_forward_length, INNER), (writer.add_head_count, HEADS),
                       (writer.add_head_count_kv, 2), (writer.add_context_length, 128)]:
        add(value)
    writer.add_layer_norm_rms_eps(1e-6)
    truth = {}

    def matrix(name, known, rows, columns):
        data = stored(rng, kind, rows, columns)
        writer.add_tensor(name, data, raw_dtype=kind)
        truth[known] = gguf.dequantize(data, kind).astype(np.float32)

    def vector(name, known, length):
        truth[known] = rng.standard_normal(length).astype(np.float32)
        writer.add_tensor(name, truth[known])

    matrix("token_embd.weight", "model.embed_tokens.weight", vocab, HIDDEN)
    vector("output_norm.weight", "model.norm.weight", HIDDEN)
    for layer in range(2):
        there, here = f"blk.{layer}.", f"model.layers.{layer}."
        vector(there + "attn_norm.weight", here + "input_layernorm.weight", HIDDEN)
        vector(there + "ffn_norm.weight", here + "post_attention_layernorm.weight", HIDDEN)
        for name, known in NAMES.items():
            rows = {"attn_k": HIDDEN // 2, "attn_v": HIDDEN // 2, "ffn_gate": INNER, "ffn_up": INNER}.get(name, HIDDEN)
            matrix(f"{there}{name}.weight", f"{here}{known}.weight", rows, INNER if name == "ffn_down" else HIDDEN)
            if name in ("attn_q", "attn_k", "attn_v"):
                vector(f"{there}{name}.bias", f"{here}{known}.bias", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return truth


def main():
    for kind in FLOATS:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            truth = write(folder / "model.gguf", kind, np.random.default_rng(int(kind)))
            sharp("import", folder / "model.gguf", "--out", folder / "out", "--dtype", "F32")
            found = load_file(folder / "out" / "model.safetensors")
            assert found.keys() == truth.keys(), found.keys() ^ truth.keys()
            for name, value in truth.items():
                assert np.array_equal(found[name].view(np.uint32), value.view(np.uint32)), f"{kind.name}: {name}"
            card = (folder / "out" / "README.md").read_text()
            assert "license: apache-2.0" in card, card
            print(f"{kind.name}: {len(truth)} tensors the same")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        FLOATS[T.Q3_K] = [108]
        write(path, T.Q3_K, np.random.default_rng(0))
        line = [os.environ["SHARP_BIN"], "import", path, "--out", folder + "/out"]
        refused = subprocess.run(line, capture_output=True, text=True)
        assert refused.returncode != 0 and "Q3_K" in refused.stderr, refused.stderr
    print(f"{len(FLOATS)} passed, 0 failed")


if __name__ == "__main__":
    main()
