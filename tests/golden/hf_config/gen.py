"""config.json files as transformers writes them, and RoPE frequencies as it computes them.

Run: python gen.py   (transformers 5, torch; no weights, no network)
"""
import json
from pathlib import Path

from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

here = Path(__file__).parent
shape = dict(hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
             vocab_size=300, max_position_embeddings=512)
llama3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
cases = {
    "llama_default": LlamaConfig(**shape, rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
                                 architectures=["LlamaForCausalLM"], tie_word_embeddings=True),
    "llama_linear": LlamaConfig(**shape, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
                                architectures=["LlamaForCausalLM"]),
    "llama_llama3": LlamaConfig(**(shape | {"hidden_size": 384}), rope_parameters=llama3, architectures=["LlamaForCausalLM"],
                                attention_bias=True, mlp_bias=True, eos_token_id=[5, 6], bos_token_id=4),
    "mistral": MistralConfig(**shape, sliding_window=None, architectures=["MistralForCausalLM"]),
    "qwen2": Qwen2Config(**shape, architectures=["Qwen2ForCausalLM"]),
    "qwen3": Qwen3Config(**shape, head_dim=32, architectures=["Qwen3ForCausalLM"]),
}
for name, config in cases.items():
    (here / f"{name}.json").write_text(json.dumps(json.loads(config.to_json_string(use_diff=False)), indent=1) + "\n")

rotary = {name: LlamaRotaryEmbedding(config).inv_freq.tolist() for name, config in cases.items()}
(here / "inv_freq.json").write_text(json.dumps(rotary, indent=1) + "\n")

# The same in transformers 4's spelling, which most published checkpoints have.
old = {
    "llama_default": {"rope_theta": 100000.0, "rope_scaling": None},
    "llama_linear": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama_llama3": {"rope_theta": 500000.0, "rope_scaling": {k: v for k, v in llama3.items() if k != "rope_theta"}},
}
for name, keys in old.items():
    config = json.loads(cases[name].to_json_string(use_diff=False))
    config.pop("rope_parameters", None)
    (here / f"{name}_v4.json").write_text(json.dumps(config | keys, indent=1) + "\n")
