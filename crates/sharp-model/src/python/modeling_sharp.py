"""Runs a compact SHARP checkpoint in transformers, each shared MLP in memory once.

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

`sharp_config` in config.json says which layers (targets) run with which layer's (reference's) MLP. This file takes the
model of the original family from transformers and puts another module in the place of each projection of a target:

    y = row_scale * (W_reference (col_scale * x)) + lora_B (lora_A x) + bias

where `W_reference` is the reference layer's own module, not a copy of it. What a target's form does not have is left out.
With the form `neurons`, gate and up have further rows and down has further columns, `neurons`: neurons of the target's own.
A pruned target has its own projections, with fewer neurons.
The rest of the model, attention, cache and generation included, is the family's own code.

`SharpLlamaConfig`, `SharpLlamaForCausalLM` and the like are made when they are first asked for, so that a family which
the installed transformers does not have is missed only by those who use it.
"""

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

PLAN_VERSION = 1
PROJECTIONS = ("gate", "up", "down")
ROW_SCALED = ("scaled_low_rank", "row_column_scaled_low_rank")
COLUMN_SCALED = ("row_column_scaled_low_rank",)


class SharedLinear(nn.Module):
    """One projection of a target layer. Its own parameters are the recovery parameters and the bias."""

    def __init__(self, own, reference, form, rank):
        """`own` is the family's projection (its shape and bias), `reference` the module whose weight is shared, or None."""
        super().__init__()
        self.in_features, self.out_features = own.in_features, own.out_features
        # In a tuple, so that the reference's parameters stay its layer's and are neither saved nor counted twice.
        self._reference = (reference,)
        self.lora_A = nn.Linear(self.in_features, rank, bias=False) if rank else None
        self.lora_B = nn.Linear(rank, self.out_features, bias=False) if rank else None
        self.row_scale = nn.Parameter(torch.ones(self.out_features)) if form in ROW_SCALED else None
        self.col_scale = nn.Parameter(torch.ones(self.in_features)) if form in COLUMN_SCALED else None
        self.bias = nn.Parameter(torch.zeros(self.out_features)) if own.bias is not None else None

    def forward(self, x):
        y = None
        (reference,) = self._reference
        if reference is not None:
            scaled = x if self.col_scale is None else x * self.col_scale.to(x.dtype)
            y = reference(scaled).to(x.device)
            if reference.bias is not None:
                y = y - reference.bias.to(x.device)
            if self.row_scale is not None:
                y = y * self.row_scale.to(y.dtype)
        if self.lora_B is not None:
            repair = self.lora_B(self.lora_A(x))
            y = repair if y is None else y + repair
        if y is None:
            y = x.new_zeros(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self):
        shared = self._reference[0] is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, shared={shared}"


class WiderLinear(nn.Module):
    """Gate or up of a target with neurons of its own: the reference's outputs, then those of its own neurons."""

    def __init__(self, own, reference, neurons):
        super().__init__()
        self._reference = (reference,)
        self.neurons = nn.Linear(own.in_features, neurons, bias=False)

    def forward(self, x):
        return torch.cat((self._reference[0](x).to(x.device), self.neurons(x)), dim=-1)


class LongerLinear(nn.Module):
    """Down of a target with neurons of its own: the reference's of its inputs, scaled, and that of its own neurons."""

    def __init__(self, own, reference, neurons):
        super().__init__()
        self._reference = (reference,)
        self.neurons = nn.Linear(neurons, own.out_features, bias=False)
        self.row_scale = nn.Parameter(torch.ones(own.out_features))

    def forward(self, x):
        (reference,) = self._reference
        shared, own = x.split((x.shape[-1] - self.neurons.in_features, self.neurons.in_features), dim=-1)
        return reference(shared).to(x.device) * self.row_scale.to(x.dtype) + self.neurons(own)


class NoMlp(nn.Module):
    """The MLP of a layer that has none: its output is zero."""

    def forward(self, x):
        return torch.zeros_like(x)


def prune(mlp, neurons):
    """Gives an MLP projections with that many neurons, to be loaded."""
    for projection in PROJECTIONS:
        own = getattr(mlp, projection + "_proj")
        sizes = (neurons, own.out_features) if projection == "down" else (own.in_features, neurons)
        setattr(mlp, projection + "_proj", nn.Linear(*sizes, bias=False))


def share(layers, plan):
    """Puts the plan's modules in the place of the targets' projections."""
    if plan.get("version") != PLAN_VERSION:
        raise ValueError(f"sharp_config has version {plan.get('version')}; this file reads {PLAN_VERSION}")
    for target in plan["targets"]:
        layer = layers[target["layer"]]
        if target.get("dropped", False):
            layer.mlp = NoMlp()
            continue
        if target["form"] == "pruned":
            prune(layer.mlp, target["neurons"])
            continue
        if target["form"] == "neurons":
            for projection in PROJECTIONS:
                name, module = projection + "_proj", LongerLinear if projection == "down" else WiderLinear
                shared = getattr(layers[target["reference"]].mlp, name)
                setattr(layer.mlp, name, module(getattr(layer.mlp, name), shared, target["neurons"]))
            continue
        ranks = target["ranks"]
        if isinstance(ranks, int):
            ranks = dict.fromkeys(PROJECTIONS, ranks)
        for projection in PROJECTIONS:
            name = projection + "_proj"
            reference = target.get("reference")
            shared = None if reference is None else getattr(layers[reference].mlp, name)
            own = getattr(layer.mlp, name)
            setattr(layer.mlp, name, SharedLinear(own, shared, target["form"], ranks.get(projection, 0)))


def _config_class(base_type, prefix):
    base = CONFIG_MAPPING[base_type]
    name = f"Sharp{prefix}Config"
    return type(base)(name, (base,), {"__module__": __name__, "model_type": f"sharp_{base_type}"})


def _model_class(base_type, prefix):
    base = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[base_type]]

    def __init__(self, config):
        base.__init__(self, config)
        share(self.model.layers, config.sharp_config)

    body = {"__module__": __name__, "__init__": __init__, "config_class": __getattr__(f"Sharp{prefix}Config")}
    return type(base)(f"Sharp{prefix}ForCausalLM", (base,), body)


def __getattr__(name):
    for suffix, make in (("Config", _config_class), ("ForCausalLM", _model_class)):
        if name.startswith("Sharp") and name.endswith(suffix):
            prefix = name[len("Sharp") : -len(suffix)]
            for base_type, config in CONFIG_MAPPING.items():
                if config.__name__ == f"{prefix}Config":
                    made = make(base_type, prefix)
                    globals()[name] = made
                    return made
    raise AttributeError(f"{name} is neither here nor a family that this transformers has")
