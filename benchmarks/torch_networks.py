"""The networks of `benchmarks.gpu` in plain PyTorch: DDPM's U-Net, Stable Diffusion's U-Net and DiT.

Modules and parameters have the names of their counterparts in `diffusion_jax.networks`, so that weights can be copied
by name; tests/parity/test_gpu.py compares the outputs. Images are [batch, channels, h, w].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of [batch, n, channels], heads side by side in the channels."""
    heads = [x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (query, key, value)]
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def to_image(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).reshape(like.shape)


class Waves(nn.Module):
    """The sinusoidal embedding of a timestep, in float32."""

    def __init__(self, dim: int, *, cosines_first: bool, freq_shift: float):
        super().__init__()
        half = dim // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / (half - freq_shift))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.cosines_first = cosines_first

    def forward(self, t: Tensor) -> Tensor:
        angle = t.float()[:, None] * self.frequencies
        waves = (angle.cos(), angle.sin()) if self.cosines_first else (angle.sin(), angle.cos())
        return torch.cat(waves, 1)


class TimeEmbedding(nn.Module):
    def __init__(self, dim: int, out: int, *, stable_diffusion: bool):
        super().__init__()
        self.waves = Waves(dim, cosines_first=stable_diffusion, freq_shift=0.0 if stable_diffusion else 1.0)
        self.linear_1, self.linear_2 = nn.Linear(dim, out), nn.Linear(out, out)

    def forward(self, t: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(self.waves(t))))


class ResnetBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, emb_dim: int, *, groups: int, epsilon: float, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, c_in, epsilon), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_dim, c_out)
        self.norm2, self.conv2 = nn.GroupNorm(groups, c_out, epsilon), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.drop = nn.Dropout(dropout)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(emb)[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(self.drop(F.silu(self.norm2(h))))


class SelfAttention(nn.Module):
    """Attention of all pixels with one head."""

    def __init__(self, channels: int, *, groups: int, epsilon: float):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, epsilon)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor, context: None) -> Tensor:
        h = to_tokens(self.group_norm(x))
        return x + to_image(self.to_out(attention(self.to_q(h), self.to_k(h), self.to_v(h), 1)), x)


class CrossAttention(nn.Module):
    def __init__(self, channels: int, context_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k, self.to_v = (nn.Linear(context_dim, channels, bias=False) for _ in range(2))
        self.to_out = nn.Linear(channels, channels)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        return self.to_out(attention(self.to_q(h), self.to_k(context), self.to_v(context), self.num_heads))


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.proj_in, self.proj_out = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        a, b = self.proj_in(h).chunk(2, -1)
        return self.proj_out(a * F.gelu(b))


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, context_dim: int, num_heads: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.attn1 = CrossAttention(channels, channels, num_heads)
        self.attn2 = CrossAttention(channels, context_dim, num_heads)
        self.ff = FeedForward(channels)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        query = self.norm1(h)
        h = h + self.attn1(query, query)
        h = h + self.attn2(self.norm2(h), context)
        return h + self.ff(self.norm3(h))


class Transformer2D(nn.Module):
    def __init__(self, channels: int, context_dim: int, num_heads: int, *, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, 1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context_dim, num_heads)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = to_tokens(self.proj_in(self.norm(x)))
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(to_image(h, x))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """A convolution of stride 2, padded on all sides, or as in DDPM at the bottom and the right only."""

    def __init__(self, channels: int, *, all_sides: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=int(all_sides))
        self.all_sides = all_sides

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.all_sides else F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention, and what leads to the next resolution."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], sampler: nn.Module | None, kind: str):
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)
        self.sampler_name = f"{kind}samplers"
        self.add_module(self.sampler_name, nn.ModuleList([sampler] if sampler else []))

    def block(self, i: int, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        h = self.resnets[i](h, emb)
        return self.attentions[i](h, context) if i < len(self.attentions) else h

    def resample(self, h: Tensor) -> Tensor:
        for sampler in getattr(self, self.sampler_name):
            h = sampler(h)
        return h


class UNet(nn.Module):
    """DDPM's U-Net, or with a `token_dim` Stable Diffusion's: self-attention or transformers on levels `attention`.

    DDPM adds attention to the middle, Stable Diffusion a transformer of the width of its last level that has one.
    """

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, ...],
        layers: int,
        attention: tuple[bool, ...],
        *,
        token_dim: int = 0,
        num_heads: int = 1,
        groups: int = 32,
        dropout: float = 0.0,
    ):
        super().__init__()
        emb_dim, epsilon = 4 * widths[0], 1e-5 if token_dim else 1e-6

        def resnet(c_in: int, c_out: int) -> ResnetBlock:
            return ResnetBlock(c_in, c_out, emb_dim, groups=groups, epsilon=epsilon, dropout=dropout)

        def attend(channels: int, count: int) -> list[nn.Module]:
            if token_dim:
                return [Transformer2D(channels, token_dim, num_heads, groups=groups) for _ in range(count)]
            return [SelfAttention(channels, groups=groups, epsilon=epsilon) for _ in range(count)]

        self.time_embedding = TimeEmbedding(widths[0], emb_dim, stable_diffusion=bool(token_dim))
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        skips, c, down = [widths[0]], widths[0], []
        for level, width in enumerate(widths):
            resnets = [resnet(n, width) for n in [c] + [width] * (layers - 1)]
            last = level == len(widths) - 1
            sampler = None if last else Downsample(width, all_sides=bool(token_dim))
            down.append(Level(resnets, attend(width, layers * attention[level]), sampler, "down"))
            skips += [width] * (layers + (not last))
            c = width
        self.down_blocks = nn.ModuleList(down)
        self.mid_block = Level([resnet(c, c), resnet(c, c)], attend(c, 1), None, "mid")
        up = []
        for level, width in reversed(list(enumerate(widths))):
            resnets = [resnet(n + skips.pop(), width) for n in [c] + [width] * layers]
            sampler = Upsample(width) if level else None
            up.append(Level(resnets, attend(width, (layers + 1) * attention[level]), sampler, "up"))
            c = width
        self.up_blocks = nn.ModuleList(up)
        self.conv_norm_out = nn.GroupNorm(groups, c, epsilon)
        self.conv_out = nn.Conv2d(c, in_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        emb = F.silu(self.time_embedding(t))
        h = self.conv_in(x)
        skips = [h]
        for level in self.down_blocks:
            for i in range(len(level.resnets)):
                h = level.block(i, h, emb, context)
                skips.append(h)
            if len(level.downsamplers):
                h = level.resample(h)
                skips.append(h)
        h = self.mid_block.resnets[1](self.mid_block.block(0, h, emb, context), emb)
        for level in self.up_blocks:
            for i in range(len(level.resnets)):
                h = level.block(i, torch.cat([h, skips.pop()], 1), emb, context)
            h = level.resample(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class Mlp(nn.Module):
    def __init__(self, c_in: int, hidden: int, c_out: int, activation: nn.Module):
        super().__init__()
        self.fc1, self.activation, self.fc2 = nn.Linear(c_in, hidden), activation, nn.Linear(hidden, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class QKVAttention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attention(*self.qkv(x).chunk(3, -1), self.num_heads))


class DiTBlock(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = QKVAttention(width, num_heads)
        self.mlp = Mlp(width, 4 * width, width, nn.GELU("tanh"))
        self.adaLN_modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(emb)[:, None].chunk(6, -1)
        x = x + gate_1 * self.attn(self.norm(x) * (1 + scale_1) + shift_1)
        return x + gate_2 * self.mlp(self.norm(x) * (1 + scale_2) + shift_2)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear, self.adaLN_modulation = nn.Linear(width, out), nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(emb)[:, None].chunk(2, -1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class DiT(nn.Module):
    def __init__(
        self, size: int, channels: int, width: int, depth: int, num_heads: int, num_classes: int, patch: int = 2
    ):
        super().__init__()
        self.patch, self.channels = patch, channels
        self.waves = Waves(256, cosines_first=True, freq_shift=0.0)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, stride=patch)})
        self.t_embedder = nn.ModuleDict({"mlp": Mlp(256, width, width, nn.SiLU())})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(num_classes + 1, width)})
        self.blocks = nn.ModuleList([DiTBlock(width, num_heads) for _ in range(depth)])
        self.final_layer = FinalLayer(width, patch**2 * channels)
        axis = Waves(width // 2, cosines_first=False, freq_shift=0.0)(torch.arange(size // patch))
        n = len(axis)
        columns, rows = axis[None].expand(n, n, -1), axis[:, None].expand(n, n, -1)
        self.register_buffer("positions", torch.cat([columns, rows], -1).flatten(0, 1), persistent=False)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        emb = F.silu(self.t_embedder["mlp"](self.waves(t)) + self.y_embedder["embedding_table"](label))
        h = self.x_embedder["proj"](x)
        n = h.shape[2]
        h = to_tokens(h) + self.positions
        for block in self.blocks:
            h = block(h, emb)
        h = self.final_layer(h, emb).unflatten(1, (n, n)).unflatten(-1, (self.patch, self.patch, self.channels))
        return h.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
