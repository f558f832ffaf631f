"""Writes cases.json: what jinja2 makes of templates with Python's methods and jinja2's tests.

Run with jinja2 (3.1.6) installed:  python gen.py
The environment is the one that transformers compiles chat templates in.
"""

import json
import pathlib

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

TEXTS = ["", "a", "a.b.c", "..a..", "  two  words ", "tool_call", "<think>x</think>y", "Straße ÉA", "-7", "é→z"]
METHODS = """
removeprefix('a'); removeprefix('<think>'); removesuffix('c'); removesuffix(''); partition('.'); partition('</think>');
rpartition('.'); rpartition('zz'); rsplit('.'); rsplit('.', 1); rsplit('.', 0); rsplit(); rsplit(none, 1); rsplit('</think>', 1);
split('.'); split('.', 1); split(); split('</think>')[-1]; casefold(); swapcase(); zfill(5); ljust(6, '*'); rjust(6);
center(7, '-'); center(8, '-'); upper(); lower(); title(); capitalize(); strip(); strip('. '); lstrip('.'); rstrip('.c');
startswith('a'); startswith(('a', '<')); endswith('c'); find('.'); rfind('.'); count('.'); replace('.', '-');
replace('.', '-', 1); splitlines(); isdigit(); isalpha(); isspace(); islower(); isupper()
"""

TESTS = """
v is sequence|v is iterable|v is mapping|v is string|v is number|v is none|v is defined|v is boolean|v is integer|v is true
"""

VALUES = {
    "text": "ab", "empty": "", "list": [1, 2], "dict": {"a": 1}, "number": 3, "fraction": 0.5, "yes": True, "nothing": None,
}

DEEPSEEK = (
    "{% for message in messages %}{% if message['role'] == 'user' %}U{{ message['content'] }}{% endif %}"
    "{% if message['role'] == 'assistant' and message['content'] is none %}{% for tool in message['tool_calls'] %}"
    "{{ 'C' + tool['type'] + tool['function']['name'] + '\\n```json\\n' + tool['function']['arguments'] + '\\n```' }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' and message['content'] is not none %}A{{ message['content'] }}{% endif %}{% endfor %}"
)
HERMES = (
    "{% for message in messages %}{{ message.content }}{% for tool_call in message.tool_calls %}{% set call = tool_call.function %}"
    "<tool_call>{\"name\": \"{{ call.name }}\", \"arguments\": {{ call.arguments | tojson }}}</tool_call>{% endfor %}{% endfor %}"
)

WHOLE = [
    # Content as a text or as parts, told apart as published templates do.
    ("{% for m in talk %}{% if m.content is string %}{{ m.content }}{% elif m.content is sequence %}"
     "{% for p in m.content %}[{{ p.type }}:{{ p.text }}]{% endfor %}{% elif m.content is none %}-{% endif %};{% endfor %}",
     {"talk": [{"content": "a"}, {"content": [{"type": "text", "text": "b"}]}, {"content": None}]}),
    # A dict is a sequence to jinja2, so templates ask for a mapping first.
    ("{% for v in all %}{% if v is sequence and v is not mapping and v is not string %}l{% else %}-{% endif %}{% endfor %}",
     {"all": [[1], "a", {"b": 1}, 3]}),
    # An answer's reasoning is cut off where another turn follows.
    ("{% for m in messages %}{% set c = m.content %}{% if '</think>' in c %}{% set c = c.rpartition('</think>')[2].lstrip('\\n') %}"
     "{% endif %}{{ c }}{{ loop.index0 % 2 }}{% endfor %}",
     {"messages": [{"content": "q"}, {"content": "<think>\nx\n</think>\n\ny"}]}),
    ("{{ messages[-1].content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}",
     {"messages": [{"content": "<think>\nx\n</think>\n\ny"}]}),
    # The last message of the user, by its place in the list.
    ("{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = messages.index(m) %}{% endif %}"
     "{% endfor %}{{ ns.last }}",
     {"messages": [{"role": "user", "n": 1}, {"role": "assistant"}, {"role": "user", "n": 2}]}),
    # Calls of tools beside a content that is absent.
    ("{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}{% for c in m.tool_calls %}"
     "{{ c.function.name }}({{ c.function.arguments.items() | list }}){% endfor %}{% elif m.content %}{{ m.content }}{% endif %}{% endfor %}",
     {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}, {"content": "x"}]}),
    # Python's operator for texts.
    ("{{ '%s' % name }};{{ '%s has %d%%' % (name, n) }};{{ \"%02d:%02d\" % (n, m.list[0]) ~ '%' }};{{ 7 % 4 }};{{ '%s' % m['list'] | length }}"
     "{% set t = '<%s>' % name.upper() %}{{ t }}{# '%s' % name #}{{ '{%s}' % (name,) }}",
     {"name": "x", "n": 5, "m": {"list": [9]}}),
    # DeepSeek's: a content that is none, and arguments as the text that they came as.
    (DEEPSEEK, {"messages": [{"role": "user", "content": "t?"}, {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]}, {"role": "assistant", "content": "done"}]}),
    # Hermes's: arguments as an object. Transformers' documents ask for objects here; servers make them of OpenAI's texts.
    (HERMES, {"messages": [{"role": "assistant", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": {"a": "\u00e9", "b": [1, {"c": None}]}}}]}]}),
    ("{{ d.copy().get('a') }}{{ d.get('b', 'none') }}{% for k, v in d.items() %}{{ k }}={{ v }}{% endfor %}", {"d": {"a": 1}}),
]


def of(source, **context):
    return env.from_string(source).render(**context)


# What transformers' own `tojson` writes.
env.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
methods = [m.strip() for m in METHODS.split(";")]
tests = TESTS.strip().split("|")
cases = {
    "texts": TEXTS,
    "methods": {m: [of("{{ t.%s | tojson }}" % m, t=t) for t in TEXTS] for m in methods},
    "values": list(VALUES.values()),
    "tests": {t: [of("{{ %s }}" % t, v=v) for v in VALUES.values()] for t in tests},
    "whole": [dict(template=t, context=c, want=of(t, **c)) for t, c in WHOLE],
}
here = pathlib.Path(__file__).parent
(here / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")
