"""A new user's first hour: `cargo install`, doctor, a chat, one's own Hugging Face folder through `cargo xtask pipeline`, the result
served to the `openai` package and opened in transformers, whose logits have to be the engine's.

    python3 tests/interop/first_hour.py
"""

import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import time

from support import scratch

if not hasattr(os, "fork"):
    scratch.leave_out("this system has no pseudo terminals")
scratch.inside(*scratch.TORCH)
if not shutil.which("cargo"):
    scratch.leave_out("no cargo here: rustup.rs installs it")

import tempfile  # noqa: E402

import torch  # noqa: E402
from support import models  # noqa: E402
from support.terminal import Terminal  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TEXT = "The cat sat on the mat. The dog did not, and so the two of them looked at each other."
PRUNED = [
    "plan.strategy=even",
    "plan.form=pruned",
    "plan.targets=none",
    "plan.remove=0.3",
    "analyze.delta_nll_tokens=none",
]
# What differs between two correct engines on float16 weights: sums in another order.
NEAR = 1e-3


class Hour:
    """Says what was done and how long it took."""

    def __init__(self):
        self.begun = time.monotonic()

    def done(self, what):
        now = time.monotonic()
        print(f"{what}: {now - self.begun:.1f} s", flush=True)
        self.begun = now


def command(*line):
    done = subprocess.run([str(part) for part in line], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, line))}\nfailed with {done.returncode}:\n{done.stderr[-4000:]}"
    return done.stdout


def chat(sharp, model, folder):
    """One question in a terminal, and good-bye."""
    terminal = Terminal(sharp, "chat", "--model", model, "--max-tokens", "12", "--history", folder / "history")
    terminal.wait_for("> ")
    terminal.type("Hello there\r")
    terminal.wait_for("there")
    terminal.wait_for("\r\n")
    answer = terminal.wait_for("> ")
    assert answer.strip(), "an empty answer"
    terminal.type("\x04")
    assert terminal.end() == 0


def pipeline(model, out, *settings):
    line = ["cargo", "xtask", "pipeline", "--config", "configs/tiny.toml", "--out", out, "--set", f"model={model}"]
    for setting in settings:
        line += ["--set", setting]
    command(*line)
    page = (out / "report.html").read_text()
    assert "Not all stages have left their results" not in page and not re.search(r"\b(NaN|inf)\b", page)
    rows = {row["name"]: row for row in json.loads((out / "08-evaluate" / "results.json").read_text())["rows"]}
    assert rows["slw_sft"]["mlp_parameters"] < rows["original"]["mlp_parameters"]
    for name, row in rows.items():
        assert all(math.isfinite(value) for value in row["perplexity"].values()), (name, row)


@torch.no_grad()
def same(what, served, engine, model, tokenizer):
    """The engine's log probabilities of a text and of the five likeliest tokens at each place are transformers'."""
    answer = engine.completions.create(model=served, prompt=TEXT, max_tokens=0, temperature=0, echo=True, logprobs=5)
    found = answer.choices[0].logprobs
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    logits = model(ids).logits[0].double()
    expected = torch.log_softmax(logits, -1)
    count = ids.shape[1]
    assert len(found.tokens) == count, f"{what}: {len(found.tokens)} tokens, by transformers {count}"
    worst = 0.0
    for at in range(1, count):
        worst = max(worst, abs(found.token_logprobs[at] - float(expected[at - 1, ids[0, at]])))
        ours = sorted(found.top_logprobs[at].values(), reverse=True)[:5]
        theirs = expected[at - 1].topk(len(ours)).values.tolist()
        worst = max(worst, *(abs(a - b) for a, b in zip(ours, theirs)))
    assert worst < NEAR, f"{what}: log probabilities differ by {worst:.1e}"
    return worst


def main():
    hour = Hour()
    with tempfile.TemporaryDirectory(prefix="sharp-interop-") as folder:
        folder = pathlib.Path(folder)
        command("cargo", "install", "--locked", "--path", "crates/sharp-cli", "--root", folder / "installed")
        sharp = folder / "installed" / "bin" / "sharp"
        version = command(sharp, "--version").split()
        manifest = (REPOSITORY / "Cargo.toml").read_text()
        assert version == ["sharp", re.search(r'^version = "(.+?)"', manifest, re.M)[1]], version
        doctor = json.loads(command(sharp, "--json", "doctor"))
        assert doctor["threads"] >= 1 and doctor["kernels_in_use"] in doctor["kernels_available"]
        hour.done("cargo install, --version, doctor")
        # The scripts' helpers use the installed program from here on.
        os.environ["SHARP_BIN"] = str(sharp)
        import _server  # noqa: PLC0415
        import openai  # noqa: PLC0415

        own = folder / "own"
        models.original(own, "llama", seed=3)
        settings = own / "tokenizer_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": _server.TEMPLATE}))
        chat(sharp, own, folder)
        hour.done("a chat with one's own folder")

        for name, more in (("sharing", []), ("pruned", PRUNED)):
            run = folder / name
            pipeline(own, run, *more)
            hour.done(f"pipeline, {name}")
            compact, dense, packed = run / "06-export" / "compact", run / "06-export" / "dense", run / "07-quantize" / "model.sharp"
            shared = AutoModelForCausalLM.from_pretrained(compact, trust_remote_code=True, dtype=torch.float32).eval()
            plain = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
            assert sum(p.numel() for p in shared.parameters()) < sum(p.numel() for p in plain.parameters())
            tokenizer = AutoTokenizer.from_pretrained(compact, trust_remote_code=True)
            # Each against the engine on the same folder: the dense one's weights are rounded to float16 once more.
            worst = 0.0
            for path, model in ((compact, shared), (dense, plain)):
                with _server.serve(path, "--kv-cache", "f32") as url:
                    engine = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
                    worst = max(worst, same(f"{name}, {path.name}", path.name, engine, model, tokenizer))
            hour.done(f"transformers, compact and dense: log probabilities within {worst:.0e}")

            # The same model as GGUF for others, and the packed file for the server.
            gguf = run / "model.gguf"
            command(sharp, "export", "--model", compact, "--gguf", gguf, "--gguf-dtype", "F16")
            ask = ["--prompt", "The cat sat on", "--max-tokens", "16"]
            texts = {
                path.name: json.loads(command(sharp, "--json", "generate", "--model", path, *ask))["text"]
                for path in (dense, gguf)
            }
            assert texts["dense"] == texts["model.gguf"], texts
            chat(sharp, packed, folder)
            with _server.serve(packed) as url:
                client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
                stream = client.chat.completions.create(
                    model="model", messages=[{"role": "user", "content": "Hello"}], max_tokens=8, stream=True
                )
                assert len([chunk for chunk in stream if chunk.choices]) > 1
            hour.done("GGUF, chat and server with the packed file")


main()
