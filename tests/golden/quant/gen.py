"""Writes what the `gguf` Python package makes of the same numbers: quantised bytes, and those bytes dequantised.

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
