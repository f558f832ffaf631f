"""Writes what the `gguf` Python package makes of the same numbers: quantised bytes, and those bytes dequantised.

The formats that are only read are random bytes under sensible scales (the package does not write most of them): every bit
pattern comes up.

Run with numpy and gguf installed:  python gen.py
Files are raw and little endian: input.f32, then for each format NAME.bin (bytes) and NAME.f32 (dequantised).
"""

import pathlib

import gguf
import numpy as np

HERE = pathlib.Path(__file__).parent
TYPES = gguf.GGMLQuantizationType

rng = np.random.default_rng(7)
rows = [rng.standard_normal((24, 32)) * 0.02, rng.standard_t(3, (16, 32)), rng.uniform(-1, 1, (8, 32)) * 1e-4]
special = np.zeros((8, 32))
special[1, 5] = -3.0  # one negative extreme
special[2, 5], special[2, 9] = 2.0, -2.0  # two extremes of one size: the first decides
special[3] = 0.75  # all alike
special[4] = np.arange(32) - 15.5  # halves: how ties round
special[5] = np.linspace(-127, 127, 32)
special[6] = 1e-7 * np.arange(32)  # the scale is a subnormal half
special[7] = np.where(np.arange(32) % 2, 30000.0, -29000.0)
x = np.concatenate(rows + [special]).astype(np.float32)
x.tofile(HERE / "input.f32")
for name in ["Q8_0", "Q4_0", "Q4_1", "BF16", "F16"]:
    kind = TYPES[name]
    stored = gguf.quantize(x, kind)
    stored.tofile(HERE / f"{name}.bin")
    gguf.dequantize(stored, kind).astype(np.float32).tofile(HERE / f"{name}.f32")

# Where the 16-bit floats of a block lie.
READ_ONLY = {"Q5_0": [0], "Q5_1": [0, 2], "IQ4_NL": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
rng = np.random.default_rng(11)
for name, floats in READ_ONLY.items():
    kind = TYPES[name]
    size, bytes_ = gguf.GGML_QUANT_SIZES[kind]
    rows = 12 if size == 256 else 40
    stored = rng.integers(0, 256, (rows, bytes_), dtype=np.uint8)
    for at in floats:
        scales = (rng.standard_normal(rows) * 0.02).astype(np.float16)
        scales[:4] = [0.0, -1.5, 6e-8, 300.0]  # nothing, negative, subnormal, large
        stored[:, at : at + 2] = scales.view(np.uint8).reshape(rows, 2)
    stored.tofile(HERE / f"{name}.bin")
    gguf.dequantize(stored, kind).astype(np.float32).tofile(HERE / f"{name}.f32")
