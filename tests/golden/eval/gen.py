"""A tiny random Llama, a few questions, and what transformers makes of them, into this folder.

Run with torch, transformers and safetensors installed:  python gen.py
Everything is computed in float64 from separate forward passes, one for each window and each answer.
"""

import json
import pathlib
import shutil

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
MLP_OF = [0, 1, 1, 3]  # the second model: layer 2 runs with the MLP of layer 1

TEXT = (
    "The cat sat on the mat. The dog did not, and so the two of them looked at each other for ten seconds. "
    "Question: one, two, three? Answer: four five six; seven (eight) nine. " * 3
)
QUESTIONS = [
    ("Question: What is two and two?\nAnswer:", [" four", " ten", " the dog and the cat", " a"], 0),
    ("The cat sat on", [" the mat.", " the", " one two three"], 1),
    ("The dog ", ["sat", "did not sit on the mat."], 1),
    ("", ["The cat", "The dog did"], 0),
    ("numbers 1 2 3,", [" ça", " 10 20 30;", " ééé", " four"], 2),
    ("one two three four five", [" six seven eight", " six seven nine", " six"], 0),
    ("x", [" é", " yz"], 1),
]
# The context varies and the continuation does not.
CLOZE = [
    (["The cat was small because the cat", "The cat was small because the dog"], " sat on the mat.", 1),
    (["Ann and", "Two and"], " two", 0),
]


def rows():
    doc_id = 0
    for context, answers, gold in QUESTIONS:
        for idx, answer in enumerate(answers):
            yield doc_id, idx, context, answer, gold
        doc_id += 1
    for contexts, answer, gold in CLOZE:
        for idx, context in enumerate(contexts):
            yield doc_id, idx, context, answer, gold
        doc_id += 1


def models():
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=360, hidden_size=32, intermediate_size=72, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, attention_bias=False, mlp_bias=False,
    )
    first = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in first.named_parameters():
            scale = 0.25 if p.dim() == 2 else 0.1
            p.copy_((p * 0 + 1 if p.dim() == 1 else 0) + torch.randn_like(p) * scale)
    first.save_pretrained(HERE / "model", safe_serialization=True)
    second = LlamaForCausalLM(config).eval()
    second.load_state_dict(first.state_dict())
    for i, j in enumerate(MLP_OF):
        second.model.layers[i].mlp.load_state_dict(first.model.layers[j].mlp.state_dict())
    return [first.double(), second.double()]


@torch.no_grad()
def log_probs(model, ids):
    return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def texts(all_models, ids, window, stride, first):
    per = [{"loss": [], "kl": [], "same": []} for _ in all_models]
    previous, room = 0, window - len(first)
    for begin in range(0, len(ids), min(stride, room)):
        end = min(begin + room, len(ids))
        piece = first + ids[begin:end]
        said = [log_probs(m, piece) for m in all_models]
        for t in range(max(previous, begin if first else begin + 1), end):
            row = len(first) + t - begin - 1
            p = said[0][row]
            for own, out in zip(said, per):
                out["loss"].append(-own[row][ids[t]].item())
                out["kl"].append((p.exp() * (p - own[row])).sum().item())
                out["same"].append(float(p.argmax() == own[row].argmax()))
        previous = end
        if end == len(ids):
            break

    def mean(x):
        return sum(x) / len(x)

    def stderr(x):
        m = mean(x)
        return (sum((v - m) ** 2 for v in x) / (len(x) - 1) / len(x)) ** 0.5

    out = []
    for one in per:
        delta = [a - b for a, b in zip(one["loss"], per[0]["loss"])]
        out.append({
            "tokens": len(one["loss"]), "mean_loss": mean(one["loss"]), "loss_stderr": stderr(one["loss"]),
            "perplexity": float(torch.tensor(mean(one["loss"]), dtype=torch.float64).exp()),
            "delta_loss": mean(delta), "delta_stderr": stderr(delta), "kl": mean(one["kl"]),
            "kl_stderr": stderr(one["kl"]), "top1_agreement": mean(one["same"]),
        })
    return out


def score(model, tokenizer, context, answer):
    """lm-evaluation-harness's loglikelihood of one answer."""
    stripped = context.rstrip()
    answer = context[len(stripped):] + answer
    whole = tokenizer.encode(stripped + answer).ids
    head = tokenizer.encode(stripped).ids
    tail = whole[len(head):]
    if not head:
        head, tail = [0], whole  # the begin token
    said = log_probs(model, head + tail)
    return sum(said[len(head) + i - 1][t].item() for i, t in enumerate(tail))


def task(model, tokenizer):
    by = {}
    for doc_id, idx, context, answer, gold in rows():
        q = by.setdefault(doc_id, {"scores": [], "answers": [], "gold": gold})
        q["scores"].append(score(model, tokenizer, context, answer))
        q["answers"].append(answer.removeprefix(" "))

    def accuracy(length):
        hits = []
        for q in by.values():
            values = [s / length(a) for s, a in zip(q["scores"], q["answers"])]
            hits.append(float(values.index(max(values)) == q["gold"]))
        p, n = sum(hits) / len(hits), len(hits)
        return p, (p * (1 - p) / (n - 1)) ** 0.5

    acc, acc_norm, acc_bytes = (accuracy(f) for f in (lambda a: 1, len, lambda a: len(a.encode())))
    return {
        "log_likelihoods": [q["scores"] for q in by.values()],
        "acc,none": acc[0], "acc_stderr,none": acc[1],
        "acc_norm,none": acc_norm[0], "acc_norm_stderr,none": acc_norm[1],
        "acc_bytes,none": acc_bytes[0], "acc_bytes_stderr,none": acc_bytes[1],
    }


def main():
    tokenizer = Tokenizer.from_file(str(HERE.parent / "data" / "tokenizer.json"))
    all_models = models()
    (HERE / "model" / "generation_config.json").unlink(missing_ok=True)
    shutil.copy(HERE.parent / "data" / "tokenizer.json", HERE / "model" / "tokenizer.json")
    (HERE / "model" / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}\n')
    with open(HERE / "requests.jsonl", "w", encoding="utf-8") as file:
        for doc_id, idx, context, answer, gold in rows():
            row = {"doc_id": doc_id, "idx": idx, "label": gold, "doc": {},
                   "request": {"context": context, "continuation": answer}}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    (HERE / "text.txt").write_text(TEXT, encoding="utf-8")
    ids = tokenizer.encode(TEXT).ids
    cuts = [(64, 64, []), (40, 24, []), (32, 7, []), (1000, 1000, []), (64, 64, [0]), (40, 24, [0]), (32, 32, [0, 5])]
    want = {
        "mlp_of": MLP_OF, "tokens": ids,
        "texts": [{"window": w, "stride": s, "begin": b, "want": texts(all_models, ids, w, s, b)} for w, s, b in cuts],
        "task": [task(m, tokenizer) for m in all_models],
    }
    (HERE / "want.json").write_text(json.dumps(want, indent=1) + "\n")


if __name__ == "__main__":
    main()
