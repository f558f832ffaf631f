"""A virtual environment of pinned packages for one script, and the programs under test."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import venv

TORCH = ("torch==2.13.0", "transformers==5.23.0", "safetensors==0.8.0")


def inside(*packages):
    """Goes on in an environment that has exactly these packages and what they need. It is made once for each set of
    packages, in SHARP_INTEROP_CACHE or the system's folder for temporary files; later runs start at once."""
    digest = hashlib.sha256("\n".join((sys.version, *packages)).encode()).hexdigest()[:16]
    if os.environ.get("SHARP_INTEROP_INSIDE") == digest:
        return
    cache = pathlib.Path(os.environ.get("SHARP_INTEROP_CACHE", tempfile.gettempdir()))
    home = cache / f"sharp-interop-{digest}"
    python, done = home / "bin" / "python", home / "installed"
    if not done.exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        done.touch()
    here = str(pathlib.Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    # Nothing here may look for a model on a hub.
    environment = {**os.environ, "SHARP_INTEROP_INSIDE": digest, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    os.execve(python, [str(python), *sys.argv], environment)


def sharp(*arguments):
    """Runs the program under test and returns its `--json` result."""
    program = os.environ.get("SHARP_BIN")
    if not program:
        sys.exit("SHARP_BIN must name the built `sharp` program")
    line = [program, "--json", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(line)}\nfailed with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)
