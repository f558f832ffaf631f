"""Makes the golden models of this folder: a small random model of each family, and what transformers computes with it.

    pip install torch transformers safetensors && python gen.py

Each case folder holds a checkpoint as Hugging Face writes it (config.json, model.safetensors) and expected.safetensors, computed in
float32 from the stored weights:

    tokens   (n,) int64            one sequence, longer than any window
    logits   (n, vocab) float32    of the whole sequence
    greedy   (m,) int64            greedy continuation of the first PROMPT tokens

Weights are drawn wide enough that every term counts in the logits: norms far from their start, scores beyond their caps. Each case is
checked here to depend on what it is for: `without` are settings under which the logits must be others.
"""

import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
TOKENS, PROMPT, GREEDY = 41, 23, 10
SHAPE = dict(
    vocab_size=83, hidden_size=24, intermediate_size=36, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=6, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
# name: (model_type, seed, settings, settings that must change the logits)
CASES = {
    "mistral_window": ("mistral", 1, dict(sliding_window=7), dict(sliding_window=None)),
    "qwen2": ("qwen2", 2, dict(), {}),
    "qwen2_window": ("qwen2", 3, dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
                     dict(layer_types=["full_attention"] * 3)),
    "qwen3": ("qwen3", 4, dict(head_dim=10), {}),
    "smollm3": ("smollm3", 5, dict(no_rope_layer_interval=2, num_hidden_layers=4),
                dict(no_rope_layers=[1, 1, 1, 1])),
    "granite": ("granite", 6, dict(embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.3,
                                   logits_scaling=2.5, attention_bias=True), dict(residual_multiplier=1.0)),
    "olmo2": ("olmo2", 7, dict(), {}),
    "phi3": ("phi3", 8, dict(sliding_window=6), dict(sliding_window=None)),
    "gemma": ("gemma", 9, dict(), {}),
    "gemma2": ("gemma2", 10, dict(sliding_window=6, query_pre_attn_scalar=3, attn_logit_softcapping=2.0,
                                  final_logit_softcapping=3.0), dict(attn_logit_softcapping=None)),
    "gemma3": ("gemma3_text", 11, dict(sliding_window=6, num_hidden_layers=7, query_pre_attn_scalar=5,
                                       rope_parameters={
                                           "full_attention": dict(rope_type="linear", factor=4.0, rope_theta=50000.0),
                                           "sliding_attention": dict(rope_type="default", rope_theta=900.0)}),
               dict(sliding_window=100)),
}


def load(folder, **changes):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **changes)
    return model.eval()


@torch.no_grad()
def build(name, model_type, seed, options, without):
    torch.manual_seed(seed)
    kind = CONFIG_MAPPING[model_type]
    own = {k: v for k, v in SHAPE.items() if k != "head_dim" or hasattr(kind(), "head_dim")}
    config = kind(**{**own, **options})
    model = AutoModelForCausalLM.from_config(config)
    # Gemma's norms multiply by 1 + weight, whose start is 0.
    centre = 0.0 if model_type.startswith("gemma") else 1.0
    for key, p in model.named_parameters():
        if "norm" in key:
            p.copy_(centre + 0.3 * torch.randn_like(p))
        elif p.dim() == 1:
            p.copy_(0.2 * torch.randn_like(p))
        else:
            p.copy_(torch.randn_like(p) * (1.6 / p.shape[1] ** 0.5))
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    model.to(torch.float32).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    written = json.loads((out / "config.json").read_text())
    written.pop("transformers_version", None)
    (out / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")

    model = load(out)
    tokens = torch.randint(3, 83, (1, TOKENS), generator=torch.Generator().manual_seed(seed))
    logits = model(tokens).logits
    if without:
        other = load(out, **without)(tokens).logits
        assert (other - logits).abs().max() > 0.05 * logits.abs().max(), f"{name}: {without} makes no difference"
    # By whole forward passes, no cache.
    sequence = tokens[:, :PROMPT].clone()
    for _ in range(GREEDY):
        step = model(sequence).logits[:, -1]
        top = step.topk(2).values[0]
        assert top[0] - top[1] > 1e-3, f"{name}: a near tie; choose another seed"
        sequence = torch.cat([sequence, step.argmax(-1, keepdim=True)], 1)
    expected = {"tokens": tokens[0].clone(), "logits": logits[0].clone(), "greedy": sequence[0, PROMPT:].clone()}
    save_file(expected, out / "expected.safetensors")
    size = (out / "model.safetensors").stat().st_size
    assert size < 150_000, f"{name}: {size} bytes"
    print(name, size, "logit std", float(logits.std()))


if __name__ == "__main__":
    for case, arguments in CASES.items():
        build(case, *arguments)
