"""Translator between two generated languages: the machine translation experiment of the PBT paper, small and offline.

As in section 4.2 of Jaderberg et al. (2017, arXiv 1711.09846), a Transformer is trained under a learning rate and three
dropout rates, and the fitness is the BLEU of greedy translations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from pbtrl.errors import MissingPackageError
from pbtrl.trainables.grammar import Language, Pair, Words
from pbtrl.trainables.torch_trainable import TorchTrainable, minimize, seeded, set_values
from pbtrl.trainables.transformer import HEADS, Transformer

PAD, BEGIN, END, UNKNOWN = range(4)  # tokens
SENTENCES = 200  # of an evaluation
LONGER = 4  # most tokens by which a translation is longer than its source
Dropout = Annotated[float, Ge(0), Lt(1)]


class Vocabulary:
    """The words of one language; they are tokens from 4 on."""

    def __init__(self, sentences: Iterable[Words]) -> None:
        self.words = ["<pad>", "<begin>", "<end>", "<unknown>", *sorted({word for s in sentences for word in s})]
        self._tokens = {word: token for token, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, sentences: Iterable[Words]) -> Tensor:
        """Padded tokens [N, T] of sentences, each with its begin and its end."""
        rows = ([BEGIN, *(self._tokens.get(word, UNKNOWN) for word in sentence), END] for sentence in sentences)
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)

    def decode(self, tokens: Tensor) -> list[Words]:
        """Words of each row of tokens [N, T] up to its end; rows have no begin."""
        rows = (row[: row.index(END)] if END in row else row for row in tokens.tolist())
        return [tuple(self.words[token] for token in row) for row in rows]


@dataclass(frozen=True)
class Corpus:
    """Sentences for training (also as tokens [N, T]) and for the fitness; those for the score are drawn when needed."""

    language: Language
    training: list[Pair]
    validation: list[Pair]
    source: Vocabulary
    target: Vocabulary
    tokens: tuple[Tensor, Tensor]
    seen: frozenset[Words]

    def fresh(self, rng: np.random.Generator) -> list[Pair]:
        """Draw sentences that are in neither part."""
        return self.language.pairs(SENTENCES, rng, self.seen)


class Translator(TorchTrainable):
    """A step is a minibatch. The fitness is the BLEU on validation sentences, the score that on fresh sentences.

    Args:
        rng: generator of the initial weights.
        shared: the sentences.
        width: features of a token.
        layers: layers of the encoder, and of the decoder.
        batch_size: sentence pairs of a minibatch.
        learning_rate: of Adam.
        attention_dropout: share of the attention weights that are dropped.
        residual_dropout: share of the features that are dropped from embeddings and from outputs of a layer's parts.
        relu_dropout: share of the hidden features of feed-forward networks that are dropped.
        label_smoothing: share of the target probability that is spread over all words.
    """

    metric: ClassVar = "BLEU"
    tunable: ClassVar = (
        "learning_rate", "attention_dropout", "residual_dropout", "relu_dropout", "label_smoothing",
    )  # fmt: skip
    structural: ClassVar = ("width", "layers")
    max_steps_per_call: ClassVar = 10

    def __init__(
        self, rng: np.random.Generator, shared: Corpus, *,
        width: Annotated[int, Gt(0), MultipleOf(HEADS)] = 48,
        layers: Annotated[int, Ge(1)] = 2,
        batch_size: Annotated[int, Ge(1)] = 64,
        learning_rate: Annotated[float, Gt(0)] = 1e-2,
        attention_dropout: Dropout = 0.1,
        residual_dropout: Dropout = 0.1,
        relu_dropout: Dropout = 0.1,
        label_smoothing: Annotated[float, Ge(0), Le(1)] = 0.0,
    ) -> None:  # fmt: skip
        self._corpus, self._batch_size, self._bleu = shared, batch_size, _bleu()
        with seeded(rng):
            self._network = Transformer(len(shared.source), len(shared.target), width, layers)
        self._adam = torch.optim.Adam(self._network.parameters(), lr=learning_rate, betas=(0.9, 0.98))
        fixed = {
            "learning_rate": learning_rate, "attention_dropout": attention_dropout,
            "residual_dropout": residual_dropout, "relu_dropout": relu_dropout, "label_smoothing": label_smoothing,
        }  # fmt: skip
        super().__init__({"network": self._network}, {"adam": self._adam}, fixed)

    @classmethod
    def prepare(cls, seed: int, *, pairs: Annotated[int, Ge(1), Le(100_000)] = 5600) -> Corpus:
        """Draw the sentences, which are the same for all seeds; `pairs` is the number of those for training."""
        language, rng = Language(), np.random.default_rng(0)
        drawn = language.pairs(SENTENCES + pairs, rng)
        validation, training = drawn[:SENTENCES], drawn[SENTENCES:]
        sources, targets = zip(*training, strict=True)
        source, target = Vocabulary(sources), Vocabulary(targets)
        tokens = source.encode(sources), target.encode(targets)
        return Corpus(language, training, validation, source, target, tokens, frozenset(s for s, _ in drawn))

    @override
    def step(self, hyperparameters: Mapping[str, Any]) -> dict[str, Tensor]:
        h = hyperparameters
        set_values(self._adam, lr=h["learning_rate"])
        for name in ("attention_dropout", "residual_dropout", "relu_dropout"):
            getattr(self._network, name).p = h[name]
        rows = torch.randint(len(self._corpus.training), (self._batch_size,))
        source, target = (trimmed(tokens[rows]) for tokens in self._corpus.tokens)
        logits = self._network(source, source != PAD, target[:, :-1])
        loss = cross_entropy(
            logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD, label_smoothing=h["label_smoothing"]
        )
        minimize(self._adam, loss, max_norm=1.0)
        return {"loss": loss.detach()}

    @override
    def score(self, held_out: bool) -> float:
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        pairs = self._corpus.fresh(rng) if held_out else self._corpus.validation
        sources, references = zip(*pairs, strict=True)
        return self.bleu(self.translate(sources), references)

    def bleu(self, translations: Iterable[Words], references: Iterable[Words]) -> float:
        """BLEU of a corpus, in percent (Papineni et al. 2002)."""
        score = self._bleu.corpus_score([" ".join(t) for t in translations], [[" ".join(r) for r in references]])
        return float(score.score)

    def translate(self, sentences: Sequence[Words]) -> list[Words]:
        """Translate, taking the most probable word at each place."""
        source = self._corpus.source.encode(sentences)
        real = source != PAD
        encoded = self._network.encode(source, real)
        target = torch.full((len(source), 1), BEGIN)
        ended = torch.zeros(len(source), dtype=torch.bool)
        while not ended.all() and target.shape[1] < source.shape[1] + LONGER:
            following = self._network.logits(self._network.decode(target, encoded, real)[:, -1]).argmax(-1)
            target = torch.cat([target, following[:, None]], -1)
            ended |= following == END
        return self._corpus.target.decode(target[:, 1:])


def trimmed(tokens: Tensor) -> Tensor:
    """Remove the columns of tokens [N, T] that are padding only."""
    return tokens[:, : int((tokens != PAD).any(0).sum())]


def _bleu() -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ModuleNotFoundError as error:
        raise MissingPackageError("translator", "sacrebleu", "trainables", ("trainable", "name")) from error
    return BLEU(tokenize="none", force=True)
