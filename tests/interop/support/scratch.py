"""A virtual environment of pinned packages for one script, and the programs under test."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import venv

# Where `cargo xtask` keeps what it downloads.
CACHE = pathlib.Path(os.environ.get("SHARP_CACHE") or pathlib.Path.home() / ".cache" / "sharp")
# One set for every script that needs PyTorch, since it is several gigabytes.
TORCH = ("torch==2.13.0", "transformers==5.23.0", "safetensors==0.8.0", "peft==0.21.2", "openai==3.57.0")
# The exit code of a script that needs something this machine does not have.
LEFT_OUT = 77


def leave_out(why):
    """Ends the script: nothing failed, and nothing was checked."""
    print(f"left out: {why}")
    sys.exit(LEFT_OUT)


def inside(*packages):
    """Goes on in an environment that has exactly these packages and what they need. It is made once for each set of
    packages, in the project's cache folder; later runs start at once."""
    digest = hashlib.sha256("\n".join((sys.version, *packages)).encode()).hexdigest()[:16]
    if os.environ.get("SHARP_INTEROP_INSIDE") == digest:
        return
    home = CACHE / "interop" / digest
    python, done = home / "bin" / "python", home / "installed"
    if not done.exists():
        try:
            venv.create(home, with_pip=True, clear=True)
        except (OSError, subprocess.CalledProcessError) as error:
            leave_out(f"{sys.executable} makes no virtual environment with pip (on Debian: apt install python3-venv): {error}")
        print(f"installing {', '.join(packages)} into {home}", flush=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary"]
        if subprocess.run([*pip, *packages]).returncode != 0:
            leave_out(f"pip cannot install {', '.join(packages)}; its message is above (a package index must be in reach)")
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
