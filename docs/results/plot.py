"""Draws docs/results/size_sweep.svg: perplexity against stored MLP parameters, a line for each method.

    python3 docs/results/plot.py

Reads docs/results/size_sweep_cells.json, which collect.py writes. Needs nothing but Python. Points are geometric means
over seeds of each method's row after all of its training. The same cells give the same bytes.
"""

import collections
import json
import math
import pathlib

HERE = pathlib.Path(__file__).parent
METHODS = [
    ("default", "own neurons"),
    ("sharing", "shared MLPs, repaired"),
    ("low-rank-alone", "low rank alone"),
    ("drop", "MLPs dropped"),
    ("paper", "the paper's recipe"),
]
TEXTS = [("boolq_held_out", "held-out passages"), ("hellaswag", "HellaSwag")]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 430, 380, 52, 14, 92, 44
STYLE = """
svg{--paper:#fff;--ink:#1f2328;--soft:#656d76;--grid:#d8dee4;--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b3478b;--c4:#8a6d00;font:12px system-ui,sans-serif}
@media(prefers-color-scheme:dark){svg{--paper:#0d1117;--ink:#e6edf3;--soft:#9198a1;--grid:#30363d;--c0:#56b4e9;--c1:#ff9f5a;--c2:#3ed6a3;--c3:#f0a6cf;--c4:#f0e442}}
.paper{fill:var(--paper)}text{fill:var(--ink)}.soft{fill:var(--soft)}.grid{stroke:var(--grid)}.original{stroke:var(--soft);stroke-dasharray:5 4}
.line{fill:none;stroke-width:2}.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}.c4{stroke:var(--c4)}
.mark.c0{fill:var(--c0)}.mark.c1{fill:var(--c1)}.mark.c2{fill:var(--c2)}.mark.c3{fill:var(--c3)}.mark.c4{fill:var(--c4)}
"""


def measured():
    """The points of each text and method, as (millions of MLP parameters, perplexity); and each text's original."""
    seeds = collections.defaultdict(list)
    original = {}
    for cell in json.loads((HERE / "size_sweep_cells.json").read_text()):
        size, method = cell["values"]
        for row in cell["rows"]:
            for text, perplexity in row["perplexity"].items():
                if row["name"] == "original":
                    original[text] = perplexity
                elif row["name"] == "slw_sft":
                    seeds[text, method, size].append((row["mlp_parameters"] / 1e6, perplexity))
    points = collections.defaultdict(list)
    for (text, method, _), rows in seeds.items():
        mean = math.exp(sum(math.log(perplexity) for _, perplexity in rows) / len(rows))
        points[text, method].append((rows[0][0], mean))
    return {key: sorted(line) for key, line in points.items()}, original


def mark(i, x, y, title=""):
    """A mark whose shape tells the method as its colour does."""
    shape = [
        f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
        f"M{x - 3.5:.1f} {y - 3.5:.1f}h7v7h-7Z",
        f"M{x:.1f} {y - 5:.1f}l4.5 8h-9Z",
        f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5Z",
        f"M{x - 4:.1f} {y - 4.5:.1f}h8l-4 8Z",
    ][i]
    return f'<path class="mark c{i}" d="{shape}">{f"<title>{title}</title>" if title else ""}</path>'


def main():
    points, original = measured()
    width = WIDTH * len(TEXTS)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}">',
        "<title>SmolLM2-135M-Instruct: perplexity against stored MLP parameters, by method</title>",
        f'<style>{STYLE}</style>\n<rect class="paper" width="{width}" height="{HEIGHT}"/>',
        f'<text x="{LEFT}" y="20" font-weight="600">SmolLM2-135M-Instruct: the same stored size by five methods</text>',
    ]
    for i, (_, name) in enumerate(METHODS):
        x, y = LEFT + 210 * (i % 3), 42 + 18 * (i // 3)
        out.append(f'<path class="line c{i}" d="M{x} {y - 4}h26"/>{mark(i, x + 13, y - 4)}<text x="{x + 34}" y="{y}">{name}</text>')
    for panel, (text, title) in enumerate(TEXTS):
        lines = [points[text, method] for method, _ in METHODS]
        xs = [x for line in lines for x, _ in line]
        low, high = min(xs) - 3, max(xs) + 3
        bottom, top = math.log10(original[text] * 0.9), math.log10(max(y for line in lines for _, y in line) * 1.2)
        left, right = WIDTH * panel + LEFT, WIDTH * (panel + 1) - RIGHT

        def across(x):
            return left + (x - low) / (high - low) * (right - left)

        def up(y):
            return HEIGHT - BOTTOM - (math.log10(y) - bottom) / (top - bottom) * (HEIGHT - BOTTOM - TOP)

        out.append(f'<text x="{left}" y="{TOP - 8}">perplexity, {title} (log scale)</text>')
        for value in (10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000, 3000):
            if bottom < math.log10(value) < top:
                out.append(f'<path class="grid" d="M{left} {up(value):.1f}H{right}"/><text class="soft" x="{left - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value}</text>')
        for value in range(0, 80, 10):
            if low < value < high:
                out.append(f'<text class="soft" x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value}</text>')
        out.append(f'<text x="{(left + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">stored MLP parameters, millions (original: 79.6)</text>')
        at = up(original[text])
        out.append(f'<path class="original" d="M{left} {at:.1f}H{right}"/><text class="soft" x="{left + 4}" y="{at - 5:.1f}">original {original[text]:.2f}</text>')
        for i, (line, (_, name)) in enumerate(zip(lines, METHODS)):
            places = [(across(x), up(y)) for x, y in line]
            out.append(f'<path class="line c{i}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
            for (x, y), (parameters, perplexity) in zip(places, line):
                out.append(mark(i, x, y, f"{name}: {parameters:.2f} M, perplexity {perplexity:.2f}"))
    out.append("</svg>\n")
    (HERE / "size_sweep.svg").write_text("\n".join(out))


main()
