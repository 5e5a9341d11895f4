"""ADM's networks in plain PyTorch, with the names of parameters that guided-diffusion gives them."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

ORDERS = {False: lambda b, heads, d: (b, heads, 3, d), True: lambda b, heads, d: (b, 3, heads, d)}


class Block(nn.ModuleList):
    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, Res) else layer(x)
        return x


class Res(nn.Module):
    def __init__(self, o, c_in, c_out, change=None):
        super().__init__()
        self.change, self.film = change, o["use_scale_shift_norm"]
        emb = 4 * o["model_channels"]
        self.in_layers = nn.Sequential(norm(o, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, c_out * (1 + self.film)))
        self.out_layers = nn.Sequential(norm(o, c_out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(c_out, c_out, 3, 1, 1))
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, emb):
        h = self.in_layers[:2](x)
        if self.change:
            h, x = self.change(h), self.change(x)
        h, emb = self.in_layers[2](h), self.emb_layers(emb)[:, :, None, None]
        if self.film:
            scale, shift = emb.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + emb)
        return self.skip_connection(x) + h


class Attend(nn.Module):
    def __init__(self, o, c):
        super().__init__()
        self.heads = c // o["num_head_channels"] if o.get("num_head_channels") else o["num_heads"]
        self.new = o.get("use_new_attention_order", False)
        make = nn.Conv2d if o.get("attention_2d") else nn.Conv1d
        self.norm, self.qkv, self.proj_out = norm(o, c), make(c, 3 * c, 1), make(c, c, 1)

    def forward(self, x):
        b, c = x.shape[:2]
        flat = x if isinstance(self.qkv, nn.Conv2d) else x.reshape(b, c, -1)
        qkv = self.qkv(self.norm(flat)).reshape(*ORDERS[self.new](b, self.heads, c // self.heads), -1)
        q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(1 if self.new else 2))
        a = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.proj_out(a.reshape(flat.shape)).reshape(x.shape)


class Change(nn.Module):
    """Between blocks: "op" halves, "conv" doubles."""

    def __init__(self, c, name, with_conv):
        super().__init__()
        self.name = name
        if with_conv:
            self.add_module(name, nn.Conv2d(c, c, 3, 2 if name == "op" else 1, 1))

    def forward(self, x):
        conv = getattr(self, self.name, None)
        if self.name == "op":
            return conv(x) if conv else half(x)
        return conv(double(x)) if conv else double(x)


class Pool(nn.Module):
    def __init__(self, o, places, c):
        super().__init__()
        self.head = o["num_head_channels"]
        self.positional_embedding = nn.Parameter(torch.randn(c, places + 1))
        self.qkv_proj, self.c_proj = nn.Conv1d(c, 3 * c, 1), nn.Conv1d(c, o["num_classes"], 1)

    def forward(self, x):
        b, c = x.shape[:2]
        x = x.reshape(b, c, -1)
        x = torch.cat([x.mean(-1, keepdim=True), x], -1) + self.positional_embedding
        heads = [
            part.reshape(b, c // self.head, self.head, -1).transpose(2, 3) for part in self.qkv_proj(x).chunk(3, 1)
        ]
        a = F.scaled_dot_product_attention(*heads).transpose(2, 3).reshape(b, c, -1)
        return self.c_proj(a)[:, :, 0]


class Net(nn.Module):
    """The U-Net, or with `pool` its first half; options are those of our networks."""

    def __init__(self, *, pool=None, **o):
        super().__init__()
        o = {"use_scale_shift_norm": True, "resblock_updown": True, "conv_resample": True} | o
        self.o, base, size = o, o["model_channels"], o["image_size"]
        emb, image = 4 * base, o.get("image_channels", 0)
        self.time_embed = nn.Sequential(nn.Linear(base, emb), nn.SiLU(), nn.Linear(emb, emb))
        if pool is None and o.get("num_classes"):
            self.label_emb = nn.Embedding(o["num_classes"], emb)
        c = int(base * o["channel_mult"][0])
        blocks, kept = [[nn.Conv2d(o["in_channels"] + image, c, 3, padding=1)]], [c]
        for level, mult in enumerate(o["channel_mult"]):
            for _ in range(o["num_res_blocks"]):
                blocks.append([Res(o, c, c := int(base * mult)), *self.attention(c, size >> level)])
                kept.append(c)
            if level < len(o["channel_mult"]) - 1:
                blocks.append([Res(o, c, c, half) if o["resblock_updown"] else Change(c, "op", o["conv_resample"])])
                kept.append(c)
        self.input_blocks = nn.ModuleList([Block(block) for block in blocks])
        self.middle_block = Block([Res(o, c, c), Attend(o, c), Res(o, c, c)])
        if pool == "attention":
            self.out = nn.Sequential(norm(o, c), nn.SiLU(), Pool(o, (size >> level) ** 2, c))
            return
        if pool == "adaptive":
            last = nn.Conv2d(c, o["num_classes"], 1)
            self.out = nn.Sequential(norm(o, c), nn.SiLU(), nn.AdaptiveAvgPool2d(1), last, nn.Flatten())
            return
        blocks = []
        for level, mult in reversed(list(enumerate(o["channel_mult"]))):
            for i in range(o["num_res_blocks"] + 1):
                blocks.append([Res(o, c + kept.pop(), c := int(base * mult)), *self.attention(c, size >> level)])
                if level and i == o["num_res_blocks"]:
                    up = Res(o, c, c, double) if o["resblock_updown"] else Change(c, "conv", o["conv_resample"])
                    blocks[-1].append(up)
        self.output_blocks = nn.ModuleList([Block(block) for block in blocks])
        self.out = nn.Sequential(norm(o, c), nn.SiLU(), nn.Conv2d(c, o["out_channels"], 3, padding=1))

    def attention(self, c, resolution):
        return [Attend(self.o, c)] if resolution in self.o["attention_resolutions"] else []

    def forward(self, x, timesteps, label=None, image=None):
        half_size = self.o["model_channels"] // 2
        angles = timesteps[:, None] * torch.exp(-np.log(10_000) * torch.arange(half_size) / half_size)
        emb = self.time_embed(torch.cat([torch.cos(angles), torch.sin(angles)], 1))
        if label is not None:
            emb = emb + self.label_emb(label)
        if image is not None:
            x = torch.cat([x, F.interpolate(image, x.shape[2:], mode="bilinear")], 1)
        kept = []
        for block in self.input_blocks:
            x = block(x, emb)
            kept.append(x)
        x = self.middle_block(x, emb)
        for block in getattr(self, "output_blocks", ()):
            x = block(torch.cat([x, kept.pop()], 1), emb)
        return self.out(x)


def norm(o, c):
    return nn.GroupNorm(o["num_groups"], c, eps=1e-5)


def half(x):
    return F.avg_pool2d(x, 2)


def double(x):
    return F.interpolate(x, scale_factor=2, mode="nearest")
