"""Small GGUF files and what they mean, for the importer.

Each case folder gets
  model.gguf            written by the `gguf` package, q and k rows permuted as llama.cpp's converter does
  expected.safetensors  the same weights in Hugging Face's names and row order, float32 (dequantised by `gguf`)
  expected.json         keys config.json must have, and texts with their token ids

Token ids come from plain Python tokenizers below, not from any tokenizer.json. Weights are random, texts written here.

Usage: python gen.py     (needs gguf, numpy, regex, safetensors, tokenizers)
"""

import json
import pathlib
import unicodedata

import gguf
import numpy as np
import regex
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
CORPUS = """The reference layer lends its matrices and the target layer borrows them. Sharing saves memory.
A small device has little memory, and a small model that fits is worth more than a large model that does not.
def share(layer, other): return layers[other] if other in layers else None
for i in range(12): print(i, i * i); the sum of 1 to 100 is 5050. We'll see; it's done; they're here, I'd say.
naive cafe, na\u00efve caf\u00e9, \u00fcber, \u4f60\u597d, \u041f\u0440\u0438\u0432\u0435\u0442""" * 3
# Numbers often enough that merges of two, three and four digits are learnt: only then does it show how digits are cut.
CORPUS += "\n1234 1234 2345 345 45 5 12 123 " * 40
TEXTS = [
    "", " ", "a", " a", "  a  b   c    ", "The reference layer lends its matrices.", "sharing is sharing, Sharing SHARING", " sharing",
    "We'll see; it's done; THEY'RE here, I'D say.", "1 12 123 1234 12345 3.14 2024-02-29", "x=1;y=22;z=333", "line one\nline two\r\n\r\n\tindent\n   \n",
    "na\u00efve caf\u00e9 and nai\u0308ve cafe\u0301", "\u4f60\u597d\uff0c\u4e16\u754c", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\U0001f600\U0001f44d\U0001f3fd ok",
    "f(x) := {a[0], \"b\"} // c", "!!! ??? ...", "trailing   ", "   leading", "\u00a0nbsp\u2003em", "tab\tand\x0bvt", "a_b-c.d@e", "\u00bd \u2167 \u0663", "<s>raw</s>",
]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Every numeral apart, then GPT-2's pattern on what lies between: a space before a numeral stays by itself.
SMOLLM = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


def unicode_of_bytes():
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table = {b: chr(b) for b in keep}
    for n, b in enumerate(b for b in range(256) if b not in table):
        table[b] = chr(256 + n)
    return table


def merge_all(parts, rank):
    while len(parts) > 1:
        ranks = [rank(a, b) for a, b in zip(parts, parts[1:])]
        best = min(ranks)
        if best == float("inf"):
            break
        at = ranks.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


class ByteLevel:
    """Tokens and merges learnt from CORPUS; encoding in plain Python."""

    def __init__(self, pattern, specials, whole_words=False, nfc=False):
        table = unicode_of_bytes()
        trainer = trainers.BpeTrainer(vocab_size=256 + 56, show_progress=False, initial_alphabet=sorted(table.values()))
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        learner.train_from_iterator([CORPUS], trainer)
        model = json.loads(learner.to_str())["model"]
        vocab = sorted(model["vocab"], key=model["vocab"].get)
        self.merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
        # Whole words no sequence of merges leads to: only a tokenizer that looks words up first finds them.
        self.tokens = vocab + (["\u0120sharing", "Sharing"] if whole_words else []) + specials
        self.kinds = [1] * (len(self.tokens) - len(specials)) + [3] * len(specials)
        self.ids = {t: i for i, t in enumerate(self.tokens)}
        self.rank = {tuple(m.split(" ")): r for r, m in enumerate(self.merges)}
        self.table, self.pattern, self.whole_words, self.nfc = table, regex.compile(pattern), whole_words, nfc

    def encode(self, text):
        out = []
        for word in self.pattern.findall(unicodedata.normalize("NFC", text) if self.nfc else text):
            letters = [self.table[b] for b in word.encode()]
            if self.whole_words and "".join(letters) in self.ids:
                out.append(self.ids["".join(letters)])
                continue
            parts = merge_all(letters, lambda a, b: self.rank.get((a, b), float("inf")))
            out += [self.ids[p] for p in parts]
        return out

    def add_to(self, w, pre):
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre(pre)
        w.add_token_list(self.tokens)
        w.add_token_types(self.kinds)
        w.add_token_merges(self.merges)


class SentencePiece:
    """A score-ranked vocabulary with byte fallback; encoding in plain Python."""

    def __init__(self):
        text = CORPUS.replace("\n", " ").replace(" ", "\u2581")
        trainer = trainers.BpeTrainer(vocab_size=160, show_progress=False)
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.Split(regex_word(), "isolated")
        learner.train_from_iterator([text], trainer)
        model = json.loads(learner.to_str())["model"]
        chars = sorted(t for t in model["vocab"] if len(t) == 1)
        merged = ["".join(m) if isinstance(m, list) else m.replace(" ", "") for m in model["merges"]]
        merged = list(dict.fromkeys(merged))
        self.tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + merged + chars
        self.kinds = [2, 3, 3] + [6] * 256 + [1] * (len(merged) + len(chars))
        self.scores = [0.0] * 259 + [-float(i) for i in range(len(merged) + len(chars))]
        self.ids = {t: i for i, t in enumerate(self.tokens)}

    def encode(self, text):
        # Control tokens written out in a text are found first, as everywhere in this project; the space before a
        # text goes before each stretch between them, as in Hugging Face's "legacy" behaviour.
        out = []
        for piece in regex.split(r"(<unk>|<s>|</s>)", text):
            if piece in ("<unk>", "<s>", "</s>"):
                out.append(self.ids[piece])
            elif piece:
                out += self.stretch(piece)
        return out

    def stretch(self, text):
        score = lambda a, b: -self.scores[self.ids[a + b]] if self.kinds[self.ids.get(a + b, 0)] == 1 else float("inf")
        out = []
        for part in merge_all(list("\u2581" + text.replace(" ", "\u2581")), score):
            if part in self.ids:
                out.append(self.ids[part])
            else:
                out += [self.ids[f"<0x{b:02X}>"] for b in part.encode()]
        return out

    def add_to(self, w, _pre):
        w.add_tokenizer_model("llama")
        w.add_tokenizer_pre("default")
        w.add_token_list(self.tokens)
        w.add_token_scores(self.scores)
        w.add_token_types(self.kinds)


def regex_word():
    from tokenizers import Regex

    return Regex("\u2581?[^\u2581]+")


def permute(w, heads):
    """As llama.cpp's convert_hf_to_gguf.py: halves to interleaved pairs."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def llama3_factors(head_dim, theta, factor, low=1.0, high=4.0, original=8192):
    """As llama.cpp's converter computes rope_freqs."""
    out = []
    for freq in 1.0 / (theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)):
        wavelen = 2 * np.pi / freq
        if wavelen < original / high:
            out.append(1.0)
        elif wavelen > original / low:
            out.append(factor)
        else:
            smooth = (original / wavelen - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, dtype=np.float32)


def build(name, arch, tokenizer, pre, types, *, hidden, ffn, layers, heads, kv, tied, biases, theta, bos, eos, rope=None, **extra):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(len(name))
    head_dim = hidden // heads
    vocab = len(tokenizer.tokens) + extra.get("pad_rows", 0)
    w = gguf.GGUFWriter(folder / "model.gguf", arch)
    w.add_name(f"golden {name}")
    w.add_block_count(layers)
    w.add_context_length(512)
    w.add_embedding_length(hidden)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_freq_base(theta)
    if "linear" in extra:
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(extra["linear"])
    tokenizer.add_to(w, pre)
    w.add_bos_token_id(tokenizer.ids[bos])
    w.add_eos_token_id(tokenizer.ids[eos])
    if "eot" in extra:
        w.add_eot_token_id(tokenizer.ids[extra["eot"]])
    if "add_bos" in extra:
        w.add_add_bos_token(extra["add_bos"])
    w.add_chat_template("{{ messages[0]['content'] }}")
    expected = {}

    def tensor(ggml, hf, shape, heads=None):
        kind = types.get(ggml.split(".")[-2], T.F32) if len(shape) == 2 else T.F32
        value = rng.standard_normal(shape, dtype=np.float32)
        stored = value if heads is None else permute(value, heads)
        if kind in (T.F32, T.F16):
            data = np.ascontiguousarray(stored.astype(np.float32 if kind == T.F32 else np.float16))
            w.add_tensor(ggml, data)
            back = data.astype(np.float32)
        else:
            data = gguf.quants.quantize(stored, kind)
            w.add_tensor(ggml, data, raw_dtype=kind)
            back = gguf.quants.dequantize(data, kind).reshape(shape)
        if heads is not None:
            # Undo the permutation by writing it the other way round, not by calling its inverse.
            n = shape[0] // heads // 2
            fixed = np.empty_like(back)
            for h in range(heads):
                for s in range(2):
                    for j in range(n):
                        fixed[h * 2 * n + s * n + j] = back[h * 2 * n + 2 * j + s]
            back = fixed
        expected[hf] = np.ascontiguousarray(back)

    interleaved = arch == "llama"
    tensor("token_embd.weight", "model.embed_tokens.weight", (vocab, hidden))
    tensor("output_norm.weight", "model.norm.weight", (hidden,))
    if not tied:
        tensor("output.weight", "lm_head.weight", (vocab, hidden))
    if rope is not None:
        w.add_tensor("rope_freqs.weight", rope)
    for i in range(layers):
        b, m = f"blk.{i}", f"model.layers.{i}"
        tensor(f"{b}.attn_norm.weight", f"{m}.input_layernorm.weight", (hidden,))
        tensor(f"{b}.ffn_norm.weight", f"{m}.post_attention_layernorm.weight", (hidden,))
        qkv = (("q", heads), ("k", kv), ("v", kv))
        for p, n in qkv:
            permuted = n if interleaved and p != "v" else None
            tensor(f"{b}.attn_{p}.weight", f"{m}.self_attn.{p}_proj.weight", (n * head_dim, hidden), permuted)
            if biases:
                tensor(f"{b}.attn_{p}.bias", f"{m}.self_attn.{p}_proj.bias", (n * head_dim,), permuted)
        tensor(f"{b}.attn_output.weight", f"{m}.self_attn.o_proj.weight", (hidden, hidden))
        if biases == "all":
            tensor(f"{b}.attn_output.bias", f"{m}.self_attn.o_proj.bias", (hidden,))
        for p, shape in (("gate", (ffn, hidden)), ("up", (ffn, hidden)), ("down", (hidden, ffn))):
            tensor(f"{b}.ffn_{p}.weight", f"{m}.mlp.{p}_proj.weight", shape)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    save_file(expected, folder / "expected.safetensors")
    config = {
        "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "head_dim": head_dim, "vocab_size": vocab, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "rope_theta": theta, "tie_word_embeddings": tied, "bos_token_id": tokenizer.ids[bos],
        **extra.get("config", {}),
    }
    rows = [[t, tokenizer.encode(t)] for t in TEXTS]
    with_bos = extra["begins_with_bos"]
    body = {"config": config, "begins_with_bos": with_bos, "texts": rows}
    (folder / "expected.json").write_text(json.dumps(body, ensure_ascii=True, indent=1, separators=(",", ":")) + "\n")
    print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes")


def main():
    specials = ["<|begin|>", "<|end|>", "<|turn|>"]
    small = {"token_embd": T.Q8_0}
    build(
        "llama_mixed", "llama", tok := ByteLevel(LLAMA3, specials, whole_words=True), "llama-bpe",
        {"token_embd": T.Q8_0, "output": T.F16, "attn_q": T.Q4_0, "attn_k": T.Q4_1, "attn_v": T.BF16, "attn_output": T.Q8_0,
         "ffn_gate": T.Q4_0, "ffn_up": T.Q4_1, "ffn_down": T.Q8_0},
        hidden=32, ffn=64, layers=2, heads=4, kv=2, tied=False, biases=None, theta=500000.0, bos="<|begin|>", eos="<|end|>",
        eot="<|turn|>", rope=llama3_factors(8, 500000.0, 32.0), begins_with_bos=True, pad_rows=5,
        config={"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
                "eos_token_id": [tok.ids["<|end|>"], tok.ids["<|turn|>"]],
                "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": 8192}},
    )
    build(
        "qwen2", "qwen2", tok := ByteLevel(QWEN2, specials, nfc=True), "qwen2", small,
        hidden=32, ffn=40, layers=1, heads=2, kv=1, tied=True, biases="qkv", theta=1000000.0, bos="<|begin|>", eos="<|end|>",
        begins_with_bos=False,
        config={"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "eos_token_id": tok.ids["<|end|>"], "rope_scaling": None},
    )
    build(
        "sentencepiece", "llama", SentencePiece(), None, small,
        hidden=32, ffn=24, layers=1, heads=2, kv=2, tied=True, biases="all", theta=10000.0, bos="<s>", eos="</s>",
        linear=4.0, begins_with_bos=True,
        config={"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True, "mlp_bias": False,
                "eos_token_id": 2, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    )
    build(
        "gpt2_pre", "llama", tok := ByteLevel(GPT2, specials), "gpt-2", small,
        hidden=32, ffn=8, layers=1, heads=2, kv=2, tied=True, biases=None, theta=10000.0, bos="<|end|>", eos="<|end|>",
        add_bos=True, begins_with_bos=True, config={"eos_token_id": tok.ids["<|end|>"]},
    )
    build(
        "smollm_pre", "llama", tok := ByteLevel(SMOLLM, specials), "smollm", small,
        hidden=32, ffn=8, layers=1, heads=2, kv=2, tied=True, biases=None, theta=10000.0, bos="<|begin|>", eos="<|end|>",
        add_bos=False, begins_with_bos=False, config={"eos_token_id": tok.ids["<|end|>"]},
    )


if __name__ == "__main__":
    main()
