"""Pairs of sentences in an English-like and a German-like language, drawn from a small grammar of invented words.

The German-like side has what makes German hard to translate into: articles, adjectives and nouns agree in gender, case
and number, verbs govern a case, the participle of a perfect comes last, and so does the finite verb after "weil". Words
are drawn by Zipf's law.

    the zwomels have propuned a flimock bridak because the prulak propuns the schwapocks
    die Pratele haben eine tretime Grelun getromockt , weil der Zwomun die Drepunen tromockt
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, product
from typing import Literal, TypeVar, get_args

import numpy as np

Words = tuple[str, ...]
Pair = tuple[Words, Words]
"""An English-like sentence or a part of one, and its translation."""
Stems = tuple[str, str]
"""An English-like word and the German-like one; both are empty where there is none."""
Case = Literal["nominative", "accusative", "dative", "genitive"]
Gender = Literal["masculine", "feminine", "neuter"]
Plural = Literal["e", "en", "er", "s"]
Participle = Literal["t", "en"]

_T = TypeVar("_T")
_DEFINITE = {  # by case: articles, and endings of the adjective behind them
    "masculine": ("der den dem des", "e en en en"),
    "feminine": ("die die der der", "e e en en"),
    "neuter": ("das das dem des", "e e en en"),
    "plural": ("die die den der", "en en en en"),
}
_INDEFINITE = {  # the plural has no article
    "masculine": ("ein einen einem eines", "er en en en"),
    "feminine": ("eine eine einer einer", "e e en en"),
    "neuter": ("ein ein einem eines", "es es en en"),
    "plural": ("", "e e en er"),
}


@dataclass(frozen=True)
class Noun:
    """A noun; `plural` is the German-like ending of its plural."""

    stems: Stems
    gender: Gender
    plural: Plural


@dataclass(frozen=True)
class Verb:
    """A verb, the ending of its German-like participle, and the case of its object."""

    stems: Stems
    participle: Participle
    case: Case


def noun_phrase(noun: Noun, case: Case, *, plural: bool, definite: bool, adjective: Stems = ("", "")) -> Pair:
    """Put article, adjective and noun together."""
    place = get_args(Case).index(case)
    articles, endings = (_DEFINITE if definite else _INDEFINITE)["plural" if plural else noun.gender]
    english, german = noun.stems
    if plural:
        english, german = english + "s", german + noun.plural
        german += "n" * (case == "dative" and german[-1] not in "ns")
    elif case == "genitive" and noun.gender != "feminine":
        german += "s"
    ending = endings.split()[place] if adjective[1] else ""
    article = "the" if definite else "a" * (not plural)
    german_article = articles.split()[place] if articles else ""
    return _words(article, adjective[0], english), _words(german_article, adjective[1] + ending, german)


def clause(
    subject: Pair, verb: Verb, direct: Pair, adverb: Stems = ("", ""), *, plural: bool, perfect: bool, subordinate: bool
) -> Pair:
    """Put subject, verb, object and adverb together; `plural` is the number of the subject."""
    english, german = verb.stems
    if perfect:
        verbs = ("have" if plural else "has", english + "ed")
        finite, participle = "haben" if plural else "hat", f"ge{german}{verb.participle}"
    else:
        verbs = (english + "s" * (not plural), "")
        finite, participle = german + ("en" if plural else "t"), ""
    first, last = ("", finite) if subordinate else (finite, "")
    return (
        _words(*subject[0], *verbs, *direct[0], adverb[0]),
        _words(*subject[1], first, *direct[1], adverb[1], participle, last),
    )


class Language:
    """Pair of languages; its words are always the same."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        onsets, ends = ("bl", "br", "dr", "fl", "gr", "kl", "pr", "tr", "schw", "zw"), ("ak", "el", "im", "ock", "un")
        words = rng.permutation(["".join(parts) for parts in product(onsets, "aeiou", "bdgklmpt", ends)]).tolist()
        stems = iter(zip(words[::2], words[1::2], strict=True))
        self._nouns = [
            Noun((e, g.capitalize()), _any_of(get_args(Gender), rng), _any_of(get_args(Plural), rng))
            for e, g in islice(stems, 120)
        ]
        self._verbs = [
            Verb(pair, _any_of(get_args(Participle), rng), "dative" if rng.random() < 0.25 else "accusative")
            for pair in islice(stems, 60)
        ]
        self._adjectives: list[Stems] = list(islice(stems, 40))
        self._adverbs: list[Stems] = list(islice(stems, 20))

    def pairs(self, count: int, rng: np.random.Generator, without: Collection[Words] = ()) -> list[Pair]:
        """Draw pairs with `count` different English-like sentences, none of which is in `without`."""
        result: dict[Words, Words] = {}
        while len(result) < count:
            english, german = self._sentence(rng)
            if english not in without:
                result[english] = german
        return list(result.items())

    def _sentence(self, rng: np.random.Generator) -> Pair:
        english, german = self._clause(rng, subordinate=False)
        if rng.random() < 0.25:
            reason = self._clause(rng, subordinate=True)
            return (*english, "because", *reason[0]), (*german, ",", "weil", *reason[1])
        return english, german

    def _clause(self, rng: np.random.Generator, *, subordinate: bool) -> Pair:
        plural, perfect = rng.random() < 0.3, rng.random() < 0.5
        verb = _by_rank(self._verbs, rng)
        subject = self._noun_phrase(rng, "nominative", plural=plural)
        direct = self._noun_phrase(rng, verb.case, plural=rng.random() < 0.3)
        adverb = _by_rank(self._adverbs, rng) if rng.random() < 0.4 else ("", "")
        return clause(subject, verb, direct, adverb, plural=plural, perfect=perfect, subordinate=subordinate)

    def _noun_phrase(self, rng: np.random.Generator, case: Case, *, plural: bool) -> Pair:
        noun, definite = _by_rank(self._nouns, rng), rng.random() < 0.6
        adjective = _by_rank(self._adjectives, rng) if rng.random() < 0.4 else ("", "")
        english, german = noun_phrase(noun, case, plural=plural, definite=definite, adjective=adjective)
        if case != "genitive" and rng.random() < 0.1:
            owner = self._noun_phrase(rng, "genitive", plural=rng.random() < 0.3)
            return (*english, "of", *owner[0]), (*german, *owner[1])
        return english, german


def _words(*words: str) -> Words:
    return tuple(word for word in words if word)


def _any_of(choices: Sequence[_T], rng: np.random.Generator) -> _T:
    return choices[int(rng.integers(len(choices)))]


def _by_rank(words: Sequence[_T], rng: np.random.Generator) -> _T:
    """Draw the word of rank k with a probability proportional to 1 / k (Zipf's law)."""
    return words[bisect(_zipf(len(words)), rng.random())]


@cache
def _zipf(count: int) -> list[float]:
    total = np.cumsum(1.0 / np.arange(1, count + 1))
    cumulative: list[float] = (total / total[-1]).tolist()
    return cumulative
