"""The German-like side agrees in gender, case and number, and its words are in order; drawn sentences differ."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from pbtrl.trainables.grammar import Language, Noun, Pair, Verb, clause, noun_phrase

DOG = Noun(("dog", "Hund"), "masculine", "e")
WOMAN = Noun(("woman", "Frau"), "feminine", "en")
CHILD = Noun(("child", "Kind"), "neuter", "er")
CAR = Noun(("car", "Auto"), "neuter", "s")
CASES: tuple[Any, ...] = ("nominative", "accusative", "dative", "genitive")
SMALL = ("small", "klein")


def said(pair: Pair) -> str:
    return f"{' '.join(pair[0])} = {' '.join(pair[1])}"


@pytest.mark.parametrize(
    ("noun", "definite", "plural", "english", "german"),
    [
        (DOG, True, False, "the small dog",
         ["der kleine Hund", "den kleinen Hund", "dem kleinen Hund", "des kleinen Hunds"]),
        (WOMAN, True, False, "the small woman",
         ["die kleine Frau", "die kleine Frau", "der kleinen Frau", "der kleinen Frau"]),
        (CHILD, True, False, "the small child",
         ["das kleine Kind", "das kleine Kind", "dem kleinen Kind", "des kleinen Kinds"]),
        (DOG, False, False, "a small dog",
         ["ein kleiner Hund", "einen kleinen Hund", "einem kleinen Hund", "eines kleinen Hunds"]),
        (WOMAN, False, False, "a small woman",
         ["eine kleine Frau", "eine kleine Frau", "einer kleinen Frau", "einer kleinen Frau"]),
        (CHILD, False, False, "a small child",
         ["ein kleines Kind", "ein kleines Kind", "einem kleinen Kind", "eines kleinen Kinds"]),
        (DOG, True, True, "the small dogs",
         ["die kleinen Hunde", "die kleinen Hunde", "den kleinen Hunden", "der kleinen Hunde"]),
        (WOMAN, True, True, "the small womans",
         ["die kleinen Frauen", "die kleinen Frauen", "den kleinen Frauen", "der kleinen Frauen"]),
        (CHILD, False, True, "small childs",
         ["kleine Kinder", "kleine Kinder", "kleinen Kindern", "kleiner Kinder"]),
        (CAR, False, True, "small cars",
         ["kleine Autos", "kleine Autos", "kleinen Autos", "kleiner Autos"]),
    ],
)  # fmt: skip
def test_endings_of_all_genders_cases_and_numbers(
    noun: Noun, definite: bool, plural: bool, english: str, german: list[str]
) -> None:
    for case, phrase in zip(CASES, german, strict=True):
        whole = noun_phrase(noun, case, plural=plural, definite=definite, adjective=SMALL)
        assert said(whole) == f"{english} = {phrase}"
        bare = noun_phrase(noun, case, plural=plural, definite=definite)
        without = " ".join(word for word in phrase.split() if not word.startswith("klein"))
        assert said(bare) == f"{english.replace('small ', '')} = {without}"


@pytest.mark.parametrize(
    ("plural", "perfect", "subordinate", "expected"),
    [
        (False, False, False, "the dog hits a child often = der Hund haut ein Kind oft"),
        (True, False, False, "the dogs hit a child often = die Hunde hauen ein Kind oft"),
        (False, True, False, "the dog has hited a child often = der Hund hat ein Kind oft gehauen"),
        (True, True, False, "the dogs have hited a child often = die Hunde haben ein Kind oft gehauen"),
        (False, False, True, "the dog hits a child often = der Hund ein Kind oft haut"),
        (True, False, True, "the dogs hit a child often = die Hunde ein Kind oft hauen"),
        (False, True, True, "the dog has hited a child often = der Hund ein Kind oft gehauen hat"),
        (True, True, True, "the dogs have hited a child often = die Hunde ein Kind oft gehauen haben"),
    ],
)
def test_order_of_words(plural: bool, perfect: bool, subordinate: bool, expected: str) -> None:
    subject = noun_phrase(DOG, "nominative", plural=plural, definite=True)
    direct = noun_phrase(CHILD, "accusative", plural=False, definite=False)
    verb = Verb(("hit", "hau"), "en", "accusative")
    kinds: Any = {"plural": plural, "perfect": perfect, "subordinate": subordinate}
    assert said(clause(subject, verb, direct, ("often", "oft"), **kinds)) == expected
    bare = expected.replace(" often", "").replace(" oft", "")
    assert said(clause(subject, verb, direct, **kinds)) == bare
    weak = Verb(("hit", "hau"), "t", "accusative")
    assert said(clause(subject, weak, direct, **kinds)) == bare.replace("gehauen", "gehaut")


def test_verbs_govern_the_case_of_their_object() -> None:
    """After a verb of the dative, no definite object has an article of the accusative, and the other way round."""
    language = Language()
    dative = {v.stems[1] + ending for v in language._verbs if v.case == "dative" for ending in ("t", "en")}
    accusative = {v.stems[1] + ending for v in language._verbs if v.case == "accusative" for ending in ("t", "en")}
    behind: dict[str, set[str]] = {"dative": set(), "accusative": set()}
    for _, german in language.pairs(2000, np.random.default_rng(0)):
        main = german[: german.index(",")] if "," in german else german
        for verb, after in pairwise(main):
            if verb in dative | accusative and after[0].islower():
                behind["dative" if verb in dative else "accusative"].add(after)
    articles = {"der", "die", "das", "den", "dem", "des", "ein", "eine", "einen", "einem", "einer", "eines"}
    assert behind["dative"] & articles == {"dem", "der", "den", "einem", "einer"}
    assert behind["accusative"] & articles == {"den", "die", "das", "einen", "eine", "ein"}


def test_weil_clauses_and_perfects_end_with_their_verb() -> None:
    language = Language()
    finite = {v.stems[1] + e for v in language._verbs for e in ("t", "en")} | {"hat", "haben"}
    participles = {f"ge{v.stems[1]}{v.participle}" for v in language._verbs}
    pairs = language.pairs(1000, np.random.default_rng(0))
    assert 200 < sum("weil" in german for _, german in pairs) < 300
    for english, german in pairs:
        assert ("because" in english) == ("weil" in german)
        if "weil" in german:
            main, reason = german[: german.index("weil") - 1], german[german.index("weil") + 1 :]
            assert german[len(main)] == ","
            assert reason[-1] in finite
            assert (reason[-1] in ("hat", "haben")) == (reason[-2] in participles)
        else:
            main = german
        assert bool({"hat", "haben"} & set(main)) == (main[-1] in participles)


def test_owners_are_in_the_genitive() -> None:
    articles = {"the": {"des", "der"}, "a": {"eines", "einer"}}
    pairs = [(e, g) for e, g in Language().pairs(1000, np.random.default_rng(0)) if "of" in e]
    assert 150 < len(pairs) < 300
    for english, german in pairs:
        if (article := english[english.index("of") + 1]) in articles:
            assert articles[article] & set(german)


def test_words_are_drawn_by_their_rank_and_are_always_the_same() -> None:
    language = Language()
    stems = [w.stems for w in (*language._nouns, *language._verbs)] + language._adjectives + language._adverbs
    assert len(stems) == 240
    assert len({word.lower() for pair in stems for word in pair}) == 480
    assert Language()._nouns == language._nouns
    assert {noun.gender for noun in language._nouns} == {"masculine", "feminine", "neuter"}
    assert {noun.plural for noun in language._nouns} == {"e", "en", "er", "s"}
    counts: Counter[str] = Counter()
    for english, _ in language.pairs(5000, np.random.default_rng(0)):
        counts.update(english)
    assert counts[language._adverbs[0][0]] / counts[language._adverbs[9][0]] == pytest.approx(10, rel=0.3)


def test_pairs_are_different_and_follow_the_generator() -> None:
    language = Language()
    one, same, other = (language.pairs(500, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert one == same != other
    sources = {english for english, _ in one}
    assert len(one) == len(sources) == 500
    rest = language.pairs(500, np.random.default_rng(0), sources)
    assert not sources & {english for english, _ in rest}
    assert len(rest) == 500
