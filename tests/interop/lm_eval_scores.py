"""EleutherAI's lm-evaluation-harness (`local-completions`) against `sharp serve`: its scores have to be `sharp evaluate`'s.

Two models: a small one with random weights and questions made up here, and, where the cache has them, SmolLM2-135M-Instruct with
questions of ARC easy. SHARP_INTEROP_QUESTIONS says how many questions of each (200); SHARP_INTEROP_MODEL=small leaves the second out."""

import gzip
import json
import os
import pathlib
import random
import subprocess

import _server
from support import scratch

scratch.inside("lm_eval[api]==0.4.13", "transformers==5.24.0")

COUNT = int(os.environ.get("SHARP_INTEROP_QUESTIONS", "200"))

TASK = """\
task: sharp_questions
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "choices"
doc_to_target: gold
target_delimiter: " "
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def real(folder):
    gguf = scratch.CACHE / "models" / "smollm2-135m-instruct" / "model.gguf"
    stored = scratch.CACHE / "data" / "olmo" / "arc_easy" / "rc_0shot" / "requests.jsonl.gz"
    if not (gguf.is_file() and stored.is_file()):
        return None
    original = folder / "original"
    command = [_server.SHARP, "import", gguf, "--out", original]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with gzip.open(stored, "rt") as rows:
        return original, [json.loads(row) for row in rows]


def made_up(folder):
    original, _ = _server.small_model(folder)
    chance = random.Random(1)
    words = "river stone cloud seven iron garden winter paper bright slow".split()
    rows = []
    for i in range(COUNT):
        context = "Question: " + " ".join(chance.choices(words, k=chance.randint(3, 12))) + "?\nAnswer:"
        gold = chance.randrange(4)
        for j in range(4):
            continuation = " " + " ".join(chance.choices(words, k=chance.randint(1, 4)))
            rows.append({
                "request_type": "loglikelihood", "doc": {"id": str(i)}, "idx": j, "task_name": "made_up",
                "request": {"context": context, "continuation": continuation}, "doc_id": i, "label": gold,
            })
    return original, rows


def questions(rows, folder):
    """The first questions, in sharp's form and in that of a task of lm-evaluation-harness."""
    docs = {}
    for row in rows:
        doc = docs.setdefault(row["doc_id"], {"context": row["request"]["context"], "choices": [], "gold": row["label"]})
        continuation = row["request"]["continuation"]
        assert continuation.startswith(" ") and row["request"]["context"] == doc["context"]
        doc["choices"].append(continuation[1:])
    ids = list(docs)[:COUNT]
    ours, theirs = folder / "requests.jsonl", folder / "questions.jsonl"
    ours.write_text("".join(json.dumps(row) + "\n" for row in rows if row["doc_id"] in set(ids)))
    theirs.write_text("".join(json.dumps(docs[i]) + "\n" for i in ids))
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "questions.yaml").write_text(TASK.format(file=theirs))
    return ours, tasks, len(ids)


def compare(name, folder, original, rows):
    """Both programs' scores on the same questions, of the same packed model."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    ours, tasks, count = questions(rows, folder)
    packed = folder / "model.sharp"
    command = [_server.SHARP, "quantize", "--model", original, "--recipe", "q8", "--out", packed]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = folder / "results.json"
    command = [_server.SHARP, "evaluate", "--model", packed, "--task", f"questions={ours}", "--out", results]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    expected = json.loads(results.read_text())["rows"][0]["tasks"]["questions"]
    # `sharp evaluate` keeps keys and values in f32.
    with _server.serve(packed, "--kv-cache", "f32", "--context", "2048") as url:
        found = simple_evaluate(
            model="local-completions",
            model_args={
                "model": "model", "base_url": f"{url}/v1/completions", "tokenizer": str(original),
                "tokenizer_backend": "huggingface", "num_concurrent": 4, "max_length": 2048, "timeout": 600,
            },
            batch_size=4,
            tasks=["sharp_questions"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
        )
    scores = found["results"]["sharp_questions"]
    for metric in ("acc,none", "acc_norm,none"):
        print(f"{name}, {metric}: lm_eval {scores[metric]:.6f}, sharp evaluate {expected[metric]:.6f} ({count} questions)")
    for metric in ("acc,none", "acc_norm,none"):
        assert abs(scores[metric] - expected[metric]) < 1e-9, "the scores differ"


def main():
    # Nothing here may ask the network for anything but the server.
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    folder = _server.scratch()
    os.environ["HF_HOME"] = str(folder / "hf")
    models = {"random weights": made_up}
    if os.environ.get("SHARP_INTEROP_MODEL") != "small":
        models["SmolLM2-135M-Instruct"] = real
    for name, make in models.items():
        place = folder / make.__name__
        place.mkdir()
        made = make(place)
        if made is None:
            print(f"{name}: not in the cache, left out")
            continue
        compare(name, place, *made)


main()
