"""A byte pair encoding, compatible with CLIP's, in which each word of captioned scenes is one token.

Words outside the vocabulary are split into shorter tokens, down to bytes, as rare words are by any CLIP tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from diffseg.tiny.scenes.vocabulary import Caption, caption_vocabulary

__all__ = ["CONTEXT_TOKENS", "WordTokenizer", "caption_tokenizer"]

Merge = tuple[str, str]
"""Two adjacent tokens of a word that become one token."""

CONTEXT_TOKENS = 77
"""Tokens of a caption, including start, end and padding."""
END_OF_WORD = "</w>"
"""Suffix of tokens that end a word."""
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class WordTokenizer:
    """Byte pair encoding for captions.

    Attributes:
        merges: In order of their rank; merges of a lower rank are applied first.
    """

    merges: tuple[Merge, ...]

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Ids of all tokens: bytes, bytes that end a word, merged tokens, and the tokens that start and end a text."""
        letters = sorted(ByteLevel.alphabet())
        ends = [letter + END_OF_WORD for letter in letters]
        return {token: i for i, token in enumerate([*letters, *ends, *map("".join, self.merges), START, END])}

    def encode(self, caption: Caption) -> tuple[np.ndarray, np.ndarray]:
        """Encode a caption.

        Returns:
            Token ids from the start token to the padding, int64 [77], and the class that each token names, or −1,
            int64 [77].

        Raises:
            ValueError: The caption is too long.
        """
        ids, classes = [self.ids[START]], [-1]
        for word, noun in caption.pieces:
            tokens = split_word(word, self.merges)
            ids += [self.ids[token] for token in tokens]
            classes += [noun] * len(tokens)
        if len(ids) >= CONTEXT_TOKENS:
            raise ValueError(f"the caption has {len(ids)} tokens, expected fewer than {CONTEXT_TOKENS}: {caption.text}")
        padding = CONTEXT_TOKENS - len(ids)  # padded with the end token, as in CLIP's tokenizer
        return np.array(ids + [self.ids[END]] * padding), np.array(classes + [-1] * padding)


def caption_tokenizer() -> WordTokenizer:
    """Return the tokenizer of captioned scenes, in which each of their words is one token."""
    return WordTokenizer(_merges_for(caption_vocabulary()))


def split_word(word: str, merges: Sequence[Merge]) -> list[str]:
    """Split an ASCII word into tokens, by merging the pair of the lowest rank until no merge applies."""
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    tokens = [*word[:-1], word[-1] + END_OF_WORD]
    while len(tokens) > 1:
        best = min(pairwise(tokens), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged: list[str] = []
        for token in tokens:
            if merged and (merged[-1], token) == best:
                merged[-1] += token
            else:
                merged.append(token)
        tokens = merged
    return tokens


def _merges_for(words: Iterable[str]) -> tuple[Merge, ...]:
    """Return merges that make each word one token.

    Each word is split with the merges of the words before it, and the merges that it still needs are appended. Appended
    merges have a higher rank than all earlier ones, so they do not change the tokens of earlier words.
    """
    merges: list[Merge] = []
    for word in words:
        while len(tokens := split_word(word, merges)) > 1:
            merges.append((tokens[0], tokens[1]))
    return tuple(merges)
