"""The adapter export in PEFT: logits of base and adapter together against effective weights computed by PyTorch, and the
adapter merged into its base against the dense export.

    SHARP_BIN=target/release/sharp python3 tests/interop/peft_adapter.py
"""

import pathlib
import tempfile

from support import scratch

scratch.inside(*scratch.TORCH)

import torch
from peft import PeftModel
from support import models
from support.scratch import sharp
from transformers import AutoModelForCausalLM


def check(folder, name, options, targets, seed):
    truth = models.prepare(folder, name.split()[0], targets, seed, **options)
    adapter, dense = folder / "adapter", folder / "dense"
    sharp("export", "--model", folder / "original", "--plan", folder / "plan.toml", "--recovery",
          folder / "recovery.safetensors", "--peft", adapter, "--dense", dense, "--dtype", "F32")
    base = AutoModelForCausalLM.from_pretrained(adapter / "base", dtype=torch.float32).eval()
    tokens = torch.randint(3, 360, (2, 40), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        before = base(tokens).logits
    model = PeftModel.from_pretrained(base, adapter).eval()
    worst = models.same_logits(f"{name}, adapter", model, truth, tokens)
    with torch.no_grad():
        # The adapter does something: without it the logits are others.
        assert not torch.allclose(before, truth(tokens).logits, atol=1e-2)
    merged = model.merge_and_unload()
    plain = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
    models.same_logits(f"{name}, merged", merged, plain, tokens)
    return worst


def main():
    for seed, (name, options) in enumerate({"llama": {}, "llama with biases": dict(mlp_bias=True), "qwen3": {}}.items()):
        for targets in (models.TARGETS, models.OTHERS):
            with tempfile.TemporaryDirectory() as folder:
                worst = check(pathlib.Path(folder), name, options, targets, seed)
                print(f"{name}: adapter's logits within {worst:.1e} of the largest")
    print("6 passed, 0 failed")


if __name__ == "__main__":
    main()
