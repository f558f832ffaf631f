"""Writes a folder for each case of tokenizer files as people have them, and expected.json: what transformers makes of a text.

Run with transformers (5.23) and tokenizers (0.23) installed:  python gen.py
"""

import json
import pathlib
import string

from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
END = "<|end|>"
TEXTS = ["the fox jumps over", "a", "a<|turn|>b<|call|> c", "x<|end|>"]


def added(i, text, special=True):
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    return dict(id=i, content=text, special=special, **flags)


def tokenizer(more=(), truncation=None, padding=None, begin=False):
    vocab = {END: 0, "Ġ": 1} | {c: i + 2 for i, c in enumerate(string.ascii_lowercase + "<|>")}
    tokens = [added(0, END)] + [added(len(vocab) + i, text) for i, text in enumerate(more)]
    single = [{"Sequence": {"id": "A", "type_id": 0}}]
    first = [{"SpecialToken": {"id": END, "type_id": 0}}] if begin else []
    post = dict(type="TemplateProcessing", single=first + single, pair=first + single + [{"Sequence": {"id": "B", "type_id": 1}}],
                special_tokens={END: dict(id=END, ids=[0], tokens=[END])})
    return dict(version="1.0", truncation=truncation, padding=padding, added_tokens=tokens, normalizer=None,
                pre_tokenizer=dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True),
                post_processor=post, decoder=dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
                model=dict(type="BPE", vocab=vocab, merges=[["t", "h"]][:0]))


FIXED = dict(strategy={"Fixed": 24}, direction="Right", pad_to_multiple_of=None, pad_id=0, pad_type_id=0, pad_token=END)
CUT = dict(direction="Right", max_length=4, strategy="LongestFirst", stride=0)
decoder = lambda *texts: {str(31 + i): {k: v for k, v in added(0, t).items() if k != "id"} for i, t in enumerate(texts)}
CASES = {
    "trained": (tokenizer(truncation=CUT, padding=FIXED), {}, None),
    "padded_to_longest": (tokenizer(padding=FIXED | dict(strategy="BatchLongest", pad_to_multiple_of=8)), {}, None),
    "added_tokens_decoder": (tokenizer(), dict(added_tokens_decoder=decoder("<|turn|>", "<|call|>")), None),
    "added_tokens_decoder_in_part": (tokenizer(more=["<|turn|>"]), dict(added_tokens_decoder=decoder("<|turn|>", "<|call|>")), None),
    "begin_though_told_not": (tokenizer(begin=True), dict(add_bos_token=False), None),
    "no_begin_though_told": (tokenizer(), dict(add_bos_token=True), None),
    "added_tokens_json": (tokenizer(), {}, {"<|turn|>": 31, "<|call|>": 32}),
}
expected = {}
for name, (tok, more, json_added) in CASES.items():
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    config = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=END, eos_token=END, **more)
    dump = lambda file, x: (folder / file).write_text(json.dumps(x, ensure_ascii=False) + "\n")
    dump("tokenizer.json", tok)
    dump("tokenizer_config.json", config)
    if json_added:
        dump("added_tokens.json", json_added)
    model = AutoTokenizer.from_pretrained(folder)
    expected[name] = [[text, model(text)["input_ids"]] for text in TEXTS]
(HERE / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")
for name, rows in expected.items():
    print(name, [ids for _, ids in rows])
