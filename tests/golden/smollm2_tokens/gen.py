"""Expected token ids of SmolLM2's tokenizer, from its vocabulary and merges alone.

Two independent constructions have to agree before anything is written:
  1. a byte-level BPE in plain Python over the `regex` package (GPT-2's published pattern, after setting every
     numeral apart, which is what the pre-tokenizer called `smollm` means);
  2. Hugging Face `tokenizers`, assembled from its Python parts (no tokenizer.json involved).

Usage: python gen.py MODEL.gguf   (needs gguf, regex, tokenizers)
Writes expected.json: [[text, [ids]], ...]. The texts were written for this test.
"""

import json
import pathlib
import random
import sys

import gguf
import regex
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PLAIN = [
    "", " ", "  ", "   a", "a   ", "\n", "\n\n", "\n\n\n\nend", "\t", "\t\tindented", " \n ", "\r\n", "a\r\nb", "x\u00a0y",
    "The quick brown fox jumps over the lazy dog.", "the quick brown fox", " the quick brown fox",
    "Hello, world!", "HELLO WORLD", "hElLo WoRlD", "I'm sure you've seen it; they'll say we're late, he'd agree, it's fine, don't",
    "I'M SURE YOU'VE SEEN IT; THEY'LL SAY WE'RE LATE", "rock 'n' roll", "'tis the season", "the students' books",
    "Mr. O'Brien's twenty-one-year-old dog", "e.g. this, i.e. that, etc.", "well-known, so-called -- and---so on...",
    "“Curly quotes,” she said, ‘inside’ — then left…", "(parentheses) [brackets] {braces} <angles>",
    "What?! No!! Really??? Yes.", "a,b;c:d.e!f?g", "#hashtag @mention $money %percent ^caret &and *star",
    "A sentence.  Two spaces.   Three spaces.    Four.", "trailing spaces     ", "     leading spaces",
    "supercalifragilisticexpialidocious", "antidisestablishmentarianism", "zzzzzzzzzzzzzzzzzzzzzzzzzzzz",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "abababababababababababababab",
    "Shared layers save memory, and memory is what a small device lacks.",
    "A reference layer lends its matrices; a target layer repairs the loan with a low rank.",
    "When the rain came down on the tin roof, nobody in the house could hear the radio any more.",
    "She counted the steps: one, two, three, and then the lamp went out.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "To whom it may concern: the undersigned hereby declares the following.",
]
NUMBERS = [
    "0", "1", "42", "007", "123", "1234", "12345678901234567890", "3.14159", "-273.15", "1,000,000", "6.022e23", "0x1F", "0b1010",
    "10%", "$19.99", "€1.250,00", "2024-02-29", "23:59:59", "+44 20 7946 0958", "v1.2.3-rc4", "a1b2c3", "3rd of the 21st", "1st2nd",
    "IPv4 192.168.0.1", "½ cup, ¾ full, x² + y³ = z⁴", "Ⅷ and ⅳ", "٣٤٥ Arabic-Indic", "१२३ Devanagari", "①②③", "１２３ full width",
    "2 + 2 = 4", "7*8=56", "10/3≈3.333", "1 2  3   4", "n=100, p<0.05", "5km 10kg 20°C", "①st", "H₂O and CO₂", "1\n2\n3",
]
CODE = [
    "fn main() {\n    println!(\"{}\", 1 + 2);\n}\n", "for i in range(10):\n    print(i ** 2)\n", "let x: Vec<u32> = vec![1, 2, 3];",
    "if (a && b || !c) { return a->b[0]; }", "#include <stdio.h>\nint main(void) { return 0; }", "SELECT * FROM users WHERE id = 7 AND name LIKE '%a%';",
    "<div class=\"box\" id='b1'>text</div>", "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"b\"}}", "def f(self, *args, **kwargs) -> None: ...",
    "git commit -m \"fix: off-by-one\" && git push", "cat file.txt | grep -v '^#' | sort -u > out.txt", "/usr/local/bin/tool --flag=value -x",
    "C:\\Users\\name\\file.txt", "https://example.org/path?query=1&other=two#part", "user.name+tag@example.com", "camelCaseName snake_case_name SCREAMING_CASE kebab-case",
    "\tif x:\n\t\treturn\n", "        eight spaces\n    four spaces\n  two", "x = y  # comment\n", "/* block */ // line", "a[i][j] += b[i][k]*c[k][j];",
    "lambda x: x if x else None", "impl<T: Clone + 'static> Trait for Type<T> where T: Send {}", "&mut self.field?;", "assert_eq!(a, b, \"{a} != {b}\");",
    "\\begin{equation} E = mc^2 \\end{equation}", "$\\sum_{i=1}^{n} x_i$", "```python\nprint('hi')\n```", "- [ ] todo\n- [x] done\n", "| a | b |\n|---|---|\n| 1 | 2 |",
    "0xDEADBEEF & 0xFF00 >> 8", "std::vector<std::pair<int,int>>", "@decorator\nclass A(B):\n    pass", "\x00\x01\x02 control \x7f", "\x1b[31mred\x1b[0m", "=====", "----------", "__init__", "...", "!!!???",
]
WORLD = [
    "café naïve façade résumé", "Crème brûlée à l'école, où ça?", "Übergröße, Straße, Äpfel, Öl", "El niño comió piñas en España", "São Paulo, coração, ação",
    "Łódź, Kraków, źdźbło", "Čeština: příliš žluťoučký kůň", "Magyar: árvíztűrő tükörfúrógép", "Türkçe: İstanbul, ığdır", "Ελληνικά: καλημέρα κόσμε", "Привет, мир! Как дела?",
    "Українська: їжак, ґанок", "עברית: שלום עולם", "العربية: مرحبا بالعالم", "हिन्दी: नमस्ते दुनिया", "বাংলা: ওহে বিশ্ব", "தமிழ்: வணக்கம் உலகம்", "ไทย: สวัสดีชาวโลก",
    "中文：你好，世界！", "繁體中文：龍與鳳", "日本語：こんにちは世界。カタカナも", "한국어: 안녕하세요 세계", "Tiếng Việt: xin chào thế giới", "ქართული: გამარჯობა", "Հայերեն: բարև", "አማርኛ: ሰላም",
    "e\u0301 combining versus é composed", "n\u0303 ñ", "A\u030a Å Å", "ﬁ ligature ﬂ", "Ǆ ǅ ǆ", "ß ẞ", "zero\u200bwidth\u200djoiner", "soft\u00adhyphen", "\ufeffbyte order mark", "right\u202eto left",
    "em\u2003space en\u2002space thin\u2009space", "ideographic\u3000space", "line\u2028separator paragraph\u2029separator", "next\u0085line", "vertical\x0btab form\x0cfeed",
]
EMOJI = [
    "😀", "😀😃😄😁", "I ❤️ you", "👍🏽 thumbs", "👨‍👩‍👧‍👦 family", "🏳️‍🌈 flag", "🇩🇪🇫🇷🇯🇵", "1️⃣2️⃣3️⃣", "☕ coffee ☀ sun", "✓ ✗ ★ ☆ → ← ↔ ⇒", "∀x∈ℝ: ∃y ≤ x²", "𝒜𝓑𝔠 𝟙𝟚𝟛", "∫₀^∞ e^{-x} dx = 1", "©®™ §¶†‡", "🧑🏿‍🚀🚀", "🤖: beep 🤖", "\U0001fae8 recent", "\U000e0041 tag", "¿Qué? ¡Sí!", "№ 5 ‰ ‱",
]
SPECIAL = [
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>system\nYou are helpful.<|im_end|>\n", "<|endoftext|>", "a<|endoftext|>b", "<|im_end|><|im_end|>", "<|im_end", "|im_end|>", "< |im_end|>",
    "<|im_start|> spaced <|im_end|> out", "text<|endoftext|> text", "<repo_name>project<file_sep>main.rs", "x <|im_start|>\n\n<|im_end|>", "<|unknown|>",
]


def lines():
    out = PLAIN + NUMBERS + CODE + WORLD + EMOJI + SPECIAL
    # Mixtures, so that boundaries between kinds of character are met in many orders.
    rng = random.Random(20240229)
    pieces = [p for group in (PLAIN, NUMBERS, CODE, WORLD, EMOJI) for p in group if 0 < len(p) < 24]
    glue = ["", " ", "  ", "\n", "\n\n", "\t", " \n", "'s ", "'ll", ".", ", ", "-", "_", "1", "é", "😀", "\u00a0"]
    for _ in range(180):
        text = "".join(rng.choice(pieces) + rng.choice(glue) for _ in range(rng.randint(2, 7)))
        out.append(text)
    return out


def unicode_of_bytes():
    """GPT-2's printable stand-ins for the 256 bytes."""
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table = {b: chr(b) for b in keep}
    for n, b in enumerate(b for b in range(256) if b not in table):
        table[b] = chr(256 + n)
    return table


class PlainBpe:
    WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def __init__(self, tokens, merges, special):
        self.ids = {t: i for i, t in enumerate(tokens)}
        self.rank = {tuple(m.split(" ")): r for r, m in reversed(list(enumerate(merges)))}
        self.bytes = unicode_of_bytes()
        self.special = regex.compile("(" + "|".join(regex.escape(s) for s in special) + ")")

    def word(self, text):
        parts = [self.bytes[b] for b in text.encode()]
        while len(parts) > 1:
            ranks = [self.rank.get(pair, 1 << 60) for pair in zip(parts, parts[1:])]
            best = min(ranks)
            if best == 1 << 60:
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        # A byte that is no token is dropped, as `tokenizers` does without an unknown token.
        return [self.ids[p] for p in parts if p in self.ids]

    def encode(self, text):
        out = []
        for n, part in enumerate(self.special.split(text)):
            if n % 2:
                out.append(self.ids[part])
                continue
            for piece in regex.split(r"(\p{N})", part):
                for word in self.WORD.findall(piece):
                    out.extend(self.word(word))
        return out


def main():
    reader = gguf.GGUFReader(sys.argv[1])
    field = lambda key: reader.fields[f"tokenizer.ggml.{key}"].contents()
    assert (field("model"), field("pre")) == ("gpt2", "smollm")
    tokens, merges, kinds = field("tokens"), field("merges"), field("token_type")
    special = [t for t, k in zip(tokens, kinds) if k == 3]
    plain = PlainBpe(tokens, merges, special)

    hf = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges]))
    hf.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])

    rows, seen = [], set()
    for text in lines():
        if text in seen:
            continue
        seen.add(text)
        ids = plain.encode(text)
        assert ids == hf.encode(text, add_special_tokens=False).ids, (text, ids, hf.encode(text).tokens)
        assert hf.decode(ids, skip_special_tokens=False) == text or len(ids) < len(text.encode()), text
        rows.append([text, ids])
    out = pathlib.Path(__file__).with_name("expected.json")
    body = ",\n".join(json.dumps(r, ensure_ascii=True, separators=(",", ":")) for r in rows)
    out.write_text(f"[\n{body}\n]\n", encoding="utf-8")
    print(f"{len(rows)} texts, {sum(len(i) for _, i in rows)} tokens, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
