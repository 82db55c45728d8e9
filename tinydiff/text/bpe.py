"""Byte-pair encoding: learn which neighbouring symbols to merge, and merge them.

R. Sennrich, B. Haddow, A. Birch, "Neural Machine Translation of Rare Words with
Subword Units", 2015, arXiv:1508.07909, Section 3.2 and Algorithm 1.

Training starts from single bytes and repeats: count every pair of neighbours, weighted
by how often its word occurs, and make the most frequent pair one symbol.  The merges, in
the order in which they were learnt, are the tokenizer.  Encoding replays them: of all
pairs in a word, the one learnt first is merged first.
"""

import collections
import heapq
import itertools

from tqdm import tqdm

__all__ = ["apply_merges", "learn_merges", "merge_pair"]


def merge_pair(symbols, pair):
    """Join every occurrence of `pair` in a word, from left to right.

    Parameters
    ----------
    symbols : tuple of str
    pair : (str, str) tuple

    Returns
    -------
    merged : tuple of str

    Examples
    --------
    >>> merge_pair(("a", "a", "a", "b</w>"), ("a", "a"))
    ('aa', 'a', 'b</w>')
    """
    merged = []
    i = 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return tuple(merged)


def apply_merges(symbols, ranks):
    """Merge a word's symbols until no learnt pair is left.

    Parameters
    ----------
    symbols : tuple of str
        One word, as `tinydiff.text.words.to_symbols` spells it.
    ranks : dict of (str, str) to int
        Each learnt pair and its place in the order of learning.

    Returns
    -------
    symbols : tuple of str
    """
    while len(symbols) > 1:
        pairs = itertools.pairwise(symbols)
        first = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if first not in ranks:
            break
        symbols = merge_pair(symbols, first)
    return symbols


def learn_merges(word_counts, num_merges, min_count=2):
    """Find the pairs to merge, the most frequent first.

    Parameters
    ----------
    word_counts : dict of tuple to int
        How often each word occurs; a word is a tuple of symbols.
    num_merges : int
        Upper limit on the number of pairs.
    min_count : int, default 2
        A pair seen less often is not worth a symbol.

    Returns
    -------
    merges : list of (str, str)

    Notes
    -----
    Only the words that contain the merged pair change, so only their pairs are counted
    again.  The heap may hold outdated counts; an entry counts only if it still agrees
    with `counts`.  Equal counts are decided by the pair itself, in alphabetical order:
    the result depends on the words and their counts, not on their order.
    """
    words = list(word_counts)
    frequency = [word_counts[word] for word in words]
    counts = collections.Counter()
    where = collections.defaultdict(set)          # pair -> indices of the words that hold it
    for i, word in enumerate(words):
        for pair in itertools.pairwise(word):
            counts[pair] += frequency[i]
            where[pair].add(i)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)

    merges = []
    bar = tqdm(total=num_merges, desc="byte pairs", delay=1, leave=False)
    while heap and len(merges) < num_merges:
        count, pair = heapq.heappop(heap)
        if -count != counts[pair] or -count < min_count:
            continue
        merges.append(pair)
        bar.update()
        changed = set()
        for i in where.pop(pair):
            changed.update(_recount(words, frequency[i], i, pair, counts, where))
        for neighbour in changed:
            heapq.heappush(heap, (-counts[neighbour], neighbour))
    bar.close()
    return merges


def _recount(words, frequency, i, pair, counts, where):
    """Merge `pair` in word i, correct the counts, and return the pairs they belong to."""
    before = words[i]
    words[i] = after = merge_pair(before, pair)
    old = list(itertools.pairwise(before))
    new = list(itertools.pairwise(after))
    for neighbour in old:
        counts[neighbour] -= frequency
    for neighbour in new:
        counts[neighbour] += frequency
        where[neighbour].add(i)
    return {*old, *new}
