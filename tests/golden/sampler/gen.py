"""What transformers' logits processors leave of random logits: distributions.json.

    pip install torch transformers && python gen.py
"""

import json
import pathlib

import torch
from transformers import (LogitsProcessorList, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor,
                          TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)

VOCAB = 60
# temperature, top_k, top_p, min_p, repetition_penalty
CASES = [
    (1.0, 0, 1.0, 0.0, 1.0),
    (0.7, 0, 1.0, 0.0, 1.0),
    (1.0, 5, 1.0, 0.0, 1.0),
    (1.0, 0, 0.8, 0.0, 1.0),
    (1.0, 0, 1.0, 0.1, 1.0),
    (1.3, 0, 1.0, 0.0, 1.4),
    (0.8, 20, 0.9, 0.05, 1.2),
    (1.5, 40, 0.5, 0.2, 0.9),
]

out = []
for i, (temperature, top_k, top_p, min_p, penalty) in enumerate(CASES):
    generator = torch.Generator().manual_seed(i)
    logits = torch.randn(1, VOCAB, generator=generator) * 3
    history = torch.randint(0, VOCAB, (1, 25), generator=generator)
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)])
    if top_k:
        steps.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        steps.append(TopPLogitsWarper(top_p))
    if min_p:
        steps.append(MinPLogitsWarper(min_p))
    probabilities = torch.softmax(steps(history, logits.clone()), -1)[0]
    out.append(dict(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty,
        logits=logits[0].tolist(), history=history[0].tolist(), probabilities=probabilities.tolist()))
path = pathlib.Path(__file__).with_name("distributions.json")
path.write_text("[\n" + ",\n".join(json.dumps(case) for case in out) + "\n]\n")
