"""Presets: sections that several configs have in common, as keyword arguments of `replace`.

    replace(defaults(), network=presets.mnist_unet(), **presets.mnist(3000), sampling=dict(batch_size=100))

Variants of digits and MNIST train on a CPU in minutes; those of CIFAR-10 are the common setting of several papers.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config.defaults import defaults, replace

Section = dict[str, Any]
TEXT8 = " abcdefghijklmnopqrstuvwxyz"  # the characters of text8
SHAKESPEARE = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # those of Tiny Shakespeare
SMILES = "\n#()+-/1234567=@BCFHINOPS[\\]clnors"  # those of molecules of ZINC, and the end of a line
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")  # captions of digits


def ddpm(betas: str = "linear", num_steps: int = 1000, **process: Any) -> dict[str, Section]:
    """DDPM's discrete process, with eps-prediction and uniform timesteps. Keywords are those of `discrete_vp`."""
    return dict(
        process=dict(name="discrete_vp", betas=betas, num_steps=num_steps, **process),
        parameterization=dict(name="eps", label="index"),
        times=dict(name="discrete", num_steps=num_steps),
    )


def preconditioned(sigma_data: float = 0.5) -> dict[str, Section]:
    """The cosine schedule with EDM's preconditioning.

    With it, networks without skip connections from input to output learn fastest.
    """
    return dict(
        process=dict(name="discrete_vp", betas="cosine", num_steps=1000),
        parameterization=dict(name="edm", sigma_data=sigma_data),
    )


def adam(learning_rate: float = 1e-3, warmup_steps: int = 200, **options: Any) -> Section:
    """Adam with a warm-up, a cosine schedule and gradient clipping, for short training."""
    return dict(
        name="adam",
        learning_rate=learning_rate,
        schedule="cosine",
        warmup_steps=warmup_steps,
        clip_norm=1.0,
        **options,
    )


def digits(num_steps: int, batch_size: int = 128, *, warmup_steps: int = 200, **training: Any) -> dict[str, Section]:
    """Training on the 8 x 8 digits of scikit-learn, which are the default data."""
    return dict(
        training=dict(num_steps=num_steps, batch_size=batch_size, log_every=100, **training),
        optimizer=adam(warmup_steps=warmup_steps),
        ema=dict(rates=(0.999,)),
    )


def mnist_data() -> Section:
    """MNIST, see `diffusion_jax.data.prepare`."""
    return dict(name="mnist", split="train", eval_split="test", image_size=28, channels=1, path="")


def _stacked(name: str, image_size: int, num_examples: int) -> Section:
    """Three independent images of a grey data set as the channels of one, see `data.sources.stacked`."""
    return dict(
        name="stacked",
        split="train",
        eval_split="test",
        image_size=image_size,
        channels=3,
        examples=dict(name=name),
        num_examples=num_examples,
        seed=0,
    )


def stacked_digits() -> Section:
    """Three of the digits of scikit-learn: 1,000 modes."""
    return _stacked("digits", 8, 50_000)


def stacked_mnist() -> Section:
    """StackedMNIST, three digits of MNIST, in 28 x 28 pixels."""
    return _stacked("mnist", 28, 120_000)


def mnist_unet(**network: Any) -> Section:
    """A U-Net for MNIST that a CPU trains in about 20 minutes."""
    sizes = dict(channels=16, channel_mult=(1, 2, 4), num_res_blocks=1, attention_resolutions=(7,), num_groups=8)
    return dict(name="unet", **sizes, **network)


def mnist(num_steps: int, batch_size: int = 32, *, sample_every: int = 1000) -> dict[str, Section]:
    """MNIST, and training on it."""
    return dict(
        data=mnist_data(),
        training=dict(num_steps=num_steps, batch_size=batch_size, checkpoint_every=500, sample_every=sample_every),
        optimizer=adam(),
        ema=dict(rates=(0.999,)),
    )


def compared(num_steps: int, batch_size: int = 128, **likelihood: Any) -> dict[str, Section]:
    """Stacked digits, dequantized, and training on them, for the comparison of families in benchmarks/trilemma.py.

    `likelihood` is what the model is evaluated by, if it has one.
    """
    examples = dict(name="digits", levels=17, dequantize=True)
    return dict(
        data=stacked_digits() | dict(examples=examples),
        **digits(num_steps, batch_size, sample_every=0),
        evaluation=dict(
            metrics=(),
            after_training=False,
            likelihood=dict(likelihood, levels=17) if likelihood else dict(name="none"),
        ),
    )


def cifar10_data(**data: Any) -> Section:
    """CIFAR-10, see `diffusion_jax.data.prepare`."""
    return dict(name="cifar10", split="train", eval_split="test", image_size=32, channels=3, path="", **data)


def cifar10_unet(**network: Any) -> Section:
    """DDPM's U-Net for CIFAR-10."""
    sizes = dict(channels=128, channel_mult=(1, 2, 2, 2), attention_resolutions=(16,), dropout=0.1)
    return dict(name="unet", **sizes, **network)


def cifar10(
    num_steps: int, *, ema_rate: float = 0.9999, ema_warmup: bool = False, sample_every: int = 10_000
) -> dict[str, Section]:
    """CIFAR-10 with random flips, and DDPM's training on it."""
    return dict(
        data=cifar10_data(flip=True),
        training=dict(num_steps=num_steps, batch_size=128, checkpoint_every=10_000, sample_every=sample_every),
        optimizer=dict(name="adam", learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
        ema=dict(rates=(ema_rate,), warmup=ema_warmup),
        evaluation=dict(metrics=(), after_training=False),
    )


def emoji_data(**data: Any) -> Section:
    """32 x 32 pictures with their names as captions, in an .npz file. A twentieth of them is held out."""
    splits = dict(split="train[:95%]", eval_split="train[95%:]")
    keys = dict(caption_key="names", label_key="groups")
    return dict(name="arrays", **splits, image_size=32, channels=3, path="", **keys, **data)


def first_stage(**sections: Any) -> ConfigDict:
    """A config of an autoencoder. The solver and its steps are unused."""
    config = replace(
        defaults(),
        loss=dict(name="l1"),
        sampling=dict(steps=1),
        optimizer=dict(name="adam", learning_rate=1e-3, schedule="cosine", warmup_steps=100, b1=0.5, b2=0.9),
        ema=dict(rates=(0.999,)),
    )
    return replace(config, **sections)


def adversarial(
    *, start: int, perceptual: str = "laplacian", channels: int = 64, n_layers: int = 3, weight: float = 0.5
) -> dict[str, Section]:
    """The perceptual loss and the discriminator of an autoencoder, keys of its section `system`."""
    files = dict(vgg="", lin="") if perceptual == "lpips" else {}
    sizes = dict(channels=channels, n_layers=n_layers, num_groups=min(channels, 32))
    return dict(
        perceptual=dict(name=perceptual, weight=1.0, **files),
        discriminator=dict(name="patchgan", **sizes, start=start, weight=weight),
    )


def first_stage_digits() -> dict[str, Section]:
    """Training of an autoencoder on the 8 x 8 digits of scikit-learn."""
    return dict(
        training=dict(num_steps=1500, batch_size=64, log_every=50, checkpoint_every=500, sample_every=500),
        sampling=dict(num_samples=50),
    )


def first_stage_mnist() -> dict[str, Section]:
    """MNIST, and training of an autoencoder on it."""
    return dict(
        data=mnist_data(),
        training=dict(num_steps=3000, batch_size=32, log_every=50, checkpoint_every=500, sample_every=500),
        sampling=dict(num_samples=50),
    )


def first_stage_folder(**data: Any) -> dict[str, Section]:
    """A folder of 32 x 32 images, and training of an autoencoder on it: hours on a CPU, minutes on a GPU."""
    return dict(
        data=dict(name="folder", image_size=32, channels=3, path="", **data),
        training=dict(num_steps=30_000, batch_size=64, checkpoint_every=1000, sample_every=1000),
        optimizer=dict(learning_rate=4e-4),
        sampling=dict(num_samples=50),
        evaluation=dict(metrics=(), after_training=False),
    )


def first_stage_256(*, num_steps: int, batch_size: int, **data: Any) -> dict[str, Section]:
    """A folder of images, and training of an autoencoder on 256 x 256 pixels of them, as in latent diffusion and VQGAN.

    The authors' learning rate is 4.5e-6 per image of the batch; they average no weights.
    """
    learning_rate = 4.5e-6 * batch_size
    return dict(
        data=dict(name="folder", split="train", eval_split="train", image_size=256, channels=3, path="", **data),
        training=dict(num_steps=num_steps, batch_size=batch_size, checkpoint_every=5000, sample_every=5000),
        optimizer=dict(name="adam", learning_rate=learning_rate, schedule="constant", warmup_steps=0, b1=0.5, b2=0.9),
        ema=dict(rates=()),
        sampling=dict(num_samples=16, batch_size=16),
        evaluation=dict(metrics=(), after_training=False),
    )


def shakespeare_data(length: int = 128) -> Section:
    """Tiny Shakespeare, one file of 1.1 M characters, whose last tenth is held out."""
    keys = dict(length=length, alphabet=SHAKESPEARE, held_out=0.1)
    return dict(name="text", split="train", eval_split="test", path="", **keys)


def small_adm(num_steps: int, batch_size: int = 16, **network: Any) -> dict[str, Section]:
    """A small U-Net of pictures that predicts v. The weights, max(SNR, 1), train D at high noise as well."""
    sizes = dict(model_channels=16, channel_mult=(1, 2, 2), num_res_blocks=1, num_head_channels=16, num_groups=8)
    return dict(
        process=dict(name="cosine"),
        parameterization=dict(name="v", label="time"),
        weighting=dict(name="truncated_snr"),
        solver=dict(name="ddim"),
        network=dict(name="adm", **sizes, **network),
        training=dict(num_steps=num_steps, batch_size=batch_size, log_every=50, checkpoint_every=500, sample_every=0),
        optimizer=adam(2e-3, warmup_steps=100),
        ema=dict(rates=(0.995,)),
    )


def series(*, length: int, channels: int, ends: tuple[float, ...] = (0.7, 0.8, 1.0), **options: Any) -> Section:
    """Windows of a time series, of which the splits end at `ends`, see `data.sources.series`."""
    where = dict(split="train", eval_split="test", path="", ends=ends)
    return dict(name="series", length=length, channels=channels, **where, **options)


def paths(*, batch_size: int) -> dict[str, Section]:
    """Sixteen paths of each window of a series, by a sampler of 16 steps."""
    grid = dict(name="discrete", spacing="trailing")
    return dict(
        solver=dict(name="sde_dpm_solver_pp"),
        sampling=dict(num_samples=96, samples_per_condition=16, steps=16, batch_size=batch_size, grid=grid),
        evaluation=dict(num_samples=512, samples_per_condition=16, metrics=("auto",)),
    )


def fsdd(length: int = 6144, n_fft: int = 256, hop: int = 64, num_mels: int = 40, **data: Any) -> Section:
    """The Free Spoken Digit Dataset, 8 kHz: recordings 0 to 4 of each speaker and digit are held out."""
    names = dict(pattern=r"(?P<label>\d)_[^_]+_(?P<index>\d+)", held_out=5)
    mel = dict(n_fft=n_fft, hop=hop, num_mels=num_mels, f_min=20.0)
    return dict(
        name="audio",
        split="train",
        eval_split="test",
        path="",
        sample_rate=8000,
        length=length,
        mel=mel,
        **names,
        **data,
    )


def clouds(points: int, **data: Any) -> Section:
    """Point clouds; without a path synthetic solids, see `data.sources.clouds`."""
    return dict(name="clouds", split="train", eval_split="test", path="", points=points) | data


def kaykit(points: int = 128, **data: Any) -> Section:
    """Clouds of KayKit's game assets in an .npz file: one of each shape, every other one held out."""
    return clouds(points, split="train[:50%]", eval_split="train[50%:]", deduplicate=1.3, **data)


def small_clouds(num_steps: int, batch_size: int = 16, **network: Any) -> dict[str, Section]:
    """A transformer of 0.2 M parameters that attends by way of 16 tokens, with EDM's preconditioning and sampler.

    Clouds in their box have a standard deviation of about 0.5.
    """
    sizes = dict(width=64, depth=4, num_heads=4, mlp_ratio=2.0, inducing=16)
    return dict(
        process=dict(name="edm", sigma_min=0.002, sigma_max=20.0),
        parameterization=dict(name="edm", sigma_data=0.5),
        weighting=dict(name="edm", sigma_data=0.5),
        times=dict(name="log_normal", mean=-1.2, std=1.2),
        network=dict(name="point_transformer", **sizes, prepend_time=False, embedding="fourier", **network),
        solver=dict(name="heun"),
        training=dict(num_steps=num_steps, batch_size=batch_size, log_every=50, checkpoint_every=500, sample_every=0),
        optimizer=adam(2e-3, warmup_steps=100),
        ema=dict(rates=(0.995,)),
        sampling=dict(
            num_samples=24, batch_size=64, steps=18, grid=dict(name="karras", rho=7.0, denoising=True), denoise=True
        ),
        evaluation=dict(num_samples=100, metrics=("auto",)),
    )
