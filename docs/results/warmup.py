"""When each form and start of the warm-up reaches the error that the paper's reaches in all its time.

    cargo xtask study configs/studies/forms.toml
    python3 docs/results/warmup.py runs/forms

Reads 04-warmup/metrics.jsonl of every cell; prints a table of validation errors (squared error over the squared output, each token counted
alike) and of seconds from the layer's start, its closed form included and the collection of activations not.
"""

import json
import pathlib
import sys

PAPER = "low-rank-from-zero"
MEASURE = "validation_token_error"


def lines(cell):
    layers = {}
    for line in (cell / "04-warmup" / "metrics.jsonl").read_text().splitlines():
        line = json.loads(line)
        if line.get(MEASURE) is not None:
            layers.setdefault(line["layer"], []).append((line["seconds"], line["step"], line[MEASURE]))
    return layers


def main():
    folder = pathlib.Path(sys.argv[1])
    cells = {path.name: lines(path) for path in sorted(folder.iterdir()) if (path / "04-warmup" / "metrics.jsonl").exists()}
    paper = next(layers for name, layers in cells.items() if name.startswith(PAPER))
    print("| form | layer | at the start | best | seconds | paper's best | in seconds | reached in seconds | times faster |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, layers in cells.items():
        for layer, found in sorted(layers.items()):
            goal = min(error for _, _, error in paper[layer])
            needed = min(seconds for seconds, _, error in paper[layer] if error == goal)
            best = min(error for _, _, error in found)
            when = min(seconds for seconds, _, error in found if error == best)
            reached = [seconds for seconds, _, error in found if error <= goal]
            faster = f"{needed / min(reached):.1f}" if reached else "-"
            first = f"{min(reached):.1f}" if reached else "not"
            print(f"| {name} | {layer} | {found[0][2]:.4f} | {best:.4f} | {when:.1f} | {goal:.4f} | {needed:.1f} | {first} | {faster} |")


main()
