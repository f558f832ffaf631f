"""The models of ../hf_families as GGUF files, written as llama.cpp's converter does.

Tensor names are the `gguf` package's own map, metadata keys its own constants; what the converter does to the numbers is done here:
  granite, smollm3        query and key rows from halves to interleaved rotary pairs
  gemma, gemma2, gemma3   1 added to every norm
  phi3                    fused projections stay fused, gate and up under the name of up
GGUF files do not say what Gemma 2 and 3 divide scores by (the root of the head size but for one model of each), so the queries are scaled here by
what the two differ by: the logits are those of ../hf_families/NAME/expected.safetensors. Nor do they say which layers of SmolLM3 have no RoPE
(every fourth): of that file the weights are what counts.

Usage: python gen.py     (needs gguf, numpy, safetensors)
"""

import json
import pathlib

import gguf
import numpy as np
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).parent
ARCH = gguf.MODEL_ARCH
CASES = {"gemma": ARCH.GEMMA, "gemma2": ARCH.GEMMA2, "gemma3": ARCH.GEMMA3, "granite": ARCH.GRANITE, "olmo2": ARCH.OLMO2, "phi3": ARCH.PHI3,
         "smollm3": ARCH.SMOLLM3, "qwen3": ARCH.QWEN3}


def permute(w, heads):
    """As llama.cpp's convert_hf_to_gguf.py: halves to interleaved pairs."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


for name, arch in CASES.items():
    folder = HERE.parent / "hf_families" / name
    c = json.loads((folder / "config.json").read_text())
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    head_dim = c.get("head_dim") or c["hidden_size"] // heads
    w = gguf.GGUFWriter(HERE / f"{name}.gguf", gguf.MODEL_ARCH_NAMES[arch])
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    rope = c["rope_parameters"]
    whole = rope.get("full_attention", rope)
    w.add_rope_freq_base(whole["rope_theta"])
    if whole["rope_type"] == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(whole["factor"])
    if "sliding_attention" in rope:
        w.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if name in ("gemma2", "gemma3", "phi3"):
        w.add_sliding_window(c["sliding_window"])
    if name == "gemma2":
        w.add_attn_logit_softcapping(c["attn_logit_softcapping"])
        w.add_final_logit_softcapping(c["final_logit_softcapping"])
    if name == "granite":
        w.add_attention_scale(c["attention_multiplier"])
        w.add_embedding_scale(c["embedding_multiplier"])
        w.add_residual_scale(c["residual_multiplier"])
        w.add_logit_scale(c["logits_scaling"])
    names = gguf.get_tensor_name_map(arch, c["num_hidden_layers"])
    queries = (head_dim / c["query_pre_attn_scalar"]) ** 0.5 if "query_pre_attn_scalar" in c else 1.0
    for key, value in load_file(folder / "model.safetensors").items():
        value = value.astype(np.float32)
        if name in ("granite", "smollm3"):
            for kind, n in (("q_proj", heads), ("k_proj", kv)):
                if kind in key:
                    value = permute(value, n)
        if name == "gemma2" and "q_proj" in key:
            value = value * np.float32(queries)
        if name.startswith("gemma") and key.endswith("norm.weight"):
            value = value + 1
        if name == "gemma3" and "q_norm" in key:
            value = value * np.float32(queries)
        stored = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert stored, (name, key)
        w.add_tensor(stored, np.ascontiguousarray(value))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
