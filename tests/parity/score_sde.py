"""NCSN++ in plain PyTorch, as score_sde_pytorch counts its modules; options are those of our network."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tests.parity.edm import resampled


class Fourier(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.W = nn.Parameter(16 * torch.randn(dim), requires_grad=False)

    def forward(self, x):
        angles = 2 * math.pi * x[:, None] * self.W
        return torch.cat([angles.sin(), angles.cos()], 1)


class NIN(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(c, c) / math.sqrt(c)), nn.Parameter(torch.zeros(c))

    def forward(self, x):
        return torch.einsum("bchw,cd->bdhw", x, self.W) + self.b[:, None, None]


class Attend(nn.Module):
    def __init__(self, o, c):
        super().__init__()
        self.o = o
        self.GroupNorm_0 = norm(c)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (NIN(c) for _ in range(4))

    def forward(self, x):
        h = self.GroupNorm_0(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.NIN_0, self.NIN_1, self.NIN_2))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return (x + self.NIN_3(h)) * self.o["rescale"]


class Res(nn.Module):
    def __init__(self, o, c_in, c_out, resampling=None):
        super().__init__()
        self.o, self.resampling = o, resampling
        self.GroupNorm_0, self.Conv_0 = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.Dense_0 = nn.Linear(4 * o["nf"], c_out)
        self.GroupNorm_1, self.Conv_1 = norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out or resampling:
            self.Conv_2 = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, emb):
        h, x = (resampled(part, self.resampling, self.o["taps"]) for part in (F.silu(self.GroupNorm_0(x)), x))
        h = self.Conv_0(h) + self.Dense_0(F.silu(emb))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        return (h + (self.Conv_2(x) if hasattr(self, "Conv_2") else x)) * self.o["rescale"]


class Down(nn.Module):
    """Halves the resolution, with a convolution if it is told of channels."""

    def __init__(self, o, c_in=0, c_out=0):
        super().__init__()
        self.o, self.name = o, "Conv2d_0" if o["fir"] else "Conv_0"
        if c_out:
            self.add_module(self.name, nn.Conv2d(c_in, c_out, 3))

    def forward(self, x):
        conv = getattr(self, self.name, None)
        if conv is None:
            return resampled(x, "down", self.o["taps"])
        if not self.o["fir"]:
            return F.conv2d(F.pad(x, (0, 1, 0, 1)), conv.weight, conv.bias, stride=2)
        x = F.conv2d(F.pad(x, (2, 2, 2, 2)), conv.weight)  # before the filter, which makes no difference
        return resampled(x, "down", self.o["taps"], pad=0) + conv.bias[:, None, None]


class Combine(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.Conv_0 = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, h):
        return self.Conv_0(x) + h


class Up(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.o = o

    def forward(self, x):
        return resampled(x, "up", self.o["taps"])


class NCSNpp(nn.Module):
    def __init__(self, **o):
        super().__init__()
        self.o = o | {"rescale": math.sqrt(0.5), "taps": (1, 3, 3, 1) if o["fir"] else (1, 1)}
        o, nf, channels, size = self.o, o["nf"], o["in_channels"], o["image_size"]
        self.register_buffer("sigmas", torch.ones(7))
        fourier = o["embedding"] == "fourier"
        modules = [Fourier(nf)] if fourier else []
        modules += [nn.Linear(2 * nf if fourier else nf, 4 * nf), nn.Linear(4 * nf, 4 * nf)]
        modules.append(nn.Conv2d(channels, nf, 3, padding=1))
        c, pyramid, kept, last = nf, channels, [nf], len(o["ch_mult"]) - 1
        for level, mult in enumerate(o["ch_mult"]):
            for _ in range(o["num_res_blocks"]):
                modules.append(Res(o, c, c := nf * mult))
                if size >> level in o["attn_resolutions"]:
                    modules.append(Attend(o, c))
                kept.append(c)
            if level < last:
                modules.append(Res(o, c, c, "down"))
                if o["progressive_input"] == "input_skip":
                    modules += [Down(o), Combine(channels, c)]
                elif o["progressive_input"] == "residual":
                    modules.append(Down(o, pyramid, c))
                    pyramid = c
                kept.append(c)
        modules += [Res(o, c, c), Attend(o, c), Res(o, c, c)]
        for level, mult in reversed(list(enumerate(o["ch_mult"]))):
            for _ in range(o["num_res_blocks"] + 1):
                modules.append(Res(o, c + kept.pop(), c := nf * mult))
            if size >> level in o["attn_resolutions"]:
                modules.append(Attend(o, c))
            if o["progressive"] == "output_skip":
                modules += [*([Up(o)] if level < last else []), norm(c), nn.Conv2d(c, channels, 3, padding=1)]
            if level:
                modules.append(Res(o, c, c, "up"))
        if o["progressive"] == "none":
            modules += [norm(c), nn.Conv2d(c, channels, 3, padding=1)]
        self.all_modules = nn.ModuleList(modules)

    def forward(self, x, c_noise):
        o, modules = self.o, iter(self.all_modules)
        if o["embedding"] == "fourier":
            emb = next(modules)(c_noise)
        else:
            half = o["nf"] // 2
            angles = c_noise[:, None] * 10_000 ** (-torch.arange(half) / (half - 1))
            emb = torch.cat([angles.sin(), angles.cos()], 1)
        emb = next(modules)(emb)
        emb = next(modules)(F.silu(emb))
        pyramid, last, size = x, len(o["ch_mult"]) - 1, o["image_size"]
        h = next(modules)(x)
        kept = [h]
        for level in range(last + 1):
            for _ in range(o["num_res_blocks"]):
                h = next(modules)(h, emb)
                h = next(modules)(h) if size >> level in o["attn_resolutions"] else h
                kept.append(h)
            if level < last:
                h = next(modules)(h, emb)
                if o["progressive_input"] == "input_skip":
                    pyramid = next(modules)(pyramid)
                    h = next(modules)(pyramid, h)
                elif o["progressive_input"] == "residual":
                    h = pyramid = (next(modules)(pyramid) + h) * o["rescale"]
                kept.append(h)
        h = next(modules)(h, emb)
        h = next(modules)(h)
        h = next(modules)(h, emb)
        result = None
        for level in reversed(range(last + 1)):
            for _ in range(o["num_res_blocks"] + 1):
                h = next(modules)(torch.cat([h, kept.pop()], 1), emb)
            h = next(modules)(h) if size >> level in o["attn_resolutions"] else h
            if o["progressive"] == "output_skip":
                before = next(modules)(result) if level < last else 0
                head = F.silu(next(modules)(h))
                result = before + next(modules)(head)
            if level:
                h = next(modules)(h, emb)
        if result is None:
            h = F.silu(next(modules)(h))
            result = next(modules)(h)
        return result


def norm(c):
    return nn.GroupNorm(min(c // 4, 32), c, eps=1e-6)
