"""Images that follow a map: masks, sketches, colour segmentations, skeletons and depth maps.

    python -m diffusion_jax.main --config=configs/maps.py --workdir=runs/maps
    python -m diffusion_jax.data.prepare conditions --kind skeleton --from FOLDER --data_dir DIR
    python -m diffusion_jax.main --config=configs/maps.py:skeleton --workdir=runs/skeleton --config.data.path=DIR

The map is concatenated to the noisy image. Without a variant, 16 x 16 pictures of handwritten digits upon photographs
are drawn where their masks are, in minutes on two CPU cores. The other variants read pairs that `data.prepare
conditions` makes: `skeleton` of MNIST's official files, `sketch` and `segmentation` of 32 x 32 pictures such as emoji,
and `depth` of point clouds. The pairs also have the entry `control`, which a ControlNet reads, see
`stable_diffusion.py:controlnet`.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def maps(
    num_steps: int, *, channels: int, map_channels: int, side: int, data: dict[str, Any] | None = None
) -> ConfigDict:
    """v-prediction, whose low-frequency errors at high noise are not divided by alpha, in 25 steps of DDIM."""
    arrays = dict(name="arrays", split="train", eval_split="test", image_size=side, channels=channels, path="")
    return replace(
        defaults(),
        **presets.small_adm(num_steps, attention_resolutions=(side // 4,), image_channels=map_channels),
        data=arrays if data is None else data,
        sampling=dict(num_samples=64, steps=25, batch_size=100, threshold=dict(name="static")),
        evaluation=dict(num_samples=100, metrics=(), after_training=False),
    )


def composites() -> ConfigDict:
    data = dict(name="composites", split="train", eval_split="test", image_size=16, target="picture", path="")
    config = maps(2000, channels=3, map_channels=1, side=16, data=data)
    return replace(config, evaluation=dict(metrics=("auto",), after_training=True))


VARIANTS = {
    "composites": composites,
    "skeleton": lambda: maps(2000, channels=1, map_channels=1, side=28),
    "sketch": lambda: maps(3000, channels=3, map_channels=1, side=32),
    "segmentation": lambda: maps(3000, channels=3, map_channels=6, side=32),
    "depth": lambda: maps(3000, channels=1, map_channels=1, side=32),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "composites")()
