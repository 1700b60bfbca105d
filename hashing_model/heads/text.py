"""Words to codes: a linear map from a text to the activations of the images that it describes.

Cross-modal hashing by ridge regression: the hash functions of the images are fixed, and each caption and label name is
mapped to the activations of its images. This is the linear form of Ding, Guo and Zhou 2014, collective matrix
factorization hashing, with fixed codes. It has a closed form and needs no network; it knows only words that occur with
the training images.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hashing_model.heads.head import Floats, HashHead

# Chosen on emoji of the catalogue whose captions were held out: without parts of words .63 instead of .69 mAP of the
# coarse level, with parts that weigh as much as words .67; 0.3 and 3 times the ridge make less than .02 of difference.
PART = 4  # letters of a part of a word
PART_WEIGHT = 1 / 3  # or parts of a word that is not known drown out those that are
MOST_TOKENS = 4096
MOST_LETTERS = 1000  # of a text; what follows is not read
RIDGE = 1.0  # of the squared length of a text's vector, which is 1


def tokenize(text: str) -> list[str]:
    """The words of a text in lower case, and the parts of each word, so that words of similar spelling share tokens.

    >>> tokenize('Red apples')
    ['red', '~<red', '~red>', 'apples', '~<app', '~appl', '~pple', '~ples', '~les>']

    A word is a run of letters (with their accents) and digits. In languages without spaces, a text is found by what it
    shares with another, if that is at least as long as a part.
    """
    folded = unicodedata.normalize('NFKC', text[:MOST_LETTERS]).casefold()
    words = ''.join(c if c.isalnum() or unicodedata.category(c)[0] == 'M' else ' ' for c in folded).split()
    found = []
    for word in words:
        marked = f'<{word}>'
        parts = [f'~{marked[i : i + PART]}' for i in range(len(marked) - PART + 1)]
        found += [word, *(parts if len(marked) > PART else [])]
    return found


def _is_part(token: str) -> bool:
    return token[0] == '~'


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens that a model knows.

    Args:
        tokens: the V tokens, none with a space in it.
        weights: float32 [V], log(1 + texts / texts with the token), the inverse document frequency; a third for parts.
    """

    tokens: tuple[str, ...]
    weights: Floats

    @property
    def word_count(self) -> int:
        """How many of the tokens are whole words."""
        return sum(not _is_part(token) for token in self.tokens)

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Vocabulary:
        """Take the tokens that occur in most texts, at most MOST_TOKENS."""
        counts = collections.Counter(itertools.chain.from_iterable(set(tokenize(text)) for text in texts))
        kept = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_TOKENS]
        weights = [np.log1p(len(texts) / n) * (PART_WEIGHT if _is_part(token) else 1) for token, n in kept]
        return cls(tuple(token for token, _ in kept), np.array(weights, np.float32))

    def vectors(self, texts: Sequence[str]) -> sparse.csr_array:
        """Turn texts into vectors of length 1: the square root of each token's count times the token's weight.

        Returns:
            float32 [N, V]; a text without a known token is 0.
        """
        place = {token: i for i, token in enumerate(self.tokens)}
        counted = [collections.Counter(place[t] for t in tokenize(text) if t in place) for text in texts]
        starts = np.cumsum([0, *map(len, counted)])
        pairs = [pair for counts in counted for pair in sorted(counts.items())]  # sums do not depend on words' order
        columns, counts = np.array(pairs, np.int64).reshape(-1, 2).T
        values = np.sqrt(counts, dtype=np.float32) * self.weights[columns]
        rows = np.repeat(np.arange(len(texts)), np.diff(starts))
        lengths = np.sqrt(np.bincount(rows, values.astype(np.float64) ** 2, len(texts)))
        return sparse.csr_array(
            ((values / lengths[rows]).astype(np.float32), columns, starts), (len(texts), len(place))
        )


@dataclasses.dataclass(frozen=True)
class TextHead:
    """Turns texts into the activations of images that they describe.

    Args:
        vocabulary: of V tokens.
        heads: segment name -> affine map [V, bits], in the order of the code spec.
    """

    vocabulary: Vocabulary
    heads: Mapping[str, HashHead]

    def activations(self, x: sparse.csr_array) -> dict[str, Floats]:
        """What the bits are the signs of: segment name -> float32 [N, bits], of the vocabulary's vectors [N, V]."""
        return {name: head.activations(x) for name, head in self.heads.items()}

    def shifted(self, means: Mapping[str, NDArray]) -> TextHead:
        """The head for images whose activations are `means` less, segment name -> [bits]; see `HashHead.shifted`."""
        moved = {name: self.heads[name].shifted(mean) for name, mean in means.items()}
        return dataclasses.replace(self, heads={**self.heads, **moved})


def fit_text(texts: Sequence[Iterable[str]], activations: Mapping[str, Floats]) -> TextHead | None:
    """Ridge regression of the images' activations on the texts that describe them.

    Args:
        texts: of each of N images, any number.
        activations: segment name -> float32 [N, bits].

    Returns:
        The head; None if no text has a word.
    """
    rows = np.array([i for i, several in enumerate(texts) for _ in several], np.int64)
    flat = [text for several in texts for text in several]
    vocabulary = Vocabulary.fit(flat)
    if not vocabulary.tokens:
        return None
    x = vocabulary.vectors(flat).astype(np.float64)
    products = (x.T @ x).toarray()
    products[np.diag_indices_from(products)] += RIDGE
    targets = np.concatenate([a[rows] for a in activations.values()], axis=1, dtype=np.float64)
    mean = targets.mean(axis=0)
    weights = np.linalg.solve(products, x.T @ (targets - mean)).astype(np.float32)
    ends = np.cumsum([a.shape[1] for a in activations.values()])[:-1]
    parts = zip(np.split(weights, ends, axis=1), np.split(mean.astype(np.float32), ends), strict=True)
    return TextHead(vocabulary, {name: HashHead(*part) for name, part in zip(activations, parts, strict=True)})
