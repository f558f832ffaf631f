"""Small random models with a sharing plan, recovery parameters, and the effective weights computed here by PyTorch."""

import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

TOKENIZER = pathlib.Path(__file__).parents[2] / "golden" / "eval" / "model"
SHAPE = dict(
    hidden_size=48, intermediate_size=88, num_hidden_layers=7, num_attention_heads=6, num_key_value_heads=2,
    vocab_size=360, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=None,
    attn_implementation="eager",
)
# Every form of recovery, uneven ranks, a shared and an unshared neighbour, a layer without an MLP, one with fewer neurons, and
# one with neurons of its own beside a shared MLP.
TARGETS = [
    dict(layer=1, reference=0, form="low_rank", ranks=dict(gate=5, up=3, down=4)),
    dict(layer=2, reference=0, form="scaled_low_rank", ranks=dict(gate=4, up=4, down=4)),
    dict(layer=4, reference=3, form="row_column_scaled_low_rank", ranks=dict(gate=4, up=0, down=2)),
    dict(layer=5, form="low_rank_only", ranks=dict(gate=6, up=6, down=6)),
]
OTHERS = [
    dict(layer=1, reference=0, form="none"),
    dict(layer=2, reference=3, form="low_rank", ranks=dict(gate=2, up=2, down=2)),
    dict(layer=5, dropped=True),
]
PRUNED = [
    dict(layer=1, form="pruned", neurons=37),
    dict(layer=2, reference=0, form="neurons", neurons=9),
    dict(layer=4, reference=3, form="low_rank", ranks=dict(gate=2, up=2, down=2)),
    dict(layer=6, form="pruned", neurons=64),
]
SIZES = dict(gate=("intermediate_size", "hidden_size"), up=("intermediate_size", "hidden_size"),
             down=("hidden_size", "intermediate_size"))


def original(folder, model_type, seed, **options):
    """Saves a random model of a family with a tokenizer; weights wide enough that every term counts in the logits."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[model_type](**{**SHAPE, **options})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1.0 + 0.3 * torch.randn_like(p))
            elif p.dim() == 1:
                p.copy_(0.2 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (1.6 / p.shape[1] ** 0.5))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)


def recovery(config, targets, seed):
    """Random recovery parameters, by name."""
    torch.manual_seed(seed)
    tensors = {}
    for target in targets:
        form = target.get("form", "none")
        for projection, (out, width) in SIZES.items():
            out, width = getattr(config, out), getattr(config, width)
            name = f"model.layers.{target['layer']}.mlp.{projection}_proj"
            if form == "pruned":
                shape = (out, target["neurons"]) if projection == "down" else (target["neurons"], width)
                tensors[f"{name}.weight"] = torch.randn(shape) * (1.6 / width**0.5)
                continue
            if form == "neurons":
                shape = (out, target["neurons"]) if projection == "down" else (target["neurons"], width)
                tensors[f"{name}.neurons.weight"] = torch.randn(shape) * (1.6 / width**0.5)
                if projection == "down":
                    tensors[f"{name}.row_scale"] = 1.0 + 0.3 * torch.randn(out)
                continue
            rank = target.get("ranks", {}).get(projection, 0)
            if rank:
                tensors[f"{name}.lora_A.weight"] = torch.randn(rank, width) / width**0.5
                tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank)
            if form.startswith(("scaled", "row_column")):
                tensors[f"{name}.row_scale"] = 1.0 + 0.3 * torch.randn(out)
            if form.startswith("row_column"):
                tensors[f"{name}.col_scale"] = 1.0 + 0.3 * torch.randn(width)
    return tensors


def plan(targets):
    """The plan as TOML."""
    lines = ["version = 1", 'strategy = "explicit"']
    for target in targets:
        lines.append("[[targets]]")
        for key, value in target.items():
            if isinstance(value, dict):
                value = "{ " + ", ".join(f"{k} = {v}" for k, v in value.items()) + " }"
            else:
                value = json.dumps(value)
            lines.append(f"{key} = {value}")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def effective(folder, targets, tensors):
    """The original with the targets' effective weights in place: what every export must compute."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for target in targets:
        for projection in SIZES:
            name = f"model.layers.{target['layer']}.mlp.{projection}_proj"
            own = model.get_submodule(name)
            weight = torch.zeros_like(own.weight)
            if "reference" in target:
                shared = f"model.layers.{target['reference']}.mlp.{projection}_proj"
                weight = model.get_submodule(shared).weight.clone()
            if f"{name}.weight" in tensors:
                kept = tensors[f"{name}.weight"]
                weight[: kept.shape[0], : kept.shape[1]] = kept
            if f"{name}.row_scale" in tensors:
                weight = tensors[f"{name}.row_scale"][:, None] * weight
            if f"{name}.col_scale" in tensors:
                weight = weight * tensors[f"{name}.col_scale"]
            if f"{name}.lora_A.weight" in tensors:
                weight = weight + tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
            if f"{name}.neurons.weight" in tensors:
                beside = tensors[f"{name}.neurons.weight"]
                weight = torch.cat((weight, beside), dim=1 if projection == "down" else 0)
            own.weight = torch.nn.Parameter(weight)
            if target.get("dropped") and own.bias is not None:
                own.bias.zero_()
    return model


def prepare(folder, model_type, targets, seed, **options):
    """Writes `original/`, `plan.toml` and `recovery.safetensors`; returns the model that the exports must equal."""
    original(folder / "original", model_type, seed, **options)
    config = AutoModelForCausalLM.from_pretrained(folder / "original").config
    tensors = recovery(config, targets, seed)
    save_file(tensors, folder / "recovery.safetensors")
    (folder / "plan.toml").write_text(plan(targets))
    return effective(folder / "original", targets, tensors)


def same_logits(what, found, truth, tokens):
    """Two models' logits on the same tokens, within what float32 sums in another order may differ."""
    with torch.no_grad():
        a, b = found(tokens).logits, truth(tokens).logits
    worst = float((a - b).abs().max() / b.abs().max())
    assert worst < 2e-5, f"{what}: logits differ by {worst:.2e} of the largest"
    return worst
