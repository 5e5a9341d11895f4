"""InceptionV3 (arXiv:1512.00567), trained in 2015 and used for FID, with batch norms folded in.

It is the network of TensorFlow's file `inception-2015-12-05` and of its copies for PyTorch, pytorch-fid and
torch-fidelity. It differs from torchvision's: average pools do not count the padding, the last block has a maximum
pool instead of an average pool, and there are 1008 classes. Attribute names mirror the PyTorch original's.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

IMAGE_SIZE = 299
NUM_FEATURES = 2048
NUM_CLASSES = 1008
_SMALLEST = 75  # the last blocks have no pixels for a smaller image

# A branch of a block: the channels and the kernel of each convolution.
_Branches = dict[str, tuple[tuple[int, int | tuple[int, int]], ...]]


class Activations(NamedTuple):
    """Activations of a network that the metrics of images read."""

    features: Float[Array, "n d"]  # of the layer before the classes
    logits: Float[Array, "n k"]
    spatial: Float[Array, "n s"] | None = None  # of an earlier layer, with its positions


class Inception(nnx.Module):
    """Maps images `[n, 299, 299, 3]`, about in [-1, 1], to `Activations`.

    - `features`: 2048 averages over space of the last block, the features of FID;
    - `logits`: 1008 classes, without the bias, as the Inception Score has always been computed with this network;
    - `spatial`: the first 7 channels of 17 x 17 values of the 1 x 1 branch of Mixed_6d (`mixed_6/conv` in
      TensorFlow's file), flattened to 2023 as [height, width, channel]: the features of sFID (arXiv:2103.03841).

    Other sizes from 75 x 75 on work, with fewer spatial features; smaller ones raise ValueError.
    """

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2, padding="VALID", rngs=rngs)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, padding="VALID", rngs=rngs)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, rngs=rngs)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1, rngs=rngs)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, padding="VALID", rngs=rngs)
        self.Mixed_5b = _Mixed(192, _wide(pool=32), rngs=rngs)
        self.Mixed_5c = _Mixed(256, _wide(pool=64), rngs=rngs)
        self.Mixed_5d = _Mixed(288, _wide(pool=64), rngs=rngs)
        self.Mixed_6a = _Mixed(
            288, {"branch3x3": ((384, 3),), "branch3x3dbl": ((64, 1), (96, 3), (96, 3))}, reduction=True, rngs=rngs
        )
        self.Mixed_6b = _Mixed(768, _factorised(128), rngs=rngs)
        self.Mixed_6c = _Mixed(768, _factorised(160), rngs=rngs)
        self.Mixed_6d = _Mixed(768, _factorised(160), rngs=rngs)
        self.Mixed_6e = _Mixed(768, _factorised(192), rngs=rngs)
        self.Mixed_7a = _Mixed(
            768,
            {"branch3x3": ((192, 1), (320, 3)), "branch7x7x3": ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3))},
            reduction=True,
            rngs=rngs,
        )
        self.Mixed_7b = _Expanded(1280, max_pool=False, rngs=rngs)
        self.Mixed_7c = _Expanded(2048, max_pool=True, rngs=rngs)
        self.fc = nnx.Linear(NUM_FEATURES, NUM_CLASSES, use_bias=False, precision=jax.lax.Precision.HIGHEST, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w 3"]) -> Activations:
        if min(x.shape[1:3]) < _SMALLEST:
            raise ValueError(f"images must have at least {_SMALLEST} x {_SMALLEST} pixels, got shape {x.shape}")
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2))
        x = nnx.max_pool(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), (3, 3), (2, 2))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6c(self.Mixed_6b(x))
        spatial = self.Mixed_6d.branch1x1(x)[..., :7].reshape(len(x), -1)
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = x.mean((1, 2))
        return Activations(features, self.fc(features), spatial)


class _Conv(nnx.Module):
    """Convolution, bias and ReLU. A figure that is compared with others must not depend on the device's precision."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: str = "SAME",
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = nnx.Conv(
            in_channels,
            out_channels,
            (kernel, kernel) if isinstance(kernel, int) else kernel,
            strides=stride,
            padding=padding,
            precision=jax.lax.Precision.HIGHEST,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        return jax.nn.relu(self.conv(x))


class _Mixed(nnx.Module):
    """Chains of convolutions side by side, their outputs concatenated.

    Link i of a chain is the attribute `name_i`, or `name` where it is the only one. The chain `branch_pool` begins
    with an average pool. A reduction halves the size in the last link of every chain and in a maximum pool.
    """

    def __init__(self, in_channels: int, branches: _Branches, *, reduction: bool = False, rngs: nnx.Rngs) -> None:
        self.reduction = reduction
        self.chains = tuple(
            tuple(f"{name}_{i + 1}" for i in range(len(links))) if len(links) > 1 else (name,)
            for name, links in branches.items()
        )
        for chain, links in zip(self.chains, branches.values(), strict=True):
            channels = in_channels
            for name, (out_channels, kernel) in zip(chain, links, strict=True):
                options = dict(stride=2, padding="VALID") if reduction and name == chain[-1] else {}
                setattr(self, name, _Conv(channels, out_channels, kernel, rngs=rngs, **options))
                channels = out_channels

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        outputs = []
        for chain in self.chains:
            y = _average_pool(x) if chain[0] == "branch_pool" else x
            for name in chain:
                y = getattr(self, name)(y)
            outputs.append(y)
        if self.reduction:
            outputs.append(nnx.max_pool(x, (3, 3), (2, 2)))
        return jnp.concatenate(outputs, axis=-1)


def _wide(pool: int) -> _Branches:
    return {
        "branch1x1": ((64, 1),),
        "branch5x5": ((48, 1), (64, 5)),
        "branch3x3dbl": ((64, 1), (96, 3), (96, 3)),
        "branch_pool": ((pool, 1),),
    }


def _factorised(c: int) -> _Branches:
    return {
        "branch1x1": ((192, 1),),
        "branch7x7": ((c, 1), (c, (1, 7)), (192, (7, 1))),
        "branch7x7dbl": ((c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))),
        "branch_pool": ((192, 1),),
    }


class _Expanded(nnx.Module):
    """A block whose chains end in a horizontal and a vertical convolution side by side."""

    def __init__(self, in_channels: int, *, max_pool: bool, rngs: nnx.Rngs) -> None:
        self.max_pool = max_pool
        self.branch1x1 = _Conv(in_channels, 320, 1, rngs=rngs)
        self.branch3x3_1 = _Conv(in_channels, 384, 1, rngs=rngs)
        self.branch3x3_2a = _Conv(384, 384, (1, 3), rngs=rngs)
        self.branch3x3_2b = _Conv(384, 384, (3, 1), rngs=rngs)
        self.branch3x3dbl_1 = _Conv(in_channels, 448, 1, rngs=rngs)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, rngs=rngs)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3), rngs=rngs)
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1), rngs=rngs)
        self.branch_pool = _Conv(in_channels, 192, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w 2048"]:
        y = self.branch3x3_1(x)
        z = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = nnx.max_pool(x, (3, 3), (1, 1), "SAME") if self.max_pool else _average_pool(x)
        outputs = [
            self.branch1x1(x),
            self.branch3x3_2a(y),
            self.branch3x3_2b(y),
            self.branch3x3dbl_3a(z),
            self.branch3x3dbl_3b(z),
            self.branch_pool(pooled),
        ]
        return jnp.concatenate(outputs, axis=-1)


def _average_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    return nnx.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
