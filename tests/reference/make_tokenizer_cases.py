#!/usr/bin/env python3
"""Writes the expected tokenizations that tests/tokenizer.rs compares with.

Usage: make_tokenizer_cases.py TOKENIZER_JSON OUT_JSON

Needs the Python package `tokenizers` (made with 0.22.2). The texts are the same for every tokenizer:
many scripts, composed and decomposed forms, code, runs of spaces, control characters, names of
special tokens. `decodes` holds random id sequences, most of which no text encodes to: characters
split between tokens, invalid UTF-8, special tokens in between. Decoding leaves special tokens out.
"""

import json
import random
import sys

import tokenizers

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "It's what we'll've said they'd do; I'm sure you're right, 'tis so.",
    "Numbers: 0 1 12 123 1234 3.14159 -273.15 1,000,000 0xDEADBEEF 1e-30 ½ ² Ⅷ ٣ 三",
    "我们的模型在很小的机器上运行。",
    "人工智能,语言模型;标点符号!?",
    "繁體中文測試:龍龜鬱鬯。",
    "吾輩は猫である。名前はまだ無い。",
    "カタカナとひらがな、漢字が混ざる。ヴァイオリン",
    "한국어 문장을 나누어 봅시다.",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "שלום עולם, מה שלומך?",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Γειά σου Κόσμε, τι κάνεις;",
    "Türkçe: İstanbul'da ığüşöç; Deutsch: Straße, Übermäßig; Français: où êtes-vous, garçon?",
    "Tiếng Việt: Xin chào thế giới, bạn có khỏe không?",
    "ქართული ენა, Հայերեն լեզու, አማርኛ",
    "😀 😃 👍🏽 🇯🇵 🏳️‍🌈 👨‍👩‍👧‍👦 👩🏿‍🚀 ❤️",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕞𝕒𝕥𝕙 𝄞 𠜎 𐍈",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β → ∑ᵢ aᵢ² ≤ ∞",
    "“Curly” ‘quotes’ – dashes — and… ellipsis • bullets ‰ № € £ ¥",
]

# Pairs of composed and decomposed forms, and what NFC changes otherwise.
NORMAL_FORMS = [
    "é", "e\u0301", "caf\u00e9", "cafe\u0301", "\u00c5", "A\u030a", "\u212b", "\u2126",
    "n\u0303o", "ñо", "\u1e69", "s\u0323\u0307", "s\u0307\u0323", "각", "\u1100\u1161\u11a8",
    "が", "か\u3099", "\u0958", "\u0915\u093c", "\ufb01", "ﬁ ligature", "a\u0301\u0301\u0301",
    "\u0301", " \u0301x", "\u200d", "\ufe0f", "\u2000\u2001", "\u0344", "\uf900", "q\u0307\u0323",
]

CODE = [
    'fn main() {\n    println!("{}", 1 + 2);\n}\n',
    "def f(x):\n\tif x:\n\t\treturn [i**2 for i in range(x)]\n\treturn None\n",
    "#include <stdio.h>\nint main(void){return printf(\"%d\\n\",42)!=3;}\r\n",
    "SELECT a.id, COUNT(*) FROM t AS a WHERE b <> 'it''s' GROUP BY 1;",
    '{"key": [1, 2.5, null, true], "nested": {"a\\u00e9": "\\n"}}',
    "<div class=\"x\">&nbsp;</div><!-- comment -->",
    "for (;;) { a[i++] += *p->q ? ~b : c << 3; } // ???",
    "https://example.org/path?q=1&r=%20#frag user@example.org C:\\dir\\file.txt",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n```rust\nlet x = 1;\n```\n",
    "$ cargo build --release 2>&1 | tee out.log",
    "a==b!=c<=d>=e&&f||g->h=>i::j...k..=l",
]

WHITESPACE = [
    "\n", "\n\n", "\n\n\n\n\n", "\t", "\t\t\t", "\r\n", "\r\n\r\n", "\r", " \n", "\n ", " \n \n ",
    "\t \t ", "a\n", "a \n b", "a\t\tb", "\u00a0", "a\u00a0b", "\u3000", "a\u3000\u3000b", "\u2003x",
    "\u2028", "\u2029", "\x0b", "\x0c", "\x85", "  leading", "trailing  ", " both ", "a  b   c    d",
    "\n    indented\n        more\n", "x\n\n\ny", "   \n   \n",
]

CONTROL = [
    "\0", "a\0b", "\0\0\0", "\x01\x02\x03", "\x07bell", "\x1b[31mred\x1b[0m", "\x7f", "\ufeff",
    "\ufeffBOM first", "\ufffd", "a\ufffdb", "\uffff", "\U0010ffff", "\ue000", "\u200b\u200c\u200e",
    "".join(chr(c) for c in range(32)), "".join(chr(c) for c in range(127, 161)),
]

SPECIAL = [
    "<|endoftext|>", "<|padding|>", "a<|endoftext|>b", "<|endoftext|><|endoftext|>",
    " <|endoftext|> ", "<|endoftext|", "|endoftext|>", "<|EndOfText|>", "<|endoftext|>\n\nNext",
    "<| endoftext |>", "x<|padding|>y<|endoftext|>", "<<|endoftext|>>", "  <|endoftext|>   x",
    "é<|endoftext|>e\u0301",
]

LONG = [
    "a" * 1000, "ab" * 500, "hello " * 300, "0" * 777, "!" * 500, "é" * 300, "你" * 300, "😀" * 200,
    "\n" * 500, "\t" * 300, " " * 1000, " " * 1000 + "x", "x " * 500, "e\u0301" * 200, "'" * 100,
    "supercalifragilisticexpialidocious" * 20, "<|endoftext|>" * 50,
]


def texts():
    yield ""
    yield from SENTENCES
    yield "\n".join(SENTENCES)
    yield from NORMAL_FORMS
    yield from CODE
    yield from WHITESPACE
    yield from CONTROL
    yield from SPECIAL
    yield from LONG
    for n in range(1, 41):
        yield " " * n
        yield " " * n + "x"
        yield "x" + " " * n + "y"
    yield from (chr(c) for c in range(33, 127))
    alphabet = list("abcXYZ019 '\t\n.,!-_(){}<|>") + ["é", "e\u0301", "ß", "я", "中", "の", "한", "ع", "क", "ก"]
    alphabet += ["😀", "\u200d", "\u0301", "\u00a0", "<|endoftext|>", "  ", "    "]
    rng = random.Random(1)
    for _ in range(60):
        yield "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40)))


def id_sequences(n_tokens):
    rng = random.Random(2)
    yield []
    yield [0]
    yield [0, 1, 0]
    for _ in range(100):
        count = rng.randint(1, 30)
        # Low ids are single bytes: sequences of these are often invalid UTF-8.
        highest = rng.choice([n_tokens, 260])
        yield [rng.randrange(highest) for _ in range(count)]


def main():
    source, out = sys.argv[1:]
    tokenizer = tokenizers.Tokenizer.from_file(source)
    encodes = []
    for text in texts():
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        encodes.append({"text": text, "ids": ids, "decoded": decoded})
    n_tokens = max(tokenizer.get_vocab().values()) + 1
    decodes = [
        {"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True)}
        for ids in id_sequences(n_tokens)
    ]
    with open(out, "w", encoding="utf-8") as file:
        file.write('{"made_with": "tokenizers %s",\n' % tokenizers.__version__)
        file.write('"n_tokens": %d,\n"encodes": [\n' % n_tokens)
        # ensure_ascii keeps control characters and decomposed forms safe from editors.
        file.write(",\n".join(json.dumps(case) for case in encodes))
        file.write('\n],\n"decodes": [\n')
        file.write(",\n".join(json.dumps(case) for case in decodes))
        file.write("\n]}\n")


if __name__ == "__main__":
    main()
