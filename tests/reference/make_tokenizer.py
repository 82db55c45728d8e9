"""Make tests/reference/tokenizer.json: what transformers' CLIPTokenizer makes of some texts.

Run in an environment with transformers (written with 5.23.0), from the repository's root::

    PYTHONPATH=. python tests/reference/make_tokenizer.py

The vocabulary is learnt here, by tinydiff, from the few captions below; what the file
records is how transformers uses it.  The file has

==========  =======================================================================
versions    of transformers and tokenizers
symbols     the vocabulary, in the order of the ids
merges      the pairs, in the order in which they were learnt
texts       what was encoded
ids         for each text and each padding token: 12 ids, padded and cut
words       for each text, the tokens without start, end and padding
decoded     for each text, what its ids say again, without the special tokens
==========  =======================================================================
"""
import json
import shutil
import tempfile
from pathlib import Path

from tinydiff.text import Tokenizer

CAPTIONS = [
    "red heart, noto style", "orange heart, noto style", "a heart with an arrow", "it's raining",
    "they're here, we've come, I'm in, you'll see, he'd go, don't!", "smiling face with tears",
    "face with tears of joy", "flag: Côte d'Ivoire", "the starting line", "thirteen o'clock",
    "3 o'clock", "12:30", "clinking beer mugs", "women holding hands: light skin tone",
    "the red heart and the red circle", "naïve café", "\u65e5\u672c\u8a9e \u65e5\u672c",
    "\U0001f600\U0001f600 \U0001f44d\U0001f3fd", "!!! ... !?", "smiling cat with heart-eyes",
]

TEXTS = [
    "", " ", "\n\t\r\n", "red heart", "  Red\u00a0 HEART\u2003\u3000, noto\tstyle\n",
    "it's they're we've I'm you'll he'd don't", "IT'S THEY'RE", "'tis 'start ''s ''' ' o''clock",
    "'sred 'd'd 's't", "1234567890", "12:30", "56\u00bd \u2167 \u00b2 \u0663 \u4e09",
    "3rd a1b2 x2\u00b3", "!", "!!", "!!! ...,;:---??!", "heart!",
    "hello, world!!", "_under_ #1 @you",
    "$5.00 50% \u20ac7", "caf\u00e9", "cafe\u0301", "a\u030aB \u212b \u1e9b\u0323",
    "\ufb01ne \u00df \u1e9e",
    "\u0391\u03a3 \u0391\u03a3\u0391 \u03a3", "\u0130stanbul \u0131", "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1ec\U0001f1e7",
    "\U0001f44d\U0001f3fd \u2764\ufe0f",
    "\u65e5\u672c\u8a9e\u30c6\u30b9\u30c8 \u4e2d\u6587",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22", "\x00\x01\x07\x7f",
    "a\x1cb\x1db\x1eb\x1fb",
    "a\x85b\u200bc\ufeffd\u00add", "\ufffd\uffff\U0010ffff", "\u201cquotes\u201d \u2013 dash\u2026",
    "<|startoftext|>", "a<|endoftext|>b", "<|startoftext|> red <|endoftext|> heart",
    "'<|endoftext|>s!<|startoftext|>!", "<|startoftext|", "<|endoftext|><|endoftext|>",
    "</w> a</w>b </w", "e<|endoftext|>\u0301", "the red heart and the red circle " * 4,
    "heart" * 30, "\u00e9" * 40, "thethethe rererere eeeee",
    "Stra\u00dfe NAI\u0308VE \u01c5 \u0345",
]


def main():
    import tokenizers
    import transformers

    ours = Tokenizer.train(CAPTIONS, 700)
    record = {
        "versions": f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}",
        "symbols": sorted(ours.vocabulary, key=ours.vocabulary.get),
        "merges": [" ".join(pair) for pair in ours.merges],
        "texts": TEXTS, "ids": {}}
    folder = Path(tempfile.mkdtemp())
    try:
        ours.save_pretrained(folder)
        for pad_token in ("<|endoftext|>", "!"):
            theirs = transformers.CLIPTokenizer.from_pretrained(folder, pad_token=pad_token)
            rows = theirs(TEXTS, max_length=12, padding="max_length", truncation=True)["input_ids"]
            record["ids"][pad_token] = rows
            if pad_token == "<|endoftext|>":
                record["words"] = [theirs.tokenize(text) for text in TEXTS]
                record["decoded"] = [theirs.decode(row, skip_special_tokens=True) for row in rows]
    finally:
        shutil.rmtree(folder)
    path = Path(__file__).with_name("tokenizer.json")
    lines = [f'"{key}": {json.dumps(value)}' for key, value in record.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{path.stat().st_size / 1e3:.1f} kB, {len(ours)} symbols")


if __name__ == "__main__":
    main()
