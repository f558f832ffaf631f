"""Losses of three models on documents of very different lengths, and what numpy's bootstrap makes of them.

Run with numpy installed:  python gen.py
Numpy draws with a generator of its own and more often, so the figures agree to a few per cent of a standard error.
"""

import json
import pathlib

import numpy as np

DOCUMENTS, RESAMPLES = 60, 200_000

rng = np.random.default_rng(11)
tokens = rng.integers(5, 400, DOCUMENTS)
hard = rng.gamma(9.0, 1 / 3, DOCUMENTS)
means = np.stack([hard, hard + rng.normal(0.06, 0.08, DOCUMENTS), hard + rng.normal(0.002, 0.08, DOCUMENTS)])
losses = np.round(means * tokens, 6)

resampled = []
for part in np.array_split(np.arange(RESAMPLES), 100):
    drawn = rng.integers(0, DOCUMENTS, (len(part), DOCUMENTS))
    resampled.append(losses[:, drawn].sum(-1) / tokens[drawn].sum(-1))
resampled = np.concatenate(resampled, -1)

pairs = {}
for i, j in [(1, 0), (2, 0), (2, 1)]:
    difference = resampled[i] - resampled[j]
    low, high = np.quantile(difference, [0.025, 0.975])
    pairs[f"{i}-{j}"] = {"stderr": difference.std(ddof=1), "low": low, "high": high}

want = {
    "tokens": tokens.tolist(),
    "losses": losses.tolist(),
    "stderr": resampled.std(axis=1, ddof=1).tolist(),
    "pairs": pairs,
}
(pathlib.Path(__file__).parent / "want.json").write_text(json.dumps(want, indent=1) + "\n")
