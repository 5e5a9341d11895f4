"""The noisy classifier's network against a PyTorch one with the parameter names of the authors' EncoderUNetModel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.encoder_unet import EncoderUNet
from diffusion_jax.networks.functional import init_apply
from tests.parity import nested, relative_error

pytestmark = pytest.mark.parity
CHANNELS, GROUPS, HEAD = 16, 4, 8


def make_torch(torch, num_classes, scale_shift, updown, pool):
    """Levels of 16 and 32 channels at 8 x 8 and 4 x 4, one block each, attention at 4 x 4."""
    nn, F = torch.nn, torch.nn.functional

    def norm(c):
        return nn.GroupNorm(GROUPS, c, eps=1e-5)

    class Res(nn.Module):
        def __init__(self, c_in, c_out, down=False):
            super().__init__()
            self.down = down
            self.in_layers = nn.Sequential(norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * CHANNELS, c_out * (1 + scale_shift)))
            self.out_layers = nn.Sequential(norm(c_out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(c_out, c_out, 3, 1, 1))
            self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

        def forward(self, x, emb):
            h = self.in_layers[:2](x)
            if self.down:
                h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
            h, emb = self.in_layers[2](h), self.emb_layers(emb)[:, :, None, None]
            if scale_shift:
                scale, shift = emb.chunk(2, 1)
                h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
            else:
                h = self.out_layers(h + emb)
            return self.skip_connection(x) + h

    class Attend(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.norm, self.qkv, self.proj_out = norm(c), nn.Conv1d(c, 3 * c, 1), nn.Conv1d(c, c, 1)

        def forward(self, x):
            b, c = x.shape[:2]
            # The order of the released classifiers: heads first, then query, key and value of each.
            heads = self.qkv(self.norm(x).reshape(b, c, -1)).reshape(b * c // HEAD, 3 * HEAD, -1)
            q, k, v = (part.transpose(1, 2) for part in heads.split(HEAD, 1))
            a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, c, -1)
            return x + self.proj_out(a).reshape(x.shape)

    class Pool(nn.Module):
        def __init__(self, places, c):
            super().__init__()
            self.positional_embedding = nn.Parameter(torch.randn(c, places + 1))
            self.qkv_proj, self.c_proj = nn.Conv1d(c, 3 * c, 1), nn.Conv1d(c, num_classes, 1)

        def forward(self, x):
            b, c = x.shape[:2]
            x = x.reshape(b, c, -1)
            x = torch.cat([x.mean(-1, keepdim=True), x], -1) + self.positional_embedding
            heads = [part.reshape(b, c // HEAD, HEAD, -1).transpose(2, 3) for part in self.qkv_proj(x).chunk(3, 1)]
            a = F.scaled_dot_product_attention(*heads).transpose(2, 3).reshape(b, c, -1)
            return self.c_proj(a)[:, :, 0]

    class MeanPool(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.proj = nn.Linear(c, num_classes)

        def forward(self, x):
            return self.proj(x.mean((2, 3)))

    class Down(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.op = nn.Conv2d(c, c, 3, 2, 1)

        def forward(self, x):
            return self.op(x)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            c, e = CHANNELS, 4 * CHANNELS
            self.time_embed = nn.Sequential(nn.Linear(c, e), nn.SiLU(), nn.Linear(e, e))
            blocks = [
                [nn.Conv2d(1, c, 3, padding=1)],
                [Res(c, c)],
                [Res(c, c, down=True) if updown else Down(c)],
                [Res(c, 2 * c), Attend(2 * c)],
            ]
            self.input_blocks = nn.ModuleList([nn.ModuleList(block) for block in blocks])
            self.middle_block = nn.ModuleList([Res(2 * c, 2 * c), Attend(2 * c), Res(2 * c, 2 * c)])
            self.out = nn.Sequential(
                norm(2 * c), nn.SiLU(), Pool(16, 2 * c) if pool == "attention" else MeanPool(2 * c)
            )

        def forward(self, x, timesteps):
            frequencies = torch.exp(-np.log(10_000) * torch.arange(CHANNELS // 2) / (CHANNELS // 2))
            angles = timesteps[:, None] * frequencies
            emb = self.time_embed(torch.cat([torch.cos(angles), torch.sin(angles)], 1))
            for block in (*self.input_blocks, self.middle_block):
                for layer in block:
                    x = layer(x, emb) if isinstance(layer, Res) else layer(x)
            return self.out(x)

    return Encoder()


def to_params(named):
    result = {}
    for name, tensor in named.items():
        module, leaf = name.rsplit(".", 1)
        array = tensor.detach().numpy()
        if leaf == "weight" and array.ndim == 1:
            leaf = "scale"
        elif leaf == "weight":
            array = array[:, :, 0] if array.ndim == 3 else array
            leaf, array = "kernel", array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
        result[f"{module}.{leaf}"] = array
    return nested(result)


@pytest.mark.parametrize(("scale_shift", "updown", "pool"), [(True, True, "attention"), (False, False, "adaptive")])
def test_encoder_unet(scale_shift, updown, pool):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = make_torch(torch, 5, scale_shift, updown, pool)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    init, apply = init_apply(
        lambda rngs: EncoderUNet(
            image_size=8,
            num_classes=5,
            in_channels=1,
            model_channels=CHANNELS,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            num_head_channels=HEAD,
            num_groups=GROUPS,
            use_scale_shift_norm=scale_shift,
            resblock_updown=updown,
            pool=pool,
            rngs=rngs,
        )
    )
    params = to_params(dict(model.named_parameters()))
    expected_shapes = jax.tree.map(lambda s: s.shape, jax.eval_shape(init, jax.random.key(0)))
    assert jax.tree.map(np.shape, params) == expected_shapes
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 1)).astype(np.float32)
    c = np.array([0.0, 20.0, 999.0], np.float32)
    with torch.no_grad():
        expected = model(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(c)).numpy()
    assert relative_error(jax.jit(apply)(params, jnp.asarray(x), jnp.asarray(c)), expected) < 2e-5
