"""EDM's networks in plain PyTorch, with the names of the authors' parameters; options are those of our networks."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, o, c_in, c_out, emb, resampling=None, heads=0):
        super().__init__()
        self.o, self.resampling, self.heads = o, resampling, heads
        self.norm0, self.norm1 = norm(o, c_in), norm(o, c_out)
        self.conv0, self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.affine = nn.Linear(emb, c_out if o["song"] else 2 * c_out)
        if c_in != c_out or (resampling and o["song"]):
            self.skip = nn.Conv2d(c_in, c_out, 1)
        if heads:
            self.norm2, self.qkv, self.proj = norm(o, c_out), nn.Conv2d(c_out, 3 * c_out, 1), nn.Conv2d(c_out, c_out, 1)

    def forward(self, x, emb):
        scale = math.sqrt(0.5) if self.o["song"] else 1.0
        h, x = (resampled(part, self.resampling, self.o["resample_filter"]) for part in (F.silu(self.norm0(x)), x))
        h, told = self.conv0(h), self.affine(emb)[:, :, None, None]
        if self.o["song"]:
            h = self.norm1(h + told)
        else:
            gain, shift = told.chunk(2, 1)
            h = self.norm1(h) * (1 + gain) + shift
        h = (self.conv1(F.silu(h)) + (self.skip(x) if hasattr(self, "skip") else x)) * scale
        if not self.heads:
            return h
        b, c = h.shape[:2]
        qkv = self.qkv(self.norm2(h)).reshape(b, self.heads, c // self.heads, 3, -1)
        q, k, v = (part.transpose(2, 3) for part in qkv.unbind(3))
        a = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(h.shape)
        return (h + self.proj(a)) * scale


class Net(nn.Module):
    """Under "model", as within the authors' preconditioning."""

    def __init__(self, **options):
        super().__init__()
        self.model = SongUNet(**options) if options.pop("song") else DhariwalUNet(**options)

    def forward(self, *args):
        return self.model(*args)


class SongUNet(nn.Module):
    def __init__(self, **o):
        super().__init__()
        self.o = o = {"encoder_type": "standard", "decoder_type": "standard", "channel_mult_noise": 1} | o
        o |= {"song": True, "eps": 1e-6, "resample_filter": o.get("resample_filter", (1, 1))}
        base, c_in, size = o["model_channels"], o["in_channels"], o["image_size"]
        self.noise, emb = base * o["channel_mult_noise"], 4 * base
        self.fourier = o.get("embedding_type") == "fourier"
        if self.fourier:
            self.map_noise = nn.Module()
            self.map_noise.register_buffer("freqs", 16 * torch.randn(self.noise // 2))
        if o.get("num_classes"):
            self.map_label = nn.Linear(o["num_classes"], self.noise)
        if o.get("augment_dim"):
            self.map_augment = nn.Linear(o["augment_dim"], self.noise, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(self.noise, emb), nn.Linear(emb, emb)
        enc, dec, c, pyramid = {f"{size}x{size}_conv": nn.Conv2d(c_in, base, 3, padding=1)}, {}, base, c_in
        kept = [base]
        for level, mult in enumerate(o["channel_mult"]):
            res = size >> level
            if level:
                enc[f"{res}x{res}_down"] = Block(o, c, c, emb, "down")
                kept.append(c)
                if o["encoder_type"] == "skip":
                    enc[f"{res}x{res}_aux_skip"] = nn.Conv2d(pyramid, c, 1)
                if o["encoder_type"] == "residual":
                    enc[f"{res}x{res}_aux_residual"] = nn.Conv2d(pyramid, c, 3)
                    pyramid = c
            for i in range(o["num_blocks"]):
                heads = int(res in o["attn_resolutions"])
                enc[f"{res}x{res}_block{i}"] = Block(o, c, c := base * mult, emb, heads=heads)
                kept.append(c)
        for level, mult in reversed(list(enumerate(o["channel_mult"]))):
            res = size >> level
            if level == len(o["channel_mult"]) - 1:
                dec[f"{res}x{res}_in0"] = Block(o, c, c, emb, heads=1)
                dec[f"{res}x{res}_in1"] = Block(o, c, c, emb)
            else:
                dec[f"{res}x{res}_up"] = Block(o, c, c, emb, "up")
            for i in range(o["num_blocks"] + 1):
                heads = int(i == o["num_blocks"] and res in o["attn_resolutions"])
                dec[f"{res}x{res}_block{i}"] = Block(o, c + kept.pop(), c := base * mult, emb, heads=heads)
            if o["decoder_type"] == "skip" or level == 0:
                dec[f"{res}x{res}_aux_norm"] = norm(o, c)
                dec[f"{res}x{res}_aux_conv"] = nn.Conv2d(c, o["out_channels"], 3, padding=1)
        self.enc, self.dec = nn.ModuleDict(enc), nn.ModuleDict(dec)

    def forward(self, x, c_noise, label=None, augment=None):
        if self.fourier:
            angles = 2 * math.pi * c_noise[:, None] * self.map_noise.freqs
        else:
            half = self.noise // 2
            angles = c_noise[:, None] * 10_000 ** (-torch.arange(half) / (half - 1))
        emb = torch.cat([angles.sin(), angles.cos()], 1)
        if label is not None:
            emb = emb + self.map_label(label * math.sqrt(self.o["num_classes"]))
        if augment is not None:
            emb = emb + self.map_augment(augment)
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        pyramid, kept, taps = x, [], self.o["resample_filter"]
        for name, part in self.enc.items():
            if "aux_skip" in name:
                pyramid = resampled(pyramid, "down", taps)
                x = kept[-1] = x + part(pyramid)
            elif "aux_residual" in name:
                pyramid = F.pad(pyramid, (1 + (len(taps) - 1) // 2,) * 4)
                pyramid = resampled(F.conv2d(pyramid, part.weight), "down", taps, pad=0) + part.bias[:, None, None]
                x = kept[-1] = pyramid = (x + pyramid) * math.sqrt(0.5)
            else:
                x = part(x, emb) if isinstance(part, Block) else part(x)
                kept.append(x)
        result = None
        for name, part in self.dec.items():
            if "aux_norm" in name:
                head = F.silu(part(x))
            elif "aux_conv" in name:
                result = part(head) + (0 if result is None else resampled(result, "up", taps))
            else:
                x = part(torch.cat([x, kept.pop()], 1) if "block" in name else x, emb)
        return result


class DhariwalUNet(nn.Module):
    def __init__(self, **o):
        super().__init__()
        self.o = o = o | {"song": False, "eps": 1e-5, "resample_filter": (1, 1)}
        base, size = o["model_channels"], o["image_size"]
        emb, c = 4 * base, base * o["channel_mult"][0]
        self.map_layer0, self.map_layer1 = nn.Linear(base, emb), nn.Linear(emb, emb)
        self.map_label = nn.Linear(o["num_classes"], emb, bias=False)
        enc, dec, kept = {f"{size}x{size}_conv": nn.Conv2d(o["in_channels"], c, 3, padding=1)}, {}, [c]

        def heads(width, res):
            return width // o["channels_per_head"] if res in o["attn_resolutions"] else 0

        for level, mult in enumerate(o["channel_mult"]):
            res, width = size >> level, base * mult
            if level:
                enc[f"{res}x{res}_down"] = Block(o, c, c, emb, "down")
                kept.append(c)
            for i in range(o["num_blocks"]):
                enc[f"{res}x{res}_block{i}"] = Block(o, c, c := width, emb, heads=heads(width, res))
                kept.append(c)
        for level, mult in reversed(list(enumerate(o["channel_mult"]))):
            res, width = size >> level, base * mult
            if level == len(o["channel_mult"]) - 1:
                dec[f"{res}x{res}_in0"] = Block(o, c, c, emb, heads=c // o["channels_per_head"])
                dec[f"{res}x{res}_in1"] = Block(o, c, c, emb)
            else:
                dec[f"{res}x{res}_up"] = Block(o, c, c, emb, "up")
            for i in range(o["num_blocks"] + 1):
                dec[f"{res}x{res}_block{i}"] = Block(o, c + kept.pop(), c := width, emb, heads=heads(width, res))
        self.enc, self.dec = nn.ModuleDict(enc), nn.ModuleDict(dec)
        self.out_norm, self.out_conv = norm(o, c), nn.Conv2d(c, o["out_channels"], 3, padding=1)

    def forward(self, x, c_noise, label):
        half = self.o["model_channels"] // 2
        angles = c_noise[:, None] * 10_000 ** (-torch.arange(half) / half)
        emb = self.map_layer1(F.silu(self.map_layer0(torch.cat([angles.cos(), angles.sin()], 1))))
        emb = F.silu(emb + self.map_label(label))
        kept = []
        for part in self.enc.values():
            x = part(x, emb) if isinstance(part, Block) else part(x)
            kept.append(x)
        for name, part in self.dec.items():
            x = part(torch.cat([x, kept.pop()], 1) if "block" in name else x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))


def norm(o, c):
    return nn.GroupNorm(min(32, c // 4), c, eps=o["eps"])


def resampled(x, resampling, taps, pad=None):
    if resampling is None:
        return x
    taps, c = torch.tensor(taps, dtype=torch.float32), x.shape[1]
    pad = (len(taps) - 1) // 2 if pad is None else pad
    kernel = (torch.outer(taps, taps) / taps.sum() ** 2).tile(c, 1, 1, 1)
    if resampling == "up":
        return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=pad, groups=c)
    return F.conv2d(x, kernel, stride=2, padding=pad, groups=c)
