"""Texts as vectors and the regression behind them: compared with plain formulas, least squares and what is known."""

import collections
import doctest
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing_model.heads import text
from hashing_model.heads.text import RIDGE, Vocabulary, fit_text, tokenize

TEXTS = ['a red apple', 'green apples', 'Red car, red bus', 'car', '赤い車', 'naïve Café_bar 42']
WORDS = st.lists(st.sampled_from(['red', 'apple', 'apples', 'bus', 'x', '42', '赤い車', 'unheard', '!']), max_size=6)


def test_the_example():
    assert doctest.testmod(text) == (0, 1)


def test_words_are_found_without_case_signs_and_forms():
    assert [t for t in tokenize('Café_BAR—ﬁne №7') if t[0] != '~'] == ['café', 'bar', 'fine', 'no7']
    assert tokenize('x') == ['x']
    assert tokenize('?! _') == []
    assert [t for t in tokenize('हिन्दी की') if t[0] != '~'] == ['हिन्दी', 'की']  # vowel signs are no letters
    assert tokenize('ab') == ['ab']  # its only part would be itself
    assert len(tokenize('a ' * 10_000)) == text.MOST_LETTERS / 2
    assert tokenize('Cafe\N{COMBINING ACUTE ACCENT}') == tokenize('CAFÉ')


def test_a_word_is_no_part_of_another():
    known = Vocabulary.fit(['pineapple'])
    assert known.word_count == 1
    assert [known.tokens[i] for i in known.vectors(['pine']).indices] == ['~<pin', '~pine']


@given(st.lists(WORDS.map(' '.join), max_size=5))
def test_vectors_are_those_of_the_formula_whatever_stands_beside(texts):
    known = Vocabulary.fit(TEXTS)
    found = known.vectors(texts).toarray()
    assert found.dtype == np.float32
    assert found.shape == (len(texts), len(known.tokens))
    for row, said in zip(found, texts, strict=True):
        counts = collections.Counter(tokenize(said))
        having = [sum(t in tokenize(one) for one in TEXTS) for t in known.tokens]
        wanted = np.array(
            [
                counts[t] ** 0.5 * np.log(1 + 6 / n) / (3 if t[0] == '~' else 1)
                for t, n in zip(known.tokens, having, strict=True)
            ]
        )
        wanted /= np.linalg.norm(wanted) or 1
        np.testing.assert_allclose(row, wanted, atol=1e-6)
        alone = known.vectors([said, ' '.join(reversed(said.split()))])
        np.testing.assert_array_equal(alone.toarray(), [row, row])
        np.testing.assert_array_equal(*np.split(alone.indices, 2))


def test_the_tokens_of_most_texts_are_kept(monkeypatch):
    monkeypatch.setattr(text, 'MOST_TOKENS', 3)
    assert Vocabulary.fit(['b a', 'b a', 'c b', 'd']).tokens == ('b', 'a', 'c')


def some_images(rng):
    """Two texts, one or none for each of 30 images, and activations of two segments."""
    said = [[TEXTS[i] for i in rng.choice(6, rng.integers(3), replace=False)] for _ in range(30)]
    return said, {'fine': rng.normal(size=(30, 8)).astype(np.float32), 'look': rng.normal(size=(30, 5)) + 2}


def test_the_regression_is_that_of_least_squares():
    said, activations = some_images(np.random.default_rng(1))
    head = fit_text(said, activations)
    rows = [i for i, several in enumerate(said) for _ in several]
    x = head.vocabulary.vectors(list(itertools.chain(*said))).toarray().astype(np.float64)
    assert {name: len(y) for name, y in head.activations(head.vocabulary.vectors(['bus'])).items()} == {
        'fine': 1,
        'look': 1,
    }
    for name, y in activations.items():
        mean = y[rows].mean(axis=0)
        ridge = np.sqrt(RIDGE) * np.eye(x.shape[1])
        wanted = np.linalg.lstsq(
            np.concatenate([x, ridge]), np.concatenate([y[rows] - mean, np.zeros((x.shape[1], y.shape[1]))]), rcond=None
        )[0]
        np.testing.assert_allclose(head.heads[name].weights, wanted, atol=1e-5)
        np.testing.assert_allclose(head.heads[name].offset, mean, atol=1e-5)


def test_thresholds_move_with_those_of_the_images():
    said, activations = some_images(np.random.default_rng(2))
    means = {name: y.mean(axis=0) for name, y in activations.items()}
    moved = fit_text(said, activations).shifted(means)
    wanted = fit_text(said, {name: y - means[name] for name, y in activations.items()})
    x = moved.vocabulary.vectors(TEXTS)
    for name, found in moved.activations(x).items():
        np.testing.assert_allclose(found, wanted.activations(x)[name], atol=1e-5)


def test_words_that_were_never_together_are_understood_together():
    rng = np.random.default_rng(3)
    meanings = {word: rng.normal(size=64) for word in ('red', 'green', 'blue', 'apple', 'car', 'house')}
    pairs = [(a, b) for a in ('red', 'green', 'blue') for b in ('apple', 'car', 'house')]
    shown = {pair: sum(meanings[word] for word in pair) for pair in pairs}
    known = [pair for pair in pairs if pair != ('green', 'car')] * 20
    activations = np.array([shown[pair] + rng.normal(size=64) / 2 for pair in known], np.float32)
    head = fit_text([[' '.join(pair)] for pair in known], {'fine': activations})
    (asked,) = head.activations(head.vocabulary.vectors(['car green']))['fine'] >= 0
    agree = {pair: ((activation >= 0) == asked).mean() for pair, activation in shown.items()}
    assert max(agree, key=agree.get) == ('green', 'car')


@pytest.mark.parametrize('said', [[], [[], []], [[''], ['?!', '_']]])
def test_without_a_word_there_is_nothing_to_learn(said):
    assert fit_text(said, {'fine': np.ones((len(said), 4), np.float32)}) is None
