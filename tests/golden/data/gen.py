"""Writes cases.json: what transformers, tokenizers and plain Python make of the same input.

Run with transformers and tokenizers installed:  python gen.py
The templates are written for this test, after the habits of real ones.
"""

import datetime
import json
import pathlib

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers, decoders
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent
NOW = 1_709_210_096  # 2024-02-29 12:34:56 UTC


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc)


chat_template_utils.datetime = FixedClock

TEMPLATES = {
    # System line put in front when there is none; newlines inside string literals.
    "plain": "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # Blocks on lines of their own (trimmed), dates, bos, slices, strip, a namespace.
    "dated": """{{- bos_token }}
{%- set ns = namespace(system="none") %}
{%- if messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content.strip() %}
    {%- set messages = messages[1:] %}
{%- endif %}
<h>system<e>
Today: {{ strftime_now('%d %b %Y') }} ({{ strftime_now("%A %B %-d, %H:%M") }})
{{ ns.system | trim | upper }}
{% for m in messages %}
    {% if m.role not in ['user', 'assistant'] %}
        {% continue %}
    {% endif %}
<h>{{ m.role | capitalize }} {{ loop.index0 }}/{{ loop.length }}<e>
{{ m.content | trim }}{% if not loop.last %}{{ '\\n' }}{% endif %}

{% endfor %}
{% if add_generation_prompt %}
<h>Assistant<e>
{% endif %}
""",
    # Roles must alternate; marks of what the assistant says; content as a list of parts.
    "strict": """{{ bos_token }}{% for m in messages %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if m['content'] is string %}{% set text = m['content'] %}{% else %}
{% set text = m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('|') %}{% endif %}
{% if m['role'] == 'user' %}{{ '[INST] ' + text + ' [/INST]' }}{% else %}
{%- generation -%}{{ ' ' + text + ' ' + eos_token }}{%- endgeneration -%}
{% endif %}{% endfor %}""",
    # Tools as JSON, macros, dict methods, tests, Python's way of printing.
    "tools": """{%- macro show(t) -%}
{{ t.name }}({% for k, v in t.parameters.items() %}{{ k }}: {{ v.get('type', 'any') }}{{ ', ' if not loop.last }}{% endfor %})
{%- endmacro -%}
{% if tools is defined and tools %}{{ tools | tojson }}
{{ tools[0] | tojson(indent=2) }}
{% for t in tools %}{{ show(t) }}; {% endfor %}{% endif %}
{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined else '-' }}>{{ m.role }}:
{%- if m.tool_calls is defined %}{% for c in m.tool_calls %} CALL {{ c.function | tojson }}{% endfor %}{% endif %}
{%- if m.content is none %} {{ m.content }}{% elif '</think>' in m.content %} {{ m.content.split('</think>')[-1].lstrip('\\n') }}
{%- else %} {{ m.content }}{% endif %}
{%- if m.content and m.content.startswith('<') %} tagged{% endif %}

{% endfor %}{{ add_generation_prompt }} {{ messages | length }} {{ missing }} {{ tools is none }} {{ documents is defined }} {{ 7 // 2 }} {{ 7 / 2 }} {{ "a" ~ 1 }}""",
}

TALK = [
    {"role": "user", "content": "  Hello, wörld \u2014 \"quoted\" & <b>  "},
    {"role": "assistant", "content": "Hi!\nHow are you?"},
    {"role": "user", "content": "Fine \U0001f642"},
]
CASES = [
    ("plain", TALK, True, {}),
    ("plain", TALK[:2], False, {}),
    ("plain", [{"role": "system", "content": "You are a cat."}] + TALK, False, {}),
    ("dated", [{"role": "system", "content": "  be kind "}, {"role": "tool", "content": "x"}] + TALK, True, {}),
    ("dated", TALK, False, {}),
    ("strict", TALK[:2], False, {}),
    ("strict", [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}, TALK[1]], False, {}),
    ("strict", TALK[1:], False, {}),
    (
        "tools",
        [
            TALK[0],
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"z": 1, "a": [1.5, True, None, "é<"]}}}]},
            {"role": "tool", "content": "<r>"},
            {"role": "assistant", "content": "<think>hm</think>\n\nDone."},
        ],
        True,
        {"tools": [{"name": "f", "parameters": {"z": {"type": "int"}, "a": {}}, "description": "it's \"f\"\n\u0001"}, {"name": "g", "parameters": {}}]},
    ),
]

CORPUS = [
    "The cat sat on the mat. The dog did not.",
    "Question: What is two and two?\nAnswer: four",
    "one two three four five six seven eight nine ten",
    "numbers 1 2 3, 10 20 30; (brackets) and spaces  two",
]


def tokenizer() -> Tokenizer:
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=specials, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    t.train_from_iterator(CORPUS, trainer)
    return t


def chats(fast):
    out = []
    for name, messages, generate, more in CASES:
        case = {"template": name, "messages": messages, "generate": generate, "more": more}
        try:
            case["want"] = fast.apply_chat_template(messages, chat_template=TEMPLATES[name], tokenize=False,
                                                    add_generation_prompt=generate, **more)
        except Exception as e:  # the template's own complaint
            case["error"] = str(e)
        out.append(case)
    return out


def encode_pair(t, context, continuation):
    """As lm-evaluation-harness splits the tokens of context and continuation."""
    n = len(context) - len(context.rstrip())
    if n > 0:
        context, continuation = context[:-n], context[-n:] + continuation
    whole, head = t.encode(context + continuation).ids, t.encode(context).ids
    return whole[: len(head)], whole[len(head):]


def split_mix(state):
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        yield z ^ (z >> 31)


def shuffled(n, seed):
    rng, items = split_mix(seed), list(range(n))
    for i in range(n - 1, 0, -1):
        while True:
            x = next(rng)
            if x < (2**64 - 1) - (2**64 - 1) % (i + 1):
                break
        j = x % (i + 1)
        items[i], items[j] = items[j], items[i]
    return items


def windows(total, length, stride, first):
    """The loop of Hugging Face's guide to perplexity; tokens scored are those with a label after the shift. Before every window stand
    `first` begin tokens, which have no label."""
    out, previous = [], 0
    for begin in range(0, total, min(stride, length - first)):
        end = min(begin + length - first, total)
        labels = [False] * (first + end - begin)
        for i in range(end - previous):
            labels[len(labels) - 1 - i] = True
        scored = [begin + i - first for i in range(1, len(labels)) if labels[i]]
        out.append([begin, end, scored])
        previous = end
        if end == total:
            break
    return [w for w in out if w[2]]


def packed(t, docs, n, begin, eos):
    ids, mask, plain = [], [], []

    def put(tokens, counted):
        ids.extend(tokens)
        mask.extend([counted] * len(tokens))

    def put_plain():
        if plain:
            put(t.encode("\n\n".join(plain)).ids, True)
            plain.clear()

    for prompt, completion in docs:
        if prompt:
            put_plain()
            head, tail = encode_pair(t, prompt, completion)
            put(begin + head, False)
            put(tail + [eos], True)
        else:
            plain.append(completion)
    put_plain()
    tokens, counted, at = [], [], 0
    while True:
        before = [] if ids[at:at + len(begin)] == begin else begin
        end = at + n - len(before)
        if end > len(ids):
            break
        tokens += before + ids[at:end]
        counted += [False] * len(before) + mask[at:end]
        at = end
    return {"docs": docs, "seq_len": n, "begin": begin, "eos": eos, "tokens": tokens, "mask": counted}


def main():
    t = tokenizer()
    t.save(str(HERE / "tokenizer.json"), pretty=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>")
    pairs = [("The cat", " sat on the mat."), ("The cat ", "sat"), ("Question: What\nAnswer:", " four"),
             ("ca", "t sat"), ("", "The dog"), ("one two  ", " three"), ("The c", "at sat on")]
    docs = [["", CORPUS[0]], ["", CORPUS[1]], ["Question: What is two and two?\nAnswer:", " four"], ["", CORPUS[2]], ["The cat ", "did not."]]
    cases = {
        "transformers": transformers.__version__,
        "now": NOW,
        "templates": TEMPLATES,
        "tokens": {"bos_token": "<s>", "eos_token": "</s>"},
        "chat": chats(fast),
        "pairs": [{"context": c, "continuation": k, "want": list(encode_pair(t, c, k)) if c else [[], t.encode(k).ids]} for c, k in pairs],
        "shuffle": [{"n": n, "seed": s, "want": shuffled(n, s)} for n, s in [(0, 1), (1, 1), (10, 0), (10, 1), (37, 2**64 - 1)]],
        "windows": [{"total": a, "len": b, "stride": c, "begin": d, "want": windows(a, b, c, d)}
                    for a, b, c, d in [(0, 4, 2, 0), (1, 4, 4, 0), (2, 4, 4, 0), (10, 4, 4, 0), (10, 4, 2, 0), (10, 4, 1, 0), (9, 4, 4, 0), (8, 4, 4, 0),
                                       (13, 5, 3, 0), (5, 100, 50, 0), (0, 4, 4, 1), (1, 4, 4, 1), (9, 4, 4, 1), (10, 4, 4, 1), (10, 4, 2, 1), (11, 6, 5, 2)]],
        "packed": [packed(t, docs, 16, [], 1), packed(t, docs, 16, [0], 1)],
    }
    (HERE / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
