"""Throughput of the warm-up's loop in plain PyTorch, to hold `sharp-train warmup` against.

    .venv/bin/python docs/results/torch_warmup.py MODEL --rank 55       # torch_finetune.py says how to make .venv

One layer of MODEL (a Hugging Face folder): another layer's MLP, frozen and cast to bf16 by hand, with B A beside each weight, fitted to random
targets in L2; AdamW on A and B. Prints the median tokens a second of a step. The other side, from the seconds and steps of its metrics.jsonl:

    sharp-train warmup --model MODEL --plan PLAN --data FILE --out OUT --start zero --weighting none --tokens 16384 --steps 60
"""

import argparse
import statistics
import time

import torch
from torch.nn.functional import linear, silu
from transformers import AutoModelForCausalLM


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--rank", type=int, default=55)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    mlp = model.model.layers[10].mlp
    weights = {name: getattr(mlp, name + "_proj").weight.detach().bfloat16() for name in ("gate", "up", "down")}
    factors = {}
    for name, weight in weights.items():
        rows, cols = weight.shape
        a = torch.randn(args.rank, cols) / cols**0.5
        factors[name] = (a.requires_grad_(), torch.zeros(rows, args.rank, requires_grad=True))
    trained = [p for pair in factors.values() for p in pair]
    optimiser = torch.optim.AdamW(trained, lr=1e-3)

    def project(name, x):
        a, b = factors[name]
        x = x.bfloat16()
        return linear(x, weights[name]).float() + linear(linear(x, a.bfloat16()), b.bfloat16()).float()

    inputs, targets = (torch.randn(16 * args.tokens, model.config.hidden_size) for _ in range(2))
    rates = []
    for step in range(args.steps):
        begun = time.perf_counter()
        rows = torch.randperm(len(inputs))[: args.tokens]
        x, y = inputs[rows], targets[rows]
        loss = (project("down", silu(project("gate", x)) * project("up", x)) - y).square().sum() / y.square().sum()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        rates.append(args.tokens / (time.perf_counter() - begun))
    print(f"median {statistics.median(rates[5:]):.0f} tokens/s, {args.tokens / statistics.median(rates[5:]) * 1e3:.1f} ms a step")


main()
