"""Makes this folder's golden case: a small random Llama model, and how alike its layers are.

    pip install torch transformers safetensors numpy && python gen.py

Activations come from transformers, every measure from NumPy in float64 by its definition. Writes config.json,
model.safetensors and expected.json (sequences of tokens, per layer and per directed pair what they should measure).
"""

import json
import pathlib

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
LAYERS, WINDOW, MINIBATCH, PIECE, DELTA_TOKENS = 5, 2, 256, 256, 320

torch.manual_seed(5)
config = LlamaConfig(
    hidden_size=24, intermediate_size=37, num_hidden_layers=LAYERS, num_attention_heads=3, num_key_value_heads=1,
    head_dim=8, vocab_size=50, tie_word_embeddings=True, max_position_embeddings=512, rms_norm_eps=1e-5,
    bos_token_id=1, eos_token_id=2, pad_token_id=None)
model = LlamaForCausalLM(config).eval()
with torch.no_grad():
    for i, layer in enumerate(model.model.layers):
        for p in layer.parameters():
            if p.dim() == 2:
                p.normal_(0, 0.25)
        if i:
            # Neighbours partly alike, so that the measures differ between pairs; one layer without effect on others.
            before = model.model.layers[i - 1].mlp
            for mine, other in zip(layer.mlp.parameters(), before.parameters()):
                mine.copy_(0.3 * i * other + (1 - 0.2 * i) * mine)
    model.model.embed_tokens.weight.normal_(0, 0.5)
torch.manual_seed(6)
# A minibatch and a part of one, less than a minibatch, too short for CKA, too short for anything.
sequences = [torch.randint(0, 50, (n,)).tolist() for n in (300, 37, 3, 1)]

layers = model.model.layers
seen = [{"before": [], "input": [], "output": [], "after": []} for _ in range(LAYERS)]
batches = []
with torch.no_grad():
    for tokens in sequences:
        if len(tokens) < 2:
            continue
        batches.append(len(tokens))
        hooks = []
        for s, layer in zip(seen, layers):
            hooks.append(layer.register_forward_pre_hook(lambda m, a, s=s: s["before"].append(a[0][0])))
            hooks.append(layer.register_forward_hook(
                lambda m, a, o, s=s: s["after"].append((o[0] if isinstance(o, tuple) else o).reshape(-1, 24))))
            hooks.append(layer.mlp.register_forward_hook(
                lambda m, a, o, s=s: [s["input"].append(a[0][0]), s["output"].append(o[0])] and None))
        model(torch.tensor([tokens]))
        for h in hooks:
            h.remove()

numpy = lambda parts: torch.cat(parts).double().numpy()
norm = np.linalg.norm
rows = lambda x: norm(x, axis=1)
cosine = lambda a, b: float(np.mean((a * b).sum(1) / rows(a) / rows(b)))


def minibatches(x):
    start = 0
    for n in batches:
        for k in range(start, start + n, MINIBATCH):
            part = x[k:min(k + MINIBATCH, start + n)]
            if len(part) >= 4:
                yield part
        start += n


def hsic(a, b):
    """HSIC_1: Song et al. 2012, equation 5."""
    n = len(a)
    K, L = a @ a.T, b @ b.T
    np.fill_diagonal(K, 0)
    np.fill_diagonal(L, 0)
    one = np.ones(n)
    return (np.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))


def total_hsic(a, b):
    return sum(hsic(x, y) for x, y in zip(minibatches(a), minibatches(b)))


def losses():
    """Negative log likelihoods of the leading tokens, in pieces."""
    out, left = [], DELTA_TOKENS
    pieces = [tokens[k:k + PIECE] for tokens in sequences if len(tokens) > 1 for k in range(0, len(tokens), PIECE)]
    with torch.no_grad():
        for part in pieces:
            part = part[:left]
            left -= len(part)
            if len(part) < 2:
                continue
            logits = model(torch.tensor([part])).logits[0].double()
            out.append(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(part[1:]), reduction="none"))
    return torch.cat(out).numpy()


class Nothing(torch.nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def replaced(target, mlp):
    own = layers[target].mlp
    layers[target].mlp = mlp
    changed = losses()
    layers[target].mlp = own
    return changed


acts = [{k: numpy(v) for k, v in s.items()} for s in seen]
base = losses()
report = {"sequences": sequences, "window": WINDOW, "delta_tokens": DELTA_TOKENS, "nll": float(base.mean()),
          "layers": [], "pairs": []}
for t in range(LAYERS):
    a = acts[t]
    report["layers"].append({
        "block_influence": 1 - cosine(a["before"], a["after"]),
        "mlp_share": float(np.mean(rows(a["output"]) / rows(a["after"]))),
        "mlp_output_rms": float(np.sqrt(np.mean(a["output"] ** 2))),
        "removal_nll": float((replaced(t, Nothing()) - base).mean()),
    })
    for r in range(max(0, t - WINDOW), min(LAYERS, t + WINDOW + 1)):
        if r == t:
            continue
        y = a["output"]
        with torch.no_grad():
            z = layers[r].mlp(torch.cat(seen[t]["input"])).double().numpy()
        # Best scale of each channel: one least-squares problem a channel.
        scaled = np.stack([z[:, c] * np.linalg.lstsq(z[:, [c]], y[:, c], rcond=None)[0][0] for c in range(24)], 1)
        b = acts[r]["output"]
        weights = lambda layer: np.concatenate([p.detach().double().numpy().ravel() for p in layer.mlp.parameters()])
        delta = replaced(t, layers[r].mlp) - base
        report["pairs"].append({
            "target": t, "reference": r,
            "relative_error": float(norm(z - y) / norm(y)),
            "token_error": float(np.median(rows(z - y) / rows(y))),
            "scaled_error": float(norm(scaled - y) / norm(y)),
            "residual_error": float(np.mean(rows(z - y) / rows(a["after"]))),
            "cosine": cosine(z, y),
            "output_cosine": cosine(b, y),
            "cka": float(total_hsic(y, b) / np.sqrt(total_hsic(y, y) * total_hsic(b, b))),
            "weight_distance": float(norm(weights(layers[r]) - weights(layers[t])) / norm(weights(layers[t]))),
            "delta_nll": float(delta.mean()),
            "predicted_nll": max(0.0, min(float(delta.mean()), report["layers"][t]["removal_nll"]
                                          * float(norm(scaled - y) / norm(y)) ** 2)),
            "delta_nll_stderr": float(delta.std(ddof=1) / np.sqrt(len(delta))),
        })

model.save_pretrained(HERE)
(HERE / "generation_config.json").unlink(missing_ok=True)
(HERE / "expected.json").write_text(json.dumps(report, indent=1) + "\n")
