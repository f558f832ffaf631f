"""Basis Sharing (Wang et al., 2025, arXiv 2410.03765) as a baseline, in PyTorch: the project's files have no place for a basis of several layers.

    python3 -m venv .venv && .venv/bin/pip install torch transformers --extra-index-url https://download.pytorch.org/whl/cpu
    cargo run --release -p sharp-data --example rows -- MODEL DATA 1 16384 > warmup.json
    cargo run --release -p sharp-data --example rows -- MODEL DATA 1 32768 > finetune.json
    .venv/bin/python docs/results/basis_sharing.py MODEL warmup.json finetune.json --removed 0.3999 --size save40 --out OUT \
        --texts boolq_held_out=DATA@held_out hellaswag=DATA
    sharp evaluate --rows OUT/rows.toml --json > OUT/result.json
    python3 docs/results/collect.py OUT

The gate projections of neighbouring layers get one basis, and so do the up projections: W_i = C_i B, from the singular value decomposition of
the group's matrices one above the other, in the metric of the group's inputs. Down projections are factored each alone, as the
authors do. Layers 0 and 1 stay, as with the project's own methods, and tokens count by the inverse square of the residual stream. Then all of it
and the norms are trained together, half on the text, half on the original's distribution. What is stored is counted; what is
written is a plain checkpoint of the products, before (`start`) and after training (`tuned`), for `sharp evaluate`.
"""

import argparse
import json
import math
import pathlib
import time

import torch
from torch.nn.functional import cross_entropy, linear, log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

KEPT = 2


class Bf16Linear(torch.nn.Module):
    """A frozen linear layer."""

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("in_bf16", linear.weight.detach().bfloat16(), persistent=False)

    def forward(self, x):
        return linear(x.bfloat16(), self.in_bf16).float()


def in_bf16(model):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, Bf16Linear(child))


class Factored(torch.nn.Module):
    """`y = coefficients (basis x)`; the basis may be another layer's too."""

    def __init__(self, coefficients, basis):
        super().__init__()
        self.coefficients, self.basis = coefficients, basis

    def forward(self, x):
        low = linear(x.bfloat16(), self.basis.bfloat16())
        return linear(low, self.coefficients.bfloat16()).float()


def moments(model, rows):
    """Second moments of the inputs of each MLP's gate and up and of its down projection, each token by its weight."""
    found, weights = {}, {}

    def residual(layer):
        def hook(_, inputs):
            x = inputs[0][0]
            weights[layer] = 1 / x.square().mean(-1, keepdim=True)
        return hook

    def seen(layer, name):
        def hook(_, inputs):
            x = inputs[0][0]
            gram = (x * weights[layer]).T @ x
            found[layer, name] = found.get((layer, name), 0) + gram.double()
        return hook

    hooks = []
    for i, layer in enumerate(model.model.layers[KEPT:], KEPT):
        hooks.append(layer.post_attention_layernorm.register_forward_pre_hook(residual(i)))
        hooks.append(layer.mlp.gate_proj.register_forward_pre_hook(seen(i, "in")))
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(seen(i, "hidden")))
    with torch.no_grad():
        for row in rows:
            model.model(torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    return found


def factor(matrices, gram, rank):
    """Coefficients of each matrix and the basis of all: the best of this rank in the metric of `gram`."""
    gram = gram + 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    root = torch.linalg.cholesky(gram)
    stacked = torch.cat([m.double() for m in matrices]) @ root
    u, s, v = torch.linalg.svd(stacked, full_matrices=False)
    basis = torch.linalg.solve_triangular(root, v[:rank], upper=False, left=False)
    coefficients = u[:, :rank] * s[:rank]
    # Alike in size, so that one learning rate suits both.
    even = (coefficients.square().mean(0) / basis.square().mean(1)) ** 0.25
    return list((coefficients / even).float().split([len(m) for m in matrices])), (basis * even[:, None]).float()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("warmup")
    parser.add_argument("finetune")
    parser.add_argument("--removed", type=float, default=0.4, help="fraction of all MLP parameters")
    parser.add_argument("--size", default="", help="what configs/studies/size_sweep.toml calls it")
    parser.add_argument("--group", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--texts", nargs="*", default=[], help="name=data for rows.toml")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(1)

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    shell = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    whole = {k: v.clone() for k, v in shell.state_dict().items()}
    model.requires_grad_(False)
    original.requires_grad_(False)
    layers = model.model.layers
    kept_of = 1 - args.removed * len(layers) / (len(layers) - KEPT)
    hidden, inner = model.config.hidden_size, model.config.intermediate_size
    begun = time.time()
    print("second moments", flush=True)
    found = moments(model, json.loads(pathlib.Path(args.warmup).read_text()))
    stored = KEPT * 3 * hidden * inner
    trained = []

    def replace(mlp, name, coefficients, basis):
        setattr(mlp, name, Factored(torch.nn.Parameter(coefficients), basis))
        trained.append(getattr(mlp, name).coefficients)
        return coefficients.numel()

    for first in range(KEPT, len(layers), args.group):
        group = list(range(first, min(first + args.group, len(layers))))
        rank = round(kept_of * len(group) * hidden * inner / (hidden + len(group) * inner))
        for name in ["gate_proj", "up_proj"]:
            weights = [getattr(layers[i].mlp, name).weight for i in group]
            parts, basis = factor(weights, sum(found[i, "in"] for i in group), rank)
            basis = torch.nn.Parameter(basis)
            trained.append(basis)
            stored += basis.numel() + sum(replace(layers[i].mlp, name, c, basis) for i, c in zip(group, parts))
        for i in group:
            rank_down = round(kept_of * hidden * inner / (hidden + inner))
            [part], basis = factor([layers[i].mlp.down_proj.weight], found[i, "hidden"], rank_down)
            basis = torch.nn.Parameter(basis)
            trained.append(basis)
            stored += basis.numel() + replace(layers[i].mlp, "down_proj", part, basis)
    total = len(layers) * 3 * hidden * inner
    print(f"{stored} MLP parameters stored, {1 - stored / total:.4f} saved; rank {rank} and {rank_down}; {time.time() - begun:.0f} s", flush=True)

    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "stored.json").write_text(json.dumps({"size": args.size, "mlp_parameters": stored, "saved": 1 - stored / total}) + "\n")

    def save(name):
        dense = {**whole, **{k: v for k, v in model.state_dict().items() if "norm" in k}}
        for i, layer in enumerate(layers):
            for part in ["gate_proj", "up_proj", "down_proj"]:
                made = getattr(layer.mlp, part)
                if isinstance(made, Factored):
                    dense[f"model.layers.{i}.mlp.{part}.weight"] = (made.coefficients @ made.basis).detach()
        shell.save_pretrained(args.out / name, state_dict=dense)
        AutoTokenizer.from_pretrained(args.model).save_pretrained(args.out / name)

    save("start")
    in_bf16(model)
    in_bf16(original)
    for i, layer in enumerate(layers):
        if i > KEPT:
            trained.append(layer.input_layernorm.weight)
        if i >= KEPT:
            trained.append(layer.post_attention_layernorm.weight)
    trained.append(model.model.norm.weight)
    for parameter in trained:
        parameter.requires_grad_(True)
    matrices = [p for p in trained if p.dim() > 1]
    vectors = [p for p in trained if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.99))
    rows = json.loads(pathlib.Path(args.finetune).read_text())
    steps = len(rows) // args.batch
    for step in range(1, steps + 1):
        rate = args.lr * min(1.0, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 1) / max(steps - 1, 1))))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss_of_step = 0.0
        for row in rows[(step - 1) * args.batch : step * args.batch]:
            tokens = torch.tensor([row])
            logits = model(tokens).logits[0, :-1]
            with torch.no_grad():
                taught = log_softmax(original(tokens).logits[0, :-1], -1)
            logs = log_softmax(logits, -1)
            kl = (taught.exp() * (taught - logs)).sum(-1).mean()
            loss = (0.5 * cross_entropy(logits, tokens[0, 1:]) + 0.5 * kl) / args.batch
            loss.backward()
            loss_of_step += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step} of {steps}: loss {loss_of_step:.3f}, {time.time() - begun:.0f} s", flush=True)
    save("tuned")

    lines = ["window = 512", "stride = 512", "held_out = 0.05", "seed = 1", "tasks = []"]
    for name, folder in [("original", pathlib.Path(args.model)), ("start", args.out / "start"), ("tuned", args.out / "tuned")]:
        lines += ["[[rows]]", f'name = "{name}"', f'model = "{folder.resolve()}"']
    for text in args.texts:
        name, data = text.split("=", 1)
        split = "held_out" if data.endswith("@held_out") else "all"
        lines += ["[[texts]]", f'name = "{name}"', f'data = "{data.removesuffix("@held_out")}"', f'split = "{split}"', "tokens = 4096"]
    (args.out / "rows.toml").write_text("\n".join(lines) + "\n")


main()
