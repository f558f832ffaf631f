"""Puts the tables that `cargo xtask study configs/studies/size_sweep.toml` left into one: later ones replace earlier cells.

    python3 docs/results/collect.py runs/size_sweep/table.json [another/table.json | a folder of basis_sharing.py ...]

Reads docs/results/size_sweep_cells.json first and writes it again with the new cells; writes docs/results/size_sweep.json (mean loss in nats a
token on held-out text of the fine-tuning distribution, by size and method) and prints the table of docs/results.md.
"""

import collections
import json
import math
import pathlib
import statistics
import sys

HERE = pathlib.Path(__file__).parent
CELLS = HERE / "size_sweep_cells.json"
TEXT = "boolq_held_out"
# Rows of a method that have names of their own; every other row is the method's `slw_sft`.
NAMES = {
    ("paper", "slw_sft"): "paper_slw_sft", ("paper", "slw"): "paper_slw", ("paper", "sft"): "paper_sft", ("paper", "direct"): "direct",
    ("low-rank-alone", "slw_sft"): "low_rank", ("low-rank-everywhere", "slw_sft"): "low_rank_everywhere",
    ("default-8-bits", "slw_sft_q8"): "default_8_bits", ("default-4-bits", "slw_sft_q4"): "default_4_bits", ("default-4-bits", "slw_sft"): None,
    ("basis-sharing", "slw_sft"): "basis", ("default", "slw"): "default_slw", ("sharing", "slw"): "sharing_slw",
}


def basis_sharing(folder):
    """What basis_sharing.py and `sharp evaluate` left in a folder, as a cell of the study. Its rows are of dense products in 32 bits; the bytes are
    those of what is stored."""
    stored = json.loads((folder / "stored.json").read_text())
    rows = []
    for row in json.loads((folder / "result.json").read_text())["rows"]:
        name = {"original": "original", "start": "slw", "tuned": "slw_sft"}[row["name"]]
        bytes_, parameters, saved = row["bytes"], row["mlp_parameters"], 0.0
        if name != "original":
            bytes_ -= 4 * (parameters - stored["mlp_parameters"])
            parameters, saved = stored["mlp_parameters"], stored["saved"]
        if name == "slw_sft":
            bytes_ //= 2
        rows.append({"name": name, "mlp_parameters": parameters, "saved": saved, "bytes": bytes_, "perplexity": row["perplexity"], "kl": row["kl"], "accuracy": {}})
    return {"cell": f"{stored['size']}-basis-sharing-s1", "values": [stored["size"], "basis-sharing"], "seed": 1, "state": "done", "rows": rows}


def main():
    cells = {cell["cell"]: cell for cell in json.loads(CELLS.read_text())}
    for path in map(pathlib.Path, sys.argv[1:]):
        found = [basis_sharing(path)] if path.is_dir() else json.loads(path.read_text())["cells"]
        for cell in found:
            if cell["state"] == "done":
                cells[cell["cell"]] = cell
    CELLS.write_text(json.dumps(list(cells.values()), indent=1) + "\n")

    original, sizes = None, collections.defaultdict(lambda: collections.defaultdict(list))
    for cell in cells.values():
        size, method = cell["values"]
        for row in cell["rows"]:
            if row["name"] == "original":
                original = math.log(row["perplexity"][TEXT])
                continue
            other = method.replace("-", "_") if row["name"] == "slw_sft" else None
            name = NAMES.get((method, row["name"]), other)
            if name:
                sizes[size][name].append(row)
    removed = {}
    for size, methods in sizes.items():
        removed[size] = statistics.median(row["saved"] for rows in methods.values() for row in rows)
    document = {
        "original": {"mean_loss": original},
        "text": TEXT,
        "sizes": [
            {
                "mlp_removed": round(removed[size], 4),
                "methods": {
                    name: {
                        "mean_loss": statistics.mean(math.log(row["perplexity"][TEXT]) for row in rows),
                        "std": statistics.stdev(math.log(row["perplexity"][TEXT]) for row in rows) if len(rows) > 1 else None,
                        "seeds": len(rows),
                        "mlp_parameters": rows[0]["mlp_parameters"],
                        "bytes": rows[0]["bytes"],
                    }
                    for name, rows in sorted(methods.items())
                },
            }
            for size, methods in sorted(sizes.items(), key=lambda item: removed[item[0]])
        ],
    }
    (HERE / "size_sweep.json").write_text(json.dumps(document, indent=1) + "\n")

    print("| size | method | seed | row | MLP parameters | saved | bytes | passages | KL | HellaSwag | KL | WikiText-2 | KL |")
    print("|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for cell in sorted(cells.values(), key=lambda cell: (cell["values"][0], list(cells).index(cell["cell"]))):
        for row in cell["rows"]:
            if row["name"] == "original":
                continue
            columns = []
            for text in (TEXT, "hellaswag", "wikitext"):
                perplexity, kl = row["perplexity"].get(text), row["kl"].get(text)
                columns += ["-" if perplexity is None else f"{perplexity:.2f}", "-" if kl is None else f"{kl:.3f}"]
            size, method = cell["values"]
            print(f"| {size} | {method} | {cell['seed']} | {row['name']} | {row['mlp_parameters'] / 1e6:.2f} M | {100 * row['saved']:.1f} % |"
                  f" {row['bytes'] / 1e6:.1f} MB | {' | '.join(columns)} |")


main()
