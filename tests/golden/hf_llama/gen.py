"""Makes the golden models of this folder: small random Llama models, and what transformers computes with them.

    pip install torch transformers safetensors && python gen.py

Each case folder holds a checkpoint as Hugging Face writes it (config.json, model.safetensors) and
expected.safetensors, computed in float32 from the stored weights:

    tokens        (n,) int64            one sequence
    logits        (n, vocab) float32    of the whole sequence
    greedy        (m,) int64            greedy continuation of the first PROMPT tokens, m = GREEDY
    layer.I.residual_in   (n, d)        the residual stream entering layer I
    layer.I.mlp_input     (n, d)        after the layer's second norm
    layer.I.mlp_output    (n, d)
    layer.I.residual_out  (n, d)

Weights are drawn wide enough that attention is not uniform and that every term counts in the logits.
"""

import json
import pathlib
import shutil

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
TOKENS, PROMPT, GREEDY = 37, 9, 12

# name: (stored dtype, seed, config). Sizes are odd on purpose: no multiple of a SIMD width, an
# intermediate size that is prime, head_dim * heads different from hidden_size.
CASES = {
    "gqa_untied": (torch.bfloat16, 11, dict(
        hidden_size=40, intermediate_size=97, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=12, vocab_size=53, tie_word_embeddings=False, rope_theta=10000.0)),
    "tied": (torch.float32, 12, dict(
        hidden_size=24, intermediate_size=37, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1,
        head_dim=10, vocab_size=61, tie_word_embeddings=True, rope_theta=500.0)),
    "rope_linear": (torch.float16, 13, dict(
        hidden_size=32, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        head_dim=8, vocab_size=47, tie_word_embeddings=True, rope_theta=10000.0,
        rope_scaling=dict(rope_type="linear", factor=4.0))),
    # original_max_position_embeddings is small so that all three bands of the rule (kept, blended,
    # divided) appear within head_dim 16.
    "rope_llama3": (torch.float32, 14, dict(
        hidden_size=32, intermediate_size=41, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=43, tie_word_embeddings=False, rope_theta=100.0,
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=64))),
    "biases": (torch.float32, 15, dict(
        hidden_size=20, intermediate_size=33, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=10, vocab_size=39, tie_word_embeddings=True, rope_theta=10000.0,
        attention_bias=True, mlp_bias=True)),
}


def build(name, dtype, seed, options):
    torch.manual_seed(seed)
    config = LlamaConfig(
        max_position_embeddings=256, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=None,
        attn_implementation="eager", **options)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "norm" in key:
                p.copy_(1.0 + 0.3 * torch.randn_like(p))
            elif p.dim() == 1:
                p.copy_(0.2 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (1.6 / p.shape[1] ** 0.5))
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    model.to(dtype).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    # Both spellings of the RoPE settings are in use: transformers 5 writes `rope_parameters`; checkpoints
    # made before it have `rope_theta` and `rope_scaling` at the top level. Half of the cases keep the old one.
    config_path = out / "config.json"
    written = json.loads(config_path.read_text())
    written.pop("transformers_version", None)
    if name in ("gqa_untied", "rope_llama3") and "rope_parameters" in written:
        parameters = written.pop("rope_parameters")
        written["rope_theta"] = parameters.pop("rope_theta")
        written["rope_scaling"] = parameters if parameters.get("rope_type") != "default" else None
    config_path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")

    # Load again what was stored, in float32, so that the rounding to `dtype` is inside the reference.
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
    stored = load_file(out / "model.safetensors")
    assert all(t.dtype == dtype for t in stored.values())

    tokens = torch.randint(3, options["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(seed))
    expected = {}

    def keep(key):
        return lambda value: expected.__setitem__(key, value[0].detach().clone().contiguous())

    hooks = []
    for i, layer in enumerate(model.model.layers):
        def on_layer(module, args, output, i=i):
            keep(f"layer.{i}.residual_in")(args[0])
            keep(f"layer.{i}.residual_out")(output[0] if isinstance(output, tuple) else output)

        def on_mlp(module, args, output, i=i):
            keep(f"layer.{i}.mlp_input")(args[0])
            keep(f"layer.{i}.mlp_output")(output)

        hooks += [layer.register_forward_hook(on_layer), layer.mlp.register_forward_hook(on_mlp)]
    with torch.no_grad():
        logits = model(tokens).logits
    for hook in hooks:
        hook.remove()

    # Greedy continuation by whole forward passes (no cache), through the end-of-sequence token if it comes.
    sequence = tokens[:, :PROMPT].clone()
    with torch.no_grad():
        for _ in range(GREEDY):
            step = model(sequence).logits[:, -1]
            top = step.topk(2).values[0]
            assert top[0] - top[1] > 1e-3, f"{name}: a near tie; choose another seed"
            sequence = torch.cat([sequence, step.argmax(-1, keepdim=True)], 1)

    expected["tokens"] = tokens[0].clone()
    expected["logits"] = logits[0].clone()
    expected["greedy"] = sequence[0, PROMPT:].clone()
    save_file(expected, out / "expected.safetensors")
    size = (out / "model.safetensors").stat().st_size
    assert size < 100_000, f"{name}: {size} bytes"
    print(name, size, (out / "expected.safetensors").stat().st_size, "logit std", float(logits.std()))


if __name__ == "__main__":
    for case, (dtype, seed, options) in CASES.items():
        build(case, dtype, seed, options)
