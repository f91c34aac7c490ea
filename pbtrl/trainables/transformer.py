"""Transformer for translation (Vaswani et al. 2017, arXiv 1706.03762), normalized before each part of a layer.

The three dropouts of Tensor2Tensor can be changed at any time: of the attention weights, of what is added to the
residual stream, and behind the ReLU. Target words have one embedding, which is also the output layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from typing_extensions import override

HEADS = 4
MAX_TOKENS = 64  # tokens of a sentence


class Transformer(nn.Module):
    """Encoder and decoder with as many layers each.

    Args:
        source_words: size of the source vocabulary.
        target_words: size of the target vocabulary.
        width: features of a token.
        layers: layers of the encoder, and of the decoder.

    Attributes:
        attention_dropout: on the attention weights, after the softmax.
        residual_dropout: on the output of each part of a layer, and on the embeddings.
        relu_dropout: on the hidden features of the feed-forward networks.
    """

    def __init__(self, source_words: int, target_words: int, width: int, layers: int) -> None:
        super().__init__()
        self.attention_dropout, self.residual_dropout, self.relu_dropout = (nn.Dropout(0.0) for _ in range(3))
        self.source_embedding = nn.Parameter(torch.randn(source_words, width) / math.sqrt(width))
        self.target_embedding = nn.Parameter(torch.randn(target_words, width) / math.sqrt(width))
        dropouts = (self.attention_dropout, self.residual_dropout, self.relu_dropout)
        self.encoder = nn.ModuleList([_Layer(width, *dropouts, reads_source=False) for _ in range(layers)])
        self.decoder = nn.ModuleList([_Layer(width, *dropouts, reads_source=True) for _ in range(layers)])
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.register_buffer("positions", _positions(width), persistent=False)
        self.register_buffer("earlier", torch.ones(MAX_TOKENS, MAX_TOKENS, dtype=torch.bool).tril(), persistent=False)

    def encode(self, source: Tensor, real: Tensor) -> Tensor:
        """Features [N, S, width] of source tokens [N, S], of which those that are not `real` [N, S] are padding."""
        x = self._embed(self.source_embedding, source)
        for layer in self.encoder:
            x = layer(x, real[:, None, None])
        encoded: Tensor = self.encoder_norm(x)
        return encoded

    def decode(self, target: Tensor, encoded: Tensor, real: Tensor) -> Tensor:
        """Features [N, T, width] that predict the token after each of the target tokens [N, T]."""
        x = self._embed(self.target_embedding, target)
        length = target.shape[1]
        for layer in self.decoder:
            x = layer(x, self.get_buffer("earlier")[:length, :length], encoded, real[:, None, None])
        decoded: Tensor = self.decoder_norm(x)
        return decoded

    def logits(self, decoded: Tensor) -> Tensor:
        """Logits of the target words."""
        return linear(decoded, self.target_embedding)

    @override
    def forward(self, source: Tensor, real: Tensor, target: Tensor) -> Tensor:
        """Logits [N, T, target words] of the token after each of the target tokens [N, T]."""
        return self.logits(self.decode(target, self.encode(source, real), real))

    def _embed(self, table: Tensor, tokens: Tensor) -> Tensor:
        x = embedding(tokens, table) * math.sqrt(table.shape[1]) + self.get_buffer("positions")[: tokens.shape[1]]
        dropped: Tensor = self.residual_dropout(x)
        return dropped


class _Layer(nn.Module):
    """Attention among the tokens, in the decoder attention to the source, and a feed-forward network."""

    def __init__(
        self, width: int, attention_dropout: nn.Module, residual_dropout: nn.Module, relu_dropout: nn.Module, *,
        reads_source: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.residual_dropout = residual_dropout
        self.among = _Attention(width, attention_dropout)
        self.to_source = _Attention(width, attention_dropout) if reads_source else None
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), relu_dropout, nn.Linear(2 * width, width)
        )
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3 if reads_source else 2)])

    @override
    def forward(self, x: Tensor, mask: Tensor, encoded: Tensor | None = None, real: Tensor | None = None) -> Tensor:
        normed = self.norms[0](x)
        x = x + self.residual_dropout(self.among(normed, normed, mask))
        if self.to_source is not None:
            x = x + self.residual_dropout(self.to_source(self.norms[1](x), encoded, real))
        out: Tensor = x + self.residual_dropout(self.feed_forward(self.norms[-1](x)))
        return out


class _Attention(nn.Module):
    """Scaled dot-product attention with several heads (section 3.2)."""

    def __init__(self, width: int, dropout: nn.Module) -> None:
        super().__init__()
        self.dropout = dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    @override
    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Let each of x [N, T, width] read those of memory [N, S, width] that the mask [.., T or 1, S] allows."""
        query, key, value = (
            layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer, y in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        weights = self.dropout(scores.masked_fill(~mask, -math.inf).softmax(-1))
        out: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return out


def _positions(width: int) -> Tensor:
    """Sines and cosines [MAX_TOKENS, width] of wavelengths from 2 pi to 10000 * 2 pi (section 3.5)."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(MAX_TOKENS)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
