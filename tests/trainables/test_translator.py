"""Translator: what the network may see, greedy decoding, BLEU, data, and hyperparameters in flight."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pbtrl.errors import MissingPackageError
from pbtrl.testing.trainables import TrainableConformance
from pbtrl.trainables import translator as module
from pbtrl.trainables.grammar import Words
from pbtrl.trainables.transformer import Transformer
from pbtrl.trainables.translator import BEGIN, END, PAD, UNKNOWN, Corpus, Translator, Vocabulary, trimmed

SMALL: dict[str, Any] = {"width": 8, "layers": 1, "batch_size": 4}


@cache
def corpus(pairs: int = 100) -> Corpus:
    return Translator.prepare(0, pairs=pairs)


def small(**keys: Any) -> Translator:
    return Translator(np.random.default_rng(0), corpus(), **{**SMALL, **keys})


@pytest.fixture
def few_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGER", -18)  # short translations, so that an untrained model answers quickly


@pytest.mark.usefixtures("few_sentences")
class TestTranslator(TrainableConformance):
    hyperparameters: ClassVar = {"learning_rate": 0.05, "attention_dropout": 0.2, "label_smoothing": 0.1}
    steps: ClassVar = 2

    def make(self, rng: np.random.Generator) -> Translator:
        return Translator(rng, corpus(), **SMALL)


# Data


def test_sentences_of_all_sets_are_different() -> None:
    data = corpus()
    training, validation = ({s for s, _ in pairs} for pairs in (data.training, data.validation))
    one, other = ({s for s, _ in data.fresh(np.random.default_rng(seed))} for seed in (0, 1))
    assert (len(training), len(validation), len(one), len(other)) == (100, 200, 200, 200)
    assert not training & validation
    assert not one & (training | validation)
    assert len(one & other) < 10
    assert Translator.prepare(1, pairs=100).validation == data.validation


def test_tokens_are_the_sentences_of_training() -> None:
    data = corpus()
    for side, vocabulary, tokens in ((0, data.source, data.tokens[0]), (1, data.target, data.tokens[1])):
        assert (tokens[:, 0] == BEGIN).all()
        assert vocabulary.decode(tokens[:, 1:]) == [pair[side] for pair in data.training]
        assert not (tokens == UNKNOWN).any()


def test_vocabulary_pads_and_knows_only_its_words() -> None:
    vocabulary = Vocabulary([("b", "a"), ("c",)])
    tokens = vocabulary.encode([("a",), ("c", "z", "b")])
    assert tokens.tolist() == [[BEGIN, 4, END, PAD, PAD], [BEGIN, 6, UNKNOWN, 5, END]]
    assert vocabulary.decode(torch.tensor([[4, END, 5], [6, UNKNOWN, 5]])) == [("a",), ("c", "<unknown>", "b")]
    assert trimmed(tokens[:1]).tolist() == [[BEGIN, 4, END]]
    assert trimmed(tokens).tolist() == tokens.tolist()


# The network


def network(layers: int = 2) -> Transformer:
    torch.manual_seed(0)
    return Transformer(20, 30, 16, layers).eval()


def test_a_padded_batch_gives_the_logits_of_single_sentences() -> None:
    model = network()
    source = torch.tensor([[1, 5, 6, 2, PAD, PAD], [1, 7, 8, 9, 10, 2], [1, 4, 2, PAD, PAD, PAD]])
    target = torch.tensor([[1, 11, 12, 13], [1, 14, PAD, PAD], [1, 15, 16, PAD]])
    batch = model(source, source != PAD, target)
    for row in range(3):
        alone, prefix = trimmed(source[row : row + 1]), trimmed(target[row : row + 1])
        single = model(alone, alone != PAD, prefix)[0]
        torch.testing.assert_close(batch[row, : prefix.shape[1]], single, rtol=1e-5, atol=1e-5)


def test_the_decoder_does_not_look_ahead_and_reads_all_before() -> None:
    model = network()
    source = torch.tensor([[1, 5, 6, 2]])
    target = torch.tensor([[1, 11, 12, 13, 14]])
    before = model(source, source != PAD, target)
    for place in range(5):
        changed = target.clone()
        changed[0, place] = 20
        same = (model(source, source != PAD, changed) == before).all(-1)[0].tolist()
        assert same == [at < place for at in range(5)]


def test_every_source_token_is_read_at_its_place() -> None:
    model = network()
    source, target = torch.tensor([[1, 5, 6, 2]]), torch.tensor([[1, 11]])
    logits = model(source, source != PAD, target)
    for other in ([1, 7, 6, 2], [1, 5, 7, 2], [1, 6, 5, 2], [1, 5, 6, 7]):
        tokens = torch.tensor([other])
        assert not torch.allclose(model(tokens, tokens != PAD, target), logits, atol=1e-4)


def test_the_network_is_that_of_torch() -> None:
    """Copy all weights into nn.Transformer's layers, which stand for an independent implementation."""
    model = network()
    width = 16
    kinds: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True}
    norms = nn.LayerNorm(width), nn.LayerNorm(width)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(width, 4, 2 * width, **kinds), 2, norms[0], enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(width, 4, 2 * width, **kinds), 2, norms[1])

    def attention(own: Any, other: Any) -> None:
        parts = (own.query, own.key, own.value)
        other.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        other.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        other.out_proj.load_state_dict(own.out.state_dict())

    with torch.no_grad():
        for own, other in zip([*model.encoder, *model.decoder], [*encoder.layers, *decoder.layers], strict=True):
            attention(own.among, other.self_attn)
            if own.to_source is not None:
                attention(own.to_source, other.multihead_attn)
            other.linear1.load_state_dict(own.feed_forward[0].state_dict())
            other.linear2.load_state_dict(own.feed_forward[-1].state_dict())
            for place, norm in enumerate(own.norms):
                nn.init.normal_(norm.weight)  # so that it matters which is which
                getattr(other, f"norm{place + 1}").load_state_dict(norm.state_dict())
        nn.init.normal_(model.encoder_norm.weight)
        norms[0].load_state_dict(model.encoder_norm.state_dict())
        norms[1].load_state_dict(model.decoder_norm.state_dict())
    source = torch.tensor([[1, 5, 6, 2, PAD], [1, 7, 8, 9, 2]])
    target = torch.tensor([[1, 11, 12], [1, 14, 15]])

    def embed(table: Tensor, tokens: Tensor) -> Tensor:
        x = table[tokens] * 4.0  # the root of the width
        for place in range(tokens.shape[1]):
            for pair in range(width // 2):
                angle = place / 10000 ** (2 * pair / width)
                x[:, place, 2 * pair] += math.sin(angle)
                x[:, place, 2 * pair + 1] += math.cos(angle)
        return x

    with torch.no_grad():
        padding = source == PAD
        memory = encoder(embed(model.source_embedding, source), src_key_padding_mask=padding)
        ahead = torch.ones(3, 3, dtype=torch.bool).triu(1)
        features = decoder(embed(model.target_embedding, target), memory, ahead, memory_key_padding_mask=padding)
        expected = features @ model.target_embedding.T
        torch.testing.assert_close(model(source, ~padding, target), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["attention_dropout", "residual_dropout", "relu_dropout"])
def test_each_dropout_sits_at_its_places(kind: str) -> None:
    """Count the calls in 2 + 2 layers: their shapes tell what is dropped."""
    model = network()
    shapes: list[tuple[int, ...]] = []
    getattr(model, kind).register_forward_hook(lambda _, inputs, out: shapes.append(tuple(inputs[0].shape)))
    source = torch.ones(3, 5, dtype=torch.long)
    model(source, source != PAD, torch.ones(3, 7, dtype=torch.long))
    expected = {
        "attention_dropout": {(3, 4, 5, 5): 2, (3, 4, 7, 7): 2, (3, 4, 7, 5): 2},
        "residual_dropout": {(3, 5, 16): 1 + 2 * 2, (3, 7, 16): 1 + 2 * 3},
        "relu_dropout": {(3, 5, 32): 2, (3, 7, 32): 2},
    }
    assert Counter(shapes) == expected[kind]


# Translations and their score


def slowly(model: Translator, sentence: Words, most: int) -> Words:
    """Translate one sentence word by word."""
    data, words = model._corpus, [BEGIN]
    source = data.source.encode([sentence])
    while len(words) < most:
        logits = model._network(source, torch.ones_like(source, dtype=torch.bool), torch.tensor([words]))
        words.append(int(logits[0, -1].argmax()))
        if words[-1] == END:
            break
    return tuple(data.target.words[word] for word in words[1:] if word != END)


@pytest.fixture(scope="module")
def trained() -> Translator:
    return small(width=16, batch_size=32)


def test_learns_in_a_few_dozen_steps(trained: Translator) -> None:
    sources, targets = zip(*trained._corpus.training, strict=True)
    losses = [trained.train(10, {"learning_rate": 2e-2}, np.random.default_rng(seed))["loss"] for seed in range(4)]
    assert losses[0] > 4.5
    assert losses[-1] < 4.0
    with torch.inference_mode():
        assert trained.bleu(trained.translate(sources), targets) > 0.1  # 0.007 before


def test_greedy_decoding_against_a_slow_loop(trained: Translator) -> None:
    """In the model that learned: one that did not repeats one word."""
    sentences = [source for source, _ in trained._corpus.training[:12]]
    trained._network.eval()
    with torch.inference_mode():
        most = max(map(len, sentences)) + 2 + module.LONGER
        translations = trained.translate(sentences)
        assert translations == [slowly(trained, sentence, most) for sentence in sentences]
    assert len(set(map(len, translations))) > 2


def test_decoding_stops_when_all_sentences_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    model, words = small(), iter([[END, 5], [6, END]])  # a third word would raise
    monkeypatch.setattr(model._network, "logits", lambda _: nn.functional.one_hot(torch.tensor(next(words)), 9))
    translations = model.translate([source for source, _ in corpus().training[:2]])
    assert translations == [(), (corpus().target.words[5],)]


def bleu_by_hand(translations: list[Words], references: list[Words]) -> float:
    """BLEU-4 of a corpus without smoothing (Papineni et al. 2002, section 2.3)."""
    precisions = []
    for n in range(1, 5):
        matches = total = 0
        for translation, reference in zip(translations, references, strict=True):
            ours, theirs = (
                Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
                for words in (translation, reference)
            )
            matches, total = matches + (ours & theirs).total(), total + ours.total()
        precisions.append(matches / total)
    ours, theirs = sum(map(len, translations)), sum(map(len, references))
    penalty = min(1.0, math.exp(1.0 - theirs / ours))
    return 100.0 * penalty * math.prod(precisions) ** 0.25


def test_bleu_of_references_is_100_and_follows_the_paper() -> None:
    model, references = small(), [target for _, target in corpus().validation]
    assert model.bleu(references, references) == pytest.approx(100.0)
    cut = [words[: -1 - (i % 2)] if i % 3 else ("<unknown>", *words) for i, words in enumerate(references)]
    assert 10.0 < model.bleu(cut, references) < 95.0
    assert model.bleu(cut, references) == pytest.approx(bleu_by_hand(cut, references))
    lower = [tuple(word.lower() for word in words) for words in references]
    assert model.bleu(lower, references) == pytest.approx(bleu_by_hand(lower, references))
    assert model.bleu([()] * 200, references) == 0.0


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    text = 'trainable.name: translator needs sacrebleu, which is not installed: pip install "pbtrl[trainables]"'
    with pytest.raises(MissingPackageError, match=re.escape(text)):
        small()


def test_fitness_is_on_validation_sentences_and_the_score_on_fresh_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = small(), []
    monkeypatch.setattr(model, "translate", lambda sentences: asked.append(sentences) or sentences)
    monkeypatch.setattr(model, "bleu", lambda translations, references: float(len(list(references))))
    assert model.evaluate(np.random.default_rng(0)) == 200.0
    assert list(asked[0]) == [source for source, _ in corpus().validation]
    for seed in (0, 0, 1):
        assert model.test(np.random.default_rng(seed)) == 200.0
    assert asked[1] == asked[2] != asked[3]
    assert not set(asked[1]) & corpus().seen


# Hyperparameters


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 0.03}, {"attention_dropout": 0.4}, {"residual_dropout": 0.4}, {"relu_dropout": 0.4},
        {"label_smoothing": 0.3},
    ],
    ids=lambda values: next(iter(values)),
)  # fmt: skip
def test_every_hyperparameter_has_an_effect_in_flight(values: dict[str, Any]) -> None:
    def weights(model: Translator, searched: dict[str, Any]) -> np.ndarray:
        model.train(2, searched, np.random.default_rng(1))
        return model.state_dict()["network.target_embedding"]

    changed, same = small(), small()
    after = weights(changed, values)
    assert not np.array_equal(after, weights(same, {}))
    np.testing.assert_array_equal(after, weights(small(**values), {}))
    name, value = next(iter(values.items()))
    if name.endswith("dropout"):
        assert getattr(changed._network, name).p == value
        changed.train(1, {}, np.random.default_rng(2))  # back to the fixed value
        assert getattr(changed._network, name).p == 0.1


def test_a_stop_waits_for_less_than_a_second() -> None:
    assert 1 <= Translator.max_steps_per_call <= 20  # a step takes up to 50 ms


def test_all_tunable_names_are_keys() -> None:
    assert set(Translator.tunable) == set(small()._values)


def test_a_step_is_adam_on_the_clipped_gradient_of_the_smoothed_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    none = {"attention_dropout": 0.0, "residual_dropout": 0.0, "relu_dropout": 0.0}
    model, twin, rows = small(), small(), torch.tensor([7, 3, 50, 21])
    for each in (model, twin):
        each._network.target_embedding.data.mul_(3.0)  # so that the gradient is large enough to be clipped
    monkeypatch.setattr(torch, "randint", lambda *sizes: {(100, (4,)): rows}[sizes])
    loss = model.step({**none, "learning_rate": 0.01, "label_smoothing": 0.2})["loss"]
    source, target = (trimmed(tokens[rows]) for tokens in corpus().tokens)
    log = twin._network(source, source != PAD, target[:, :-1]).log_softmax(-1)
    places = [(n, t) for n in range(4) for t in range(target.shape[1] - 1) if target[n, t + 1] != PAD]
    slow = -sum(0.8 * log[n, t, target[n, t + 1]] + 0.2 * log[n, t].mean() for n, t in places) / len(places)
    assert float(loss) == pytest.approx(slow.item(), rel=1e-5)
    slow.backward()
    gradients = [p.grad for p in twin._network.parameters()]
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None))
    assert norm > 1.0
    for (name, ours), gradient in zip(model._network.named_parameters(), gradients, strict=True):
        assert gradient is not None
        first = model._adam.state[ours]["exp_avg"]
        torch.testing.assert_close(first, 0.1 * gradient / norm, rtol=1e-3, atol=1e-7, msg=name)
        second = model._adam.state[ours]["exp_avg_sq"]
        torch.testing.assert_close(second, 0.02 * (gradient / norm).square(), rtol=1e-3, atol=1e-10, msg=name)
