r"""What happens to a caption before byte pairs are merged: cleaning, splitting, bytes.

CLIP cuts a cleaned caption with one regular expression, whose alternatives are
tried from left to right at every position::

    's | 't | 're | 've | 'm | 'll | 'd        contractions
    \p{L}+                                     a run of letters
    \p{N}                                      one digit, or other number sign
    [^\s\p{L}\p{N}]+                          a run of anything else but spaces

Python's `re` does not know ``\p{L}`` and ``\p{N}``, so `split_words` walks over the
text and asks `unicodedata` for each character's category instead.

References
----------
.. [1] A. Radford et al., "Learning Transferable Visual Models From Natural Language
       Supervision", 2021, arXiv:2103.00020, Section 2.4.
"""

import functools
import re
import unicodedata

__all__ = ["BYTE_TO_SYMBOL", "WORD_END", "clean", "repair", "split_words", "to_bytes", "to_symbols"]

CONTRACTION = re.compile("'s|'t|'re|'ve|'m|'ll|'d")
# Unicode's White_Space property; `str.isspace` also counts the separators U+001C to U+001F.
SPACES = re.compile(r"[^\S\x1c-\x1f]+")
WORD_END = "</w>"


def byte_alphabet():
    """Give each of the 256 bytes a printable character, in the order of CLIP's vocabulary.

    Bytes that print in Latin-1 stand for themselves and come first; the other 68
    (controls, space, no-break space, soft hyphen) are shown as U+0100, U+0101, ...

    Returns
    -------
    byte_to_symbol : dict of int to str
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(hidden))]
    return dict(zip(printable + hidden, symbols, strict=True))


BYTE_TO_SYMBOL = byte_alphabet()
SYMBOL_TO_BYTE = {symbol: byte for byte, symbol in BYTE_TO_SYMBOL.items()}


def clean(text):
    r"""Compose accents, make every run of white space one space, and lower the case.

    Case is lowered one character at a time, as published tokenizers do: a Greek
    sigma that ends a word stays σ, where `str.lower` would write ς.

    Examples
    --------
    >>> clean("Red\n  HEART \U0001F600")
    'red heart 😀'
    """
    text = unicodedata.normalize("NFC", repair(text))
    return "".join(character.lower() for character in SPACES.sub(" ", text))


def repair(text):
    """Join pairs of surrogates; a lone one, which has no UTF-8 form, becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@functools.lru_cache(maxsize=4096)
def character_kind(character):
    """Return ``"L"`` for a letter, ``"N"`` for a number, ``" "`` for a space, else ``"?"``."""
    if SPACES.match(character):
        return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "?"


def split_words(text):
    """Cut cleaned text into the words that byte pairs are merged in.

    Parameters
    ----------
    text : str
        As `clean` returns it.

    Returns
    -------
    words : list of str

    Examples
    --------
    >>> split_words("it's a 36-pixel heart!!")
    ['it', "'s", 'a', '3', '6', '-', 'pixel', 'heart', '!!']
    """
    words = []
    start = 0
    while start < len(text):
        contraction = CONTRACTION.match(text, start)
        kind = character_kind(text[start])
        end = contraction.end() if contraction else start + 1
        if not contraction and kind != "N":
            while end < len(text) and character_kind(text[end]) == kind:
                end += 1
        if kind != " ":
            words.append(text[start:end])
        start = end
    return words


def to_symbols(word):
    """Spell a word in the byte alphabet, its last symbol marked as the word's end.

    Examples
    --------
    >>> to_symbols("né")
    ('n', 'Ã', '©</w>')
    """
    symbols = [BYTE_TO_SYMBOL[byte] for byte in word.encode("utf-8")]
    return (*symbols[:-1], symbols[-1] + WORD_END)


def to_bytes(symbol):
    r"""Return the bytes that a symbol spells, without a word's end.

    Examples
    --------
    >>> to_bytes("©")
    b'\xa9'
    """
    # A published vocabulary may hold characters outside the alphabet: they are themselves.
    return b"".join(
        bytes([SYMBOL_TO_BYTE[c]]) if c in SYMBOL_TO_BYTE else c.encode("utf-8", "replace")
        for c in symbol
    )
