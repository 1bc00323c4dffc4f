"""Small models whose ports are dumped as arrays. Those of `HELD` were not looked at while the pairing was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (one(x).view(batch, length, self.heads, -1).transpose(1, 2) for one in (self.q_proj, self.k_proj, self.v_proj))
        weights = torch.softmax(q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5, -1)
        return self.out_proj((weights @ v).transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, width: int, act: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 2 * width), act or nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class PreNormLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.self_attn, self.norm2, self.mlp = (
            nn.LayerNorm(width),
            Attention(width, heads),
            nn.LayerNorm(width),
            FeedForward(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PostNormLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.attention_norm, self.ffn, self.output_norm = (
            Attention(width, heads),
            nn.LayerNorm(width),
            FeedForward(width, nn.ReLU()),
            nn.LayerNorm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x))
        return self.output_norm(x + self.ffn(x))


class Encoder(nn.Module):
    """Tokens to logits, pre-norm."""

    def __init__(self, width: int = 24, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.embed_tokens, self.embed_positions = nn.Embedding(50, width), nn.Embedding(32, width)
        self.layers = nn.ModuleList(PreNormLayer(width, heads) for _ in range(depth))
        self.final_norm, self.lm_head = nn.LayerNorm(width), nn.Linear(width, 50, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids) + self.embed_positions(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.final_norm(x))


class Bert(nn.Module):
    """Features to a class, post-norm."""

    def __init__(self, width: int = 16, heads: int = 2, depth: int = 4) -> None:
        super().__init__()
        self.project, self.norm = nn.Linear(10, width), nn.LayerNorm(width)
        self.layer = nn.ModuleList(PostNormLayer(width, heads) for _ in range(depth))
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.project(x))
        for layer in self.layer:
            x = layer(x)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


class ResBlock(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, into), nn.Conv2d(into, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, out), nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(functional.silu(self.norm2(y)))


class UNet(nn.Module):
    """Images to images; as high as there are channels."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList([ResBlock(width, width), ResBlock(width, 2 * width)])
        self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.mid = ResBlock(2 * width, 2 * width)
        self.upsample = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up = ResBlock(2 * width, width)
        self.norm_out, self.conv_out = nn.GroupNorm(4, width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down[0](self.conv_in(x))
        x = self.mid(self.down[1](self.downsample(skip)))
        x = self.up(torch.cat([self.upsample(x), skip], 1))
        return self.conv_out(functional.silu(self.norm_out(x)))


class Speech(nn.Module):
    """Waves to frames: convolutions, a recurrent layer, two heads."""

    def __init__(self, width: int = 14) -> None:
        super().__init__()
        self.frontend = nn.ModuleList([nn.Conv1d(1, width, 8, stride=4), nn.Conv1d(width, width, 4, stride=2), nn.Conv1d(width, width, 3)])
        self.bn = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(3))
        self.lstm = nn.LSTM(width, 10, batch_first=True, bidirectional=True)
        self.proj, self.head = nn.Linear(20, 12), nn.Linear(12, 9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv, bn in zip(self.frontend, self.bn, strict=True):
            x = functional.relu(bn(conv(x)))
        hidden, _ = self.lstm(x.transpose(1, 2))
        features = torch.tanh(self.proj(hidden))
        return self.head(features), features


# -- held back ------------------------------------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Rotary(nn.Module):
    def forward(self, x: Tensor, length: int) -> tuple[Tensor, Tensor]:
        half = x.shape[-1] // 2
        angle = torch.outer(torch.arange(length, dtype=x.dtype), 100.0 ** (-torch.arange(half, dtype=x.dtype) / half))
        return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)


class GroupedAttention(nn.Module):
    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.wq, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wk, self.wv = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))
        self.rope = Rotary()

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q = self.wq(x).view(batch, length, self.heads, -1).transpose(1, 2)
        k, v = (one(x).view(batch, length, self.groups, -1).transpose(1, 2) for one in (self.wk, self.wv))
        cos, sin = self.rope(q, length)
        q, k = (one * cos + torch.cat([-one[..., self.size // 2 :], one[..., : self.size // 2]], -1) * sin for one in (q, k))
        k, v = (one.repeat_interleave(self.heads // self.groups, 1) for one in (k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(batch, length, width))


class Gated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.w2 = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Decoder(nn.Module):
    """A Llama in small; as long as it is wide."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(40, width)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            block = nn.Module()
            block.attention_norm, block.attention, block.ffn_norm, block.feed_forward = (
                RMSNorm(width),
                GroupedAttention(width, 4, 2),
                RMSNorm(width),
                Gated(width),
            )
            self.blocks.append(block)
        self.norm, self.output = RMSNorm(width), nn.Linear(width, 40, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_embeddings(ids)
        for block in self.blocks:
            x = x + block.attention(block.attention_norm(x))
            x = x + block.feed_forward(block.ffn_norm(x))
        return self.output(self.norm(x))


class Vision(nn.Module):
    """Patches with a class token."""

    def __init__(self, width: int = 20, depth: int = 2) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, stride=4)
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.ModuleList(PreNormLayer(width, 2) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class WaveNet(nn.Module):
    """Gated dilated convolutions with skips; as many frames as channels."""

    def __init__(self, width: int = 20, depth: int = 4) -> None:
        super().__init__()
        self.start = nn.Conv1d(5, width, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(width, 2 * width, 3, padding=2**i, dilation=2**i) for i in range(depth))
        self.res_skip = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(depth))
        self.end = nn.Conv1d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        total = torch.zeros_like(x)
        for dilated, both in zip(self.dilated, self.res_skip, strict=True):
            a, b = dilated(x).chunk(2, 1)
            res, skip = both(torch.tanh(a) * torch.sigmoid(b)).chunk(2, 1)
            x, total = x + res, total + skip
        return self.end(functional.relu(total))


class ResNet(nn.Module):
    """Batch norms and strides; two images in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.layer1, self.layer2 = (
            nn.ModuleList(_Basic(a, b, s) for a, b, s in rows) for rows in (((8, 8, 1), (8, 8, 1)), ((8, 16, 2), (16, 16, 1)))
        )
        self.fc = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        for block in (*self.layer1, *self.layer2):
            x = block(x)
        return self.fc(x.mean((2, 3)))


class _Basic(nn.Module):
    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = nn.Conv2d(into, out, 1, stride) if into != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


@dataclass(frozen=True)
class Model:
    """A model to port: how to make it and its input."""

    make: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Tensor]


class MixerBlock(nn.Module):
    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.ln_token, self.token_mix, self.ln_channel, self.channel_mix = (
            nn.LayerNorm(width),
            FeedForward(patches),
            nn.LayerNorm(width),
            FeedForward(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.ln_token(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.ln_channel(x))


class Mixer(nn.Module):
    """Mixes patches and channels, as many of each."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=3)
        self.mixer_blocks = nn.ModuleList(MixerBlock(16, width) for _ in range(depth))
        self.last_norm, self.predict = nn.LayerNorm(width), nn.Linear(width, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.mixer_blocks:
            x = block(x)
        return self.predict(self.last_norm(x).mean(1))


class Cross(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_kv, self.to_out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        batch, _, width = x.shape
        q, k, v = (
            one.view(batch, -1, self.heads, width // self.heads).transpose(1, 2) for one in (self.to_q(x), *self.to_kv(memory).chunk(2, -1))
        )
        return self.to_out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class DecoderLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_norm, self.self_attention, self.cross_norm, self.cross_attention = (
            nn.LayerNorm(width),
            Attention(width, 3),
            nn.LayerNorm(width),
            Cross(width, 3),
        )
        self.ff_norm, self.ff = nn.LayerNorm(width), FeedForward(width, nn.SiLU())

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.self_attention(self.self_norm(x))
        x = x + self.cross_attention(self.cross_norm(x), memory)
        return x + self.ff(self.ff_norm(x))


class Translator(nn.Module):
    """An encoder of convolutions, and a decoder that attends to it."""

    def __init__(self, width: int = 18) -> None:
        super().__init__()
        self.source_conv = nn.ModuleList(nn.Conv1d(8 if number == 0 else width, width, 3, padding=1) for number in range(3))
        self.source_norm, self.start = nn.GroupNorm(3, width), nn.Embedding(12, width)
        self.decoder_layers = nn.ModuleList(DecoderLayer(width) for _ in range(2))
        self.close, self.vocabulary = nn.LayerNorm(width), nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        memory = x
        for conv in self.source_conv:
            memory = functional.gelu(conv(memory))
        memory = self.source_norm(memory).transpose(1, 2)
        y = self.start(torch.arange(12)[None].expand(len(x), -1))
        for layer in self.decoder_layers:
            y = layer(y, memory)
        return self.vocabulary(self.close(y))


def _ids(batch: int, length: int, most: int) -> Callable[[torch.Generator], Tensor]:
    return lambda chance: torch.randint(0, most, (batch, length), generator=chance)


def _noise(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda chance: torch.randn(shape, generator=chance)


TUNED: dict[str, Model] = {
    "encoder": Model(Encoder, _ids(1, 11, 50)),
    "bert": Model(Bert, _noise(1, 9, 10)),
    "unet": Model(UNet, _noise(1, 3, 12, 12)),
    "speech": Model(Speech, _noise(1, 1, 200)),
}
HELD: dict[str, Model] = {
    "decoder": Model(Decoder, _ids(1, 16, 40)),
    "vision": Model(Vision, _noise(1, 3, 16, 16)),
    "wavenet": Model(WaveNet, _noise(1, 5, 20)),
    "resnet": Model(ResNet, _noise(2, 3, 12, 12)),
}
LAST: dict[str, Model] = {
    "mixer": Model(Mixer, _noise(1, 3, 12, 12)),
    "translator": Model(Translator, _noise(1, 8, 18)),
}
"""Written after the pairing was made, and run once."""
