"""Fine-tuning throughput of a plain PyTorch loop, to hold `sharp-train finetune` against.

    python3 -m venv .venv && .venv/bin/pip install torch transformers --extra-index-url https://download.pytorch.org/whl/cpu
    .venv/bin/python docs/results/torch_finetune.py MODEL PLAN

MODEL is a Hugging Face folder, PLAN a plan of low-rank recovery (03-plan/plan.toml of configs/smollm2-135m-paper.toml). The loop is what
one would write: transformers' model, the linears' weights cast to bf16 by hand and everything else float32, each target's MLP
computed as its reference's weights and B A beside them, gradients of the recovery parameters alone, next-token loss on
random tokens, AdamW. Prints the median of the steps' tokens a second and the peak memory. The other side:

    sharp-train finetune --model MODEL --plan PLAN --data FILE --out OUT --steps 12 --validation-tokens 512 --json
"""

import argparse
import resource
import statistics
import time
import tomllib

import torch
from transformers import AutoModelForCausalLM


class Bf16Linear(torch.nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().bfloat16())

    def forward(self, x):
        return torch.nn.functional.linear(x.bfloat16(), self.weight).float()


class Recovered(torch.nn.Module):
    """A reference's frozen weight and a target's own low-rank repair."""

    def __init__(self, linear, rank):
        super().__init__()
        self.linear = linear
        rows, cols = linear.weight.shape
        self.a = torch.nn.Parameter(torch.randn(rank, cols) / cols**0.5)
        self.b = torch.nn.Parameter(torch.zeros(rows, rank))

    def forward(self, x):
        low = torch.nn.functional.linear(x.bfloat16(), self.a.bfloat16())
        return self.linear(x) + torch.nn.functional.linear(low, self.b.bfloat16()).float()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("plan")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, Bf16Linear(child))
    layers = model.model.layers
    with open(args.plan, "rb") as file:
        plan = tomllib.load(file)
    originals = [layer.mlp for layer in layers]
    for target in plan["targets"]:
        reference, mlp = originals[target["reference"]], layers[target["layer"]].mlp
        for projection in ("gate", "up", "down"):
            linear = getattr(reference, projection + "_proj")
            setattr(mlp, projection + "_proj", Recovered(linear, target["ranks"][projection]))
    trained = [p for p in model.parameters() if p.requires_grad]
    print(f"{len(plan['targets'])} targets, {sum(p.numel() for p in trained)} parameters trained")

    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    rates = []
    for step in range(args.steps):
        begun = time.perf_counter()
        tokens = torch.randint(0, model.config.vocab_size, (args.sequences, args.length))
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        rates.append(tokens.numel() / (time.perf_counter() - begun))
        print(f"step {step + 1}: loss {loss.item():.3f}, {rates[-1]:.0f} tokens/s", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"median {statistics.median(rates[2:]):.0f} tokens/s, peak {peak:.2f} GiB")


main()
