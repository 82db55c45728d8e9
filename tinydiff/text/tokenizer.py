"""CLIP's tokenizer: lower-cased byte-pair encoding, in the field's own files.

A folder holds ``vocab.json`` (symbol -> id), ``merges.txt`` (the pairs in the order in which
they were learnt), ``tokenizer_config.json`` and ``special_tokens_map.json``.  Folders
written here open in transformers' `CLIPTokenizer`, and published ones open here.
"""

import collections
import re

import numpy as np

from tinydiff.text.bpe import apply_merges, learn_merges
from tinydiff.text.files import read_tokenizer, write_tokenizer
from tinydiff.text.words import (
    BYTE_TO_SYMBOL,
    WORD_END,
    clean,
    repair,
    split_words,
    to_bytes,
    to_symbols,
)

__all__ = ["Tokenizer"]

START = "<|startoftext|>"
END = "<|endoftext|>"


class Tokenizer:
    """Captions to lists of ids, and back.

    Parameters
    ----------
    vocabulary : dict of str to int
        Symbol to id, ids 0 .. V-1.
    merges : list of (str, str)
        The pairs to merge, the first learnt first.
    pad_token : str, default ``"<|endoftext|>"``
        Fills a row up; SD 2 and SDXL's second encoder use ``"!"``.
    start_token, end_token, unknown_token : str
        Frame every caption; a symbol without an id becomes `unknown_token`.
    model_max_length : int, default 77
        Length of a row of ids where `encode` is told none, in tokens.

    Attributes
    ----------
    start_id, end_id, pad_id : int

    Notes
    -----
    The vocabulary of `train` is ordered as CLIP's: 256 byte symbols, the same 256 at the end
    of a word, one symbol per merge, the start token, and the end token, which must be the
    highest id because CLIP's text pooling looks for ``argmax(ids)``.

    Special tokens that are written out in a caption, letter for letter, become their ids, as
    in published tokenizers.

    Examples
    --------
    >>> tokenizer = Tokenizer.train(["red heart", "red circle", "a heart"], vocab_size=525)
    >>> tokenizer.tokens("Red  heart")
    ['red</w>', 'heart</w>']
    >>> tokenizer.decode(tokenizer.encode("Red  heart", max_length=6))
    'red heart'
    """

    def __init__(self, vocabulary, merges, *, pad_token=END, start_token=START, end_token=END,
                 unknown_token=END, model_max_length=77):
        self.vocabulary = vocabulary
        self.merges = [tuple(pair) for pair in merges]
        self.pad_token, self.start_token, self.end_token = pad_token, start_token, end_token
        self.unknown_token = unknown_token
        self.model_max_length = model_max_length
        for token in (start_token, end_token, pad_token, unknown_token):
            if token not in vocabulary:
                raise ValueError(f"the vocabulary has no special token {token!r}")
        self.start_id, self.end_id = vocabulary[start_token], vocabulary[end_token]
        self.pad_id = vocabulary[pad_token]

        self.symbols = {i: symbol for symbol, i in vocabulary.items()}
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.special = {start_token, end_token, pad_token, unknown_token}
        # Longest first: one special token may begin with another.
        longest_first = sorted(self.special, key=lambda token: (-len(token), token))
        self.special_pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self.cache = {}

    def __len__(self):
        return len(self.vocabulary)

    @classmethod
    def train(cls, texts, vocab_size, model_max_length=77):
        """Learn a vocabulary from captions.

        Parameters
        ----------
        texts : iterable of str
        vocab_size : int
            Upper limit: 512 byte symbols, the merges, and two special tokens.  The
            vocabulary is smaller where the captions have no more pairs that occur twice.
        model_max_length : int, default 77
            Default length of a row of ids, in tokens.

        Returns
        -------
        tokenizer : Tokenizer

        Raises
        ------
        ValueError
            If `vocab_size` leaves no room for the bytes and the special tokens.
        """
        if vocab_size < 514:
            raise ValueError(f"vocab_size={vocab_size} is less than 514 (bytes, special tokens)")
        counts = collections.Counter()
        for text, repeats in collections.Counter(texts).items():
            for word in split_words(clean(text)):
                counts[to_symbols(word)] += repeats
        merges = learn_merges(counts, vocab_size - 514)

        alphabet = list(BYTE_TO_SYMBOL.values())
        symbols = alphabet + [symbol + WORD_END for symbol in alphabet]
        # Two different pairs may spell the same symbol, which then needs one id, not two.
        symbols = dict.fromkeys([*symbols, *(a + b for a, b in merges), START, END])
        vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
        return cls(vocabulary, merges, model_max_length=model_max_length)

    def encode(self, text, max_length=None):
        """Turn a caption into a row of ids: start token, words, end token, padding.

        Parameters
        ----------
        text : str
            Any Unicode, also empty.
        max_length : int, optional
            Length of the row in tokens, `model_max_length` if not given.  What is
            longer is cut; the end token always stays.

        Returns
        -------
        ids : list of int

        Raises
        ------
        ValueError
            If `max_length` is less than 2: the start and end tokens need that much room.
        """
        max_length = self.model_max_length if max_length is None else max_length
        if max_length < 2:
            raise ValueError(f"max_length={max_length} leaves no room for start and end token")
        unknown = self.vocabulary[self.unknown_token]
        ids = [self.vocabulary.get(token, unknown) for token in self.tokens(text)]
        ids = [self.start_id, *ids[: max_length - 2], self.end_id]
        return ids + [self.pad_id] * (max_length - len(ids))

    def encode_batch(self, texts, max_length=None):
        """Encode captions as the rows of one array.

        Returns
        -------
        ids : (B, N) ndarray of int64
        """
        length = self.model_max_length if max_length is None else max_length
        rows = [self.encode(text, length) for text in texts]
        return np.array(rows, np.int64).reshape(len(rows), length)

    def tokens(self, text):
        """Return the symbols of a caption, without start, end and padding.

        Returns
        -------
        symbols : list of str
            In the byte alphabet, ``</w>`` at the end of each word.
        """
        symbols = []
        for part in self.special_pattern.split(repair(text)):
            if part in self.special:
                symbols.append(part)
                continue
            for word in split_words(clean(part)):
                symbols.extend(self._merge(word))
        return symbols

    def _merge(self, word):
        """Merge the byte pairs of one word; words met before are remembered."""
        symbols = self.cache.get(word)            # once: another thread may clear the cache
        if symbols is None:
            if len(self.cache) >= 65536:          # bounds the memory of a long-lived process
                self.cache.clear()
            symbols = self.cache[word] = apply_merges(to_symbols(word), self.ranks)
        return symbols

    def decode(self, ids):
        """Return the cleaned caption that a row of ids stands for.

        Start, end and padding are left out; one space follows each word, so
        ``"it's"`` comes back as ``"it 's"``.  Bytes that are not UTF-8 show as U+FFFD.

        Parameters
        ----------
        ids : sequence of int

        Returns
        -------
        text : str

        Raises
        ------
        ValueError
            If an id is not in the vocabulary.
        """
        data = bytearray()
        for i in map(int, ids):
            if i not in self.symbols:
                raise ValueError(f"token id {i} is not in the vocabulary (0 to {len(self) - 1})")
            symbol = self.symbols[i]
            if symbol in self.special:
                continue
            spelling = symbol.removesuffix(WORD_END)
            data += to_bytes(spelling)
            if spelling != symbol:
                data += b" "
        return data.decode("utf-8", "replace").strip()

    @classmethod
    def from_pretrained(cls, folder):
        """Open a tokenizer folder, this project's or a published one.

        Raises
        ------
        FileNotFoundError
            If a file is missing.
        ValueError
            If a file is damaged; the message names the file and the fault.
        """
        vocabulary, merges, options = read_tokenizer(folder)
        try:
            return cls(vocabulary, merges, **options)
        except ValueError as fault:
            raise ValueError(f"{folder}: {fault}") from None

    def save_pretrained(self, folder):
        """Write the four files into `folder`, which is made if it does not exist."""
        write_tokenizer(folder, self.vocabulary, self.merges, {
            "start_token": self.start_token, "end_token": self.end_token,
            "pad_token": self.pad_token, "unknown_token": self.unknown_token,
            "model_max_length": self.model_max_length,
        })
