"""Compact and dense exports in transformers: logits, greedy text and perplexity against effective weights computed by
PyTorch and against our own engine, for models of several families and plans with every form of recovery.

    SHARP_BIN=target/release/sharp python3 tests/interop/transformers_checkpoints.py
"""

import json
import pathlib
import tempfile

from support import scratch

scratch.inside(*scratch.TORCH)

import torch
from safetensors import safe_open
from support import models
from support.scratch import sharp
from transformers import AutoModelForCausalLM, AutoTokenizer

FAMILIES = {
    "llama": dict(),
    "llama with biases": dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": dict(sliding_window=None, head_dim=10),
    "qwen2": dict(),
    "qwen3": dict(head_dim=10),
    "smollm3": dict(no_rope_layer_interval=2),
    "granite": dict(embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.3, logits_scaling=0.5),
    "olmo2": dict(),
    "gemma2": dict(head_dim=8, sliding_window=16, query_pre_attn_scalar=5),
    "gemma3_text": dict(head_dim=8, sliding_window=16, query_pre_attn_scalar=5),
}
TEXT = "The cat sat on the mat. The dog did not, and so the two of them looked at each other for ten seconds. "


def stored_parameters(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())


@torch.no_grad()
def perplexity(model, ids, window):
    """Of windows side by side, the first token of each not counted: as `sharp evaluate` has it at stride = window."""
    total, count = 0.0, 0
    for start in range(0, len(ids), window):
        piece = torch.tensor([ids[start : start + window]])
        if piece.shape[1] < 2:
            continue
        losses = torch.nn.functional.cross_entropy(model(piece).logits[0, :-1].double(), piece[0, 1:], reduction="sum")
        total, count = total + float(losses), count + piece.shape[1] - 1
    return float(torch.exp(torch.tensor(total / count, dtype=torch.double)))


def check(folder, name, options, targets, seed):
    truth = models.prepare(folder, name.split()[0], targets, seed, **options)
    compact, dense = folder / "compact", folder / "dense"
    sharp("export", "--model", folder / "original", "--plan", folder / "plan.toml", "--recovery",
          folder / "recovery.safetensors", "--out", compact, "--dense", dense, "--dtype", "F32")

    shared, report = AutoModelForCausalLM.from_pretrained(
        compact, trust_remote_code=True, dtype=torch.float32, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], f"{name}: {kind} {report[kind]}"
    held = sum(p.numel() for p in shared.parameters())
    assert held == stored_parameters(compact), f"{name}: {held} parameters in memory, another number stored"
    plain = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    assert sum(p.numel() for p in plain.parameters()) > held

    torch.manual_seed(seed)
    tokens = torch.randint(3, 360, (2, 40))
    worst = models.same_logits(f"{name}, compact", shared.eval(), truth, tokens)
    models.same_logits(f"{name}, dense", plain.eval(), truth, tokens)

    # Saved by transformers and loaded again it is the same model, and our engine opens it too.
    again = folder / "again"
    shared.save_pretrained(again)
    models.same_logits(f"{name}, saved again", AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True).eval(),
                       truth, tokens)

    # Greedy text by the engine and by transformers, with its cache.
    tokenizer = AutoTokenizer.from_pretrained(compact, trust_remote_code=True)
    prompt = "The cat sat on"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        out = shared.generate(ids, max_new_tokens=24, do_sample=False)
    continued = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    for path in (compact, dense):
        made = sharp("generate", "--model", path, "--prompt", prompt, "--max-tokens", 24)["text"]
        assert made == continued, f"{name}: the engine writes {made!r}, transformers {continued!r}"

    text = (TEXT * 4).strip()
    (folder / "text.txt").write_text(text)
    results = folder / "results.json"
    sharp("evaluate", "--model", f"compact={compact}", "--model", f"dense={dense}", "--text", f"text={folder / 'text.txt'}",
          "--window", 64, "--out", results)
    expected = perplexity(truth, tokenizer(text).input_ids, 64)
    for row in json.loads(results.read_text())["rows"]:
        found = row["perplexity"]["text"]
        assert abs(found / expected - 1) < 1e-5, f"{name}, {row['name']}: perplexity {found}, by transformers {expected}"
    return worst


def main():
    passed = 0
    for seed, (name, options) in enumerate(FAMILIES.items()):
        biased = options.get("mlp_bias", False)
        for targets in (models.TARGETS, models.OTHERS, *([] if biased else [models.PRUNED])):
            with tempfile.TemporaryDirectory() as folder:
                worst = check(pathlib.Path(folder), name, options, targets, seed)
                passed += 1
                print(f"{name}: logits within {worst:.1e} of the largest; text and perplexity the same")
    print(f"{passed} passed, 0 failed")


if __name__ == "__main__":
    main()
