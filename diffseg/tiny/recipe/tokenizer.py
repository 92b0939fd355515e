"""A CLIP tokenizer for the words of captioned scenes, made by code: all bytes, and merges by which a word is one token.

Words that are not of the vocabulary fall apart into bytes, as rare words do with any CLIP tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from diffseg.tiny.scenes.vocabulary import Caption, caption_vocabulary

__all__ = ["CONTEXT_TOKENS", "Words", "caption_words"]

Merge = tuple[str, str]

CONTEXT_TOKENS = 77
END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Words:
    """Byte pair encoding with the given merges, in order of rank."""

    merges: tuple[Merge, ...]

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Of all tokens: bytes, bytes that end a word, merged ones, and the two that begin and end a text."""
        letters = sorted(ByteLevel.alphabet())
        ends = [letter + END_OF_WORD for letter in letters]
        return {token: i for i, token in enumerate([*letters, *ends, *map("".join, self.merges), START, END])}

    def encode(self, caption: Caption) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int64 [77] from start to padding, and of each token the class that it names, else −1.

        Raises ValueError where the caption is too long.
        """
        ids, classes = [self.ids[START]], [-1]
        for word, noun in caption.pieces:
            tokens = split_word(word, self.merges)
            ids += [self.ids[token] for token in tokens]
            classes += [noun] * len(tokens)
        if len(ids) >= CONTEXT_TOKENS:
            raise ValueError(f"a caption of {len(ids)} tokens: expected below {CONTEXT_TOKENS}")
        padding = CONTEXT_TOKENS - len(ids)  # by the token that ends a text, as CLIP's tokenizer does
        return np.array(ids + [self.ids[END]] * padding), np.array(classes + [-1] * padding)


def caption_words() -> Words:
    """The tokenizer of captioned scenes: each of their words is one token."""
    return Words(_merges_for(caption_vocabulary()))


def split_word(word: str, merges: Sequence[Merge]) -> list[str]:
    """The tokens of an ASCII word: letters, of which the pair of the lowest rank is merged until none is left."""
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
    """Merges by which each word becomes one token: those that there are, then whatever its rest still needs.

    Later merges rank below all earlier ones, so that they change no word that was done before.
    """
    merges: list[Merge] = []
    for word in words:
        while len(tokens := split_word(word, merges)) > 1:
            merges.append((tokens[0], tokens[1]))
    return tuple(merges)
