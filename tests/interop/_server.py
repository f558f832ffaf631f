"""What the scripts about `sharp serve` share: a scratch folder, a small model, a running server."""

import atexit
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request

SHARP = os.environ.get("SHARP_BIN") or sys.exit("SHARP_BIN names no program; `cargo xtask interop` sets it")


def scratch():
    """A folder that lives as long as this process."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sharp-interop-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def small_model(folder, *shape, recipe="q8"):
    """A model with random weights and a chat template: the path of its folder and of its packed file."""
    original, packed = folder / "small", folder / "small.sharp"
    subprocess.run([SHARP, "synth", *shape, "--out", original], check=True, stdout=subprocess.DEVNULL)
    settings = original / "tokenizer_config.json"
    config = json.loads(settings.read_text())
    settings.write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    command = [SHARP, "quantize", "--model", original, "--recipe", recipe, "--out", packed]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return original, packed


@contextlib.contextmanager
def serve(model, *options, environment=None):
    """`sharp serve` on a free port; gives its address. At the end it has to stop by itself on SIGTERM."""
    command = [SHARP, "--json", "serve", "--model", model, "--port", "0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    try:
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            if not line:
                sys.exit(f"sharp serve ended with {process.wait()}: {text}")
            text += line
        yield json.loads(text)["url"]
        process.terminate()
        assert process.wait(timeout=60) == 0, "sharp serve did not stop cleanly"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def get(url):
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()
