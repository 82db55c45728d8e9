"""Our tokenizer is CLIP's: the ids of transformers, for any text, and files that travel.

What transformers makes of some awkward texts is committed (reference/make_tokenizer.py); where
it is installed, thousands of random ones are compared too.
"""
import json
import random
import sys
import time
import unicodedata
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tinydiff.text import Tokenizer
from tinydiff.text.bpe import apply_merges, learn_merges, merge_pair
from tinydiff.text.words import BYTE_TO_SYMBOL, clean, split_words, to_bytes, to_symbols

WANT = json.loads((Path(__file__).parent / "reference" / "tokenizer.json").read_text())
MERGES = [tuple(line.split()) for line in WANT["merges"]]
START, END = "<|startoftext|>", "<|endoftext|>"


def committed_tokenizer(pad_token=END):
    vocabulary = {symbol: i for i, symbol in enumerate(WANT["symbols"])}
    return Tokenizer(vocabulary, MERGES, pad_token=pad_token)


def random_texts(count, seed=0):
    """Return texts of any characters, those that matter to CLIP's splitting more often."""
    draw = random.Random(seed)
    known = [chr(c) for c in range(sys.maxunicode + 1)
             if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    telling = [*"'strevmld' 019<|>!?/wST", "\u0301", "\u0345", "\U0001f600", "\u200d", "\ufe0f",
               "\u3000", "\u2028", "\u00bd", "\u0130", "\u03a3", START, END, "heart", " "]
    return ["".join(draw.choices(telling if draw.random() < 0.6 else known, k=draw.randint(1, 20)))
            for _ in range(count)]


# ---- the ids of transformers ----

@pytest.mark.parametrize("pad_token", [END, "!"])
def test_ids_are_those_of_transformers(pad_token):
    tokenizer = committed_tokenizer(pad_token)
    for text, ids in zip(WANT["texts"], WANT["ids"][pad_token], strict=True):
        assert tokenizer.encode(text, 12) == ids, ascii(text)


def test_tokens_and_decoded_text_are_those_of_transformers():
    tokenizer = committed_tokenizer()
    for text, words, ids, again in zip(WANT["texts"], WANT["words"], WANT["ids"][END],
                                       WANT["decoded"], strict=True):
        assert tokenizer.tokens(text) == words, ascii(text)
        assert tokenizer.decode(ids) == again, ascii(text)


@pytest.fixture
def clip_tokenizer():
    """Return transformers' class; other people's warnings are not our errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("transformers").CLIPTokenizer


@pytest.mark.parametrize("pad_token", [END, "!"])
def test_a_folder_written_here_opens_in_transformers(pad_token, clip_tokenizer, tmp_path):
    tokenizer = committed_tokenizer(pad_token)
    tokenizer.save_pretrained(tmp_path)
    theirs = clip_tokenizer.from_pretrained(tmp_path)
    assert len(theirs) == len(tokenizer)
    assert theirs.model_max_length == 77
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id)
    texts = WANT["texts"] + random_texts(3000)
    rows = theirs(texts, padding="max_length", truncation=True)["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        assert tokenizer.encode(text) == row, ascii(text)
        assert tokenizer.decode(row) == theirs.decode(row, skip_special_tokens=True), ascii(text)


# ---- any text ----

@pytest.mark.parametrize("text", ["", "\x00", "\ud800", "\udfff\ud800", "a\udc80b", "\ufffe",
                                  "\u0301", "\U0010ffff", "\ud83d\ude00", "  ", "<|", "\r",
                                  "a" * 5000])
def test_nothing_crashes_and_every_row_is_framed(text):
    tokenizer = committed_tokenizer()
    ids = tokenizer.encode(text, 20)
    assert len(ids) == 20
    assert ids[0] == tokenizer.start_id
    assert tokenizer.end_id in ids[1:]
    tokenizer.decode(ids).encode("utf-8")


def test_surrogates_are_joined_or_replaced():
    tokenizer = committed_tokenizer()
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("\U0001f600")
    assert tokenizer.encode("a\ud83d") == tokenizer.encode("a\ufffd")


def test_decoding_an_encoded_text_gives_its_words_again():
    tokenizer = committed_tokenizer()
    for text in random_texts(1000, seed=1):
        for special in (START, END):
            text = text.replace(special, "")
        words = split_words(clean(text))
        if any("</w>" in word for word in words):
            continue
        again = tokenizer.decode(tokenizer.encode(text, 1000))
        assert again == " ".join(words).strip(), ascii(text)


def test_splitting_is_clips_pattern():
    cases = {
        "it's": ["it", "'s"], "they'll've": ["they", "'ll", "'ve"], "'start": ["'s", "tart"],
        "''s": ["''", "s"], "o'clock": ["o", "'", "clock"], "a1b22": ["a", "1", "b", "2", "2"],
        "5\u00bd\u2167": ["5", "\u00bd", "\u2167"], "-->a": ["-->", "a"], " a  b ": ["a", "b"],
        "!'s": ["!'", "s"], "\u4e00\u4e8c": ["\u4e00\u4e8c"], "a_b": ["a", "_", "b"],
        "\u0928\u0940": ["\u0928", "\u0940"], "": []}
    for text, words in cases.items():
        assert split_words(text) == words, ascii(text)


def test_the_byte_alphabet_is_one_to_one_and_printable():
    symbols = list(BYTE_TO_SYMBOL.values())
    assert len(set(symbols)) == len(BYTE_TO_SYMBOL) == 256
    assert sorted(BYTE_TO_SYMBOL) == list(range(256))
    assert all(symbol.isprintable() and not symbol.isspace() for symbol in symbols)
    assert symbols[0] == "!"                   # id 0, with which Stable Diffusion 2 pads
    assert [ord(BYTE_TO_SYMBOL[b]) for b in (0, 32, 127, 255)] == [0x100, 0x120, 0x121, 0xFF]
    assert b"".join(to_bytes(s) for s in symbols) == bytes(BYTE_TO_SYMBOL)


def test_rows_are_cut_before_the_end_token_and_padded_after_it():
    tokenizer = committed_tokenizer("!")
    words = tokenizer.tokens("red heart, noto style")
    ids = [tokenizer.vocabulary[word] for word in words]
    s, e = tokenizer.start_id, tokenizer.end_id
    n = len(ids)
    assert tokenizer.encode("red heart, noto style", n + 2) == [s, *ids, e]
    assert tokenizer.encode("red heart, noto style", n + 1) == [s, *ids[:-1], e]
    assert tokenizer.encode("red heart, noto style", n + 4) == [s, *ids, e, 0, 0]
    assert tokenizer.encode("red heart", 2) == [s, e]
    with pytest.raises(ValueError, match="max_length=1"):
        tokenizer.encode("red heart", 1)
    assert len(tokenizer.encode("")) == 77


def test_a_batch_is_its_rows():
    tokenizer = committed_tokenizer()
    texts = ["red heart", "", "a circle"]
    batch = tokenizer.encode_batch(texts, 9)
    assert batch.dtype == np.int64
    assert batch.tolist() == [tokenizer.encode(text, 9) for text in texts]
    assert tokenizer.encode_batch([], 9).shape == (0, 9)
    assert tokenizer.decode(batch[0]) == "red heart"
    with pytest.raises(ValueError, match="99999"):
        tokenizer.decode([99999])


def test_a_full_cache_changes_nothing():
    tokenizer = committed_tokenizer()
    texts = random_texts(300, seed=2)
    fresh = [committed_tokenizer().encode(text) for text in texts[:20]]
    tokenizer.cache = {f"{i}": () for i in range(65536)}
    assert [tokenizer.encode(text) for text in texts[:20]] == fresh


# ---- training ----

def naive_merges(word_counts, num_merges):
    """Learn merges by counting everything again each time: the definition."""
    words, merges = dict(word_counts), []
    while len(merges) < num_merges:
        counts = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                counts[pair] += n
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        merges.append(best)
        merged = Counter()
        for word, n in words.items():
            merged[merge_pair(word, best)] += n
        words = merged
    return merges


def word_counts(seed):
    draw = random.Random(seed)
    words = ["".join(draw.choices("aab\u00e9c", k=draw.randint(1, 9))) for _ in range(60)]
    return {to_symbols(word): draw.randint(1, 5) for word in words}


@pytest.mark.parametrize("seed", range(5))
def test_fast_training_is_the_definition(seed):
    counts = word_counts(seed)
    merges = learn_merges(counts, 80)
    assert merges == naive_merges(counts, 80)
    assert len(merges) > 20


def test_training_does_not_depend_on_the_order_of_the_captions():
    captions = WANT["texts"] * 2
    one = Tokenizer.train(captions, 640)
    two = Tokenizer.train(captions[::-1], 640)
    assert one.merges == two.merges
    assert list(one.vocabulary.items()) == list(two.vocabulary.items())


def test_merges_are_applied_in_the_order_they_were_learnt():
    ranks = {("b", "c</w>"): 0, ("a", "b"): 1, ("a", "bc</w>"): 2}
    assert apply_merges(("a", "b", "c</w>"), ranks) == ("abc</w>",)
    assert apply_merges(("a", "b", "a"), ranks) == ("ab", "a")
    assert apply_merges(("a", "a", "a"), {("a", "a"): 0}) == ("aa", "a")


def test_the_vocabulary_is_ordered_as_clips():
    tokenizer = Tokenizer.train(["red heart", "red circle"], 520)
    symbols = list(tokenizer.vocabulary)
    assert list(tokenizer.vocabulary.values()) == list(range(len(symbols)))
    alphabet = list(BYTE_TO_SYMBOL.values())
    assert symbols[:512] == alphabet + [symbol + "</w>" for symbol in alphabet]
    assert symbols[512:-2] == [a + b for a, b in tokenizer.merges]
    assert symbols[-2:] == [START, END]
    assert tokenizer.end_id == len(tokenizer) - 1 == max(tokenizer.vocabulary.values())
    assert len(tokenizer) <= 520
    assert len(Tokenizer.train([], 600)) == 514
    with pytest.raises(ValueError, match="vocab_size=513"):
        Tokenizer.train([], 513)


def test_thirty_thousand_captions_train_in_seconds():
    draw = random.Random(0)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "ar", "en")]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(5000)]
    captions = [" ".join(draw.choices(words, k=6)) for _ in range(30000)]
    before = time.process_time()               # of this process: other load does not count
    tokenizer = Tokenizer.train(captions, 2048)
    tokenizer.encode_batch(captions[:1000])
    assert time.process_time() - before < 10           # 2 s on a quiet core
    assert len(tokenizer) == 2048


# ---- files ----

def test_a_saved_folder_is_read_back_the_same(tmp_path):
    tokenizer = committed_tokenizer("!")
    tokenizer.model_max_length = 32
    tokenizer.save_pretrained(tmp_path / "new" / "tokenizer")
    again = Tokenizer.from_pretrained(tmp_path / "new" / "tokenizer")
    assert vars(again).keys() == vars(tokenizer).keys()
    for name, value in vars(tokenizer).items():
        assert getattr(again, name) == value or name == "cache", name
    files = {path.name for path in (tmp_path / "new" / "tokenizer").iterdir()}
    assert files == {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"}
    assert (tmp_path / "new/tokenizer/merges.txt").read_text("utf-8").startswith("#version: 0.2\n")


def edit(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flagged(token):
    return {"__type": "AddedToken", "content": token, "lstrip": False, "normalized": True,
            "rstrip": False, "single_word": False}


def test_published_ways_to_name_the_padding(tmp_path):
    committed_tokenizer().save_pretrained(tmp_path)
    # Stable Diffusion 2: two answers, the special map's wins; tokens carry their flags.
    edit(tmp_path, "special_tokens_map.json", pad_token="!", bos_token=flagged(START))
    edit(tmp_path, "tokenizer_config.json", unk_token=flagged(END), model_max_length=77)
    assert Tokenizer.from_pretrained(tmp_path).pad_id == 0
    # SDXL's second encoder: the configuration lists the added tokens, and decides.
    edit(tmp_path, "tokenizer_config.json", pad_token=END, added_tokens_decoder={})
    assert Tokenizer.from_pretrained(tmp_path).pad_token == END
    # Only the two necessary files, and a merges.txt without a version or a last line end.
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    lines = (tmp_path / "merges.txt").read_text("utf-8").split("\n")
    (tmp_path / "merges.txt").write_text("\n".join(lines[1:]).rstrip(), "utf-8")
    bare = Tokenizer.from_pretrained(tmp_path)
    assert (bare.merges, bare.pad_token, bare.model_max_length) == (MERGES, END, 77)


def test_no_limit_means_clips_own_length(tmp_path):
    committed_tokenizer().save_pretrained(tmp_path)
    edit(tmp_path, "tokenizer_config.json", model_max_length=10**30)
    assert Tokenizer.from_pretrained(tmp_path).model_max_length == 77


def spoil(name, text):
    def write(folder):
        (folder / name).write_bytes(text.encode("latin-1"))
    return write


def drop(name, symbol):
    """Take a symbol out of vocab.json, and close the gap."""
    def write(folder):
        symbols = [s for s in WANT["symbols"] if s != symbol]
        (folder / name).write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
    return write


@pytest.mark.parametrize("damage, fault", [
    (lambda folder: (folder / "vocab.json").unlink(), "vocab.json: no such file"),
    (lambda folder: (folder / "merges.txt").unlink(), "merges.txt: no such file"),
    (spoil("vocab.json", '{"a": 0'), "vocab.json: not valid JSON"),
    (spoil("vocab.json", '{"a\xff": 0}'), "vocab.json: not valid JSON"),
    (spoil("vocab.json", "[]"), "vocab.json: expected a JSON object"),
    (spoil("vocab.json", "{}"), "vocab.json: the vocabulary is empty"),
    (spoil("vocab.json", '{"a": 0, "b": 0}'), "vocab.json: id 0 belongs to both 'a' and 'b'"),
    (spoil("vocab.json", '{"a": 0, "b": 7}'), "vocab.json: id 7 of 'b' is outside"),
    (spoil("vocab.json", '{"a": "0"}'), "vocab.json: the id of 'a' is '0'"),
    (spoil("vocab.json", '{"a": true}'), "vocab.json: the id of 'a' is True"),
    (drop("vocab.json", END), "<|endoftext|>"),
    (drop("vocab.json", START), "<|startoftext|>"),
    (drop("vocab.json", "".join(MERGES[0])), "merges.txt: line 2: "),
    (spoil("merges.txt", "#version: 0.2\nr e d\n"), "merges.txt: line 2 is not two symbols"),
    (spoil("merges.txt", WANT["merges"][0] + "\nzq x\n"), "merges.txt: line 2: 'zq' is not in"),
    (spoil("merges.txt", "\xff\xff"), "merges.txt: not valid UTF-8"),
    (spoil("tokenizer_config.json", "nonsense"), "tokenizer_config.json: not valid JSON"),
    (spoil("tokenizer_config.json", '{"model_max_length": "long"}'), "model_max_length is 'long'"),
    (spoil("tokenizer_config.json", '{"model_max_length": 1}'), "model_max_length is 1"),
    (spoil("special_tokens_map.json", '{"pad_token": "[PAD]"}'),
     "special_tokens_map.json: pad_token '[PAD]' is not in"),
    (spoil("special_tokens_map.json", '{"eos_token": {"id": 3}}'), "eos_token has no 'content'"),
    (spoil("special_tokens_map.json", '{"eos_token": 3}'), "eos_token 3 is not in"),
])
def test_damage_is_a_one_line_error_that_names_the_file_and_the_fault(damage, fault, tmp_path):
    folder = tmp_path / "tokenizer"
    committed_tokenizer().save_pretrained(folder)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        Tokenizer.from_pretrained(folder)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder) in message
    assert fault in message


def joint_file(folder, **changes):
    """Replace vocab.json and merges.txt by the one file that transformers 5 writes."""
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "merges": [list(p) for p in MERGES],
             "vocab": {symbol: i for i, symbol in enumerate(WANT["symbols"])}} | changes
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))


@pytest.mark.parametrize("merges", [WANT["merges"], [list(pair) for pair in MERGES]])
def test_the_one_file_of_transformers_5_is_read(merges, tmp_path):
    committed_tokenizer("!").save_pretrained(tmp_path)
    joint_file(tmp_path, merges=merges)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.merges == MERGES
    assert [tokenizer.encode(text, 12) for text in WANT["texts"]] == WANT["ids"]["!"]


@pytest.mark.parametrize("changes, fault", [
    ({"type": "Unigram"}, "not a byte-pair tokenizer"), ({"vocab": None}, "no vocab"),
    ({"end_of_word_suffix": None}, "not a tokenizer of CLIP's kind"),
    ({"merges": ["a b c"]}, "merge 1 is not two symbols"),
    ({"merges": [3]}, "merge 1 is not two symbols"), ({"merges": [["a", 3]]}, "not two symbols"),
    ({"merges": [["q", "q"]]}, "merge 1: 'qq' is not in"), ({"vocab": {"a": 1}}, "id 1 of 'a'")])
def test_a_fault_in_the_one_file_is_named(changes, fault, tmp_path):
    committed_tokenizer().save_pretrained(tmp_path)
    joint_file(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"tokenizer\.json: ") as error:
        Tokenizer.from_pretrained(tmp_path)
    assert fault in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_saved_by_transformers_opens_here(clip_tokenizer, tmp_path):
    committed_tokenizer("!").save_pretrained(tmp_path / "ours")
    clip_tokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "theirs")
    assert [tokenizer.encode(text, 12) for text in WANT["texts"]] == WANT["ids"]["!"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such tokenizer folder"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")
