"""Every config and variant is built abstractly, at full size, without allocating; one of every kind is stepped."""

import functools
import pathlib
import re
import tempfile

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax import modalities
from diffusion_jax.config import build, checks, data, from_file, saved
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.data.load import COMMON, keys
from diffusion_jax.networks.functional import count_parameters
from diffusion_jax.run.job import prepare
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training import summary
from diffusion_jax.training.step import init_state, make_train_step, trained

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.py"))
# The full-size settings of papers are slow: 2 to 10 seconds of tracing each.
AXES = ("system", "network", "loss", "parameterization", "process", "solver", "editing")

# Public networks of up to 2.6 billion parameters, which `tests/parity` compares with diffusers' at full size.
PUBLIC = re.compile("(stable_diffusion|lcm|dreambooth|inversion):(?!digits|emoji)")
SLOW = pytest.mark.slow


def variants(path: pathlib.Path) -> list[str]:
    """The keys of the dictionary VARIANTS, which the error about an unknown variant lists."""
    with pytest.raises(ValueError, match="variant 'unknown' is unknown; choose one of") as refusal:
        from_file(f"{path}:unknown")
    return str(refusal.value).partition("choose one of ")[2].split(", ")


ALL = [f"{path.stem}:{variant}" for path in FILES for variant in variants(path)]


# Two networks are traced where one stands on another.
LONG = (
    "adm:digits",
    "audio_latent:fsdd",
    "cascade:digits",
    "dequantization:digits",
    "dreambooth:digits",
    "inversion:digits",
    "lcm:digits",
    "pixel_classifier:composites",
)
FAST = {f"{path.stem}:{variants(path)[0]}" for path in FILES} - set(LONG)


def case(name: str, *values):
    """The variants that run anywhere are built in every run of the tests, the others in the slow ones."""
    return pytest.param(name, *values, marks=[] if name in FAST else [pytest.mark.slow])


def read(name: str):
    stem, _, variant = name.partition(":")
    return from_file(f"{CONFIGS / stem}.py:{variant}")


def kind(name: str) -> tuple:
    """All that a config names or switches of its system and network: variants of one kind differ in numbers alone."""
    config = read(name)
    switches = sorted((key, value) for key, value in config.network.items() if isinstance(value, str | bool))
    method = config.guidance.get("method", {}).get("name", "")
    return (*(config[axis].name for axis in AXES), method, *switches)


@functools.cache
def stepped() -> frozenset[str]:
    """The first variant of every kind, which stands for all of them where a train and a sample step are traced."""
    return frozenset({kind(name): name for name in reversed(ALL) if not PUBLIC.search(name)}.values())


# The field of a config that names the work directory of another run, and the config of that run.
STANDS_ON = {
    **{
        f"consistency:{variant}": ("system.teacher", f"edm:{run}")
        for variant, run in {
            "digits": "digits",
            "digits_ect": "digits",
            "digits_scm": "digits",
            "stacked_digits": "stacked_digits",
            "cifar10_cd": "cifar10_ncsnpp",
            "cifar10_ect": "cifar10_ddpmpp",
            "cifar10_scm": "cifar10_ddpmpp",
            "imagenet64_cd": "imagenet64_adm",
            "lsun256_cd": "lsun256_adm",
        }.items()
    },
    "dequantization:digits": ("system.model", "score_sde:digits_vp_likelihood"),
    "dequantization:mnist": ("system.model", "score_sde:mnist_vp_likelihood"),
    "dequantization:cifar10": ("system.model", "score_sde:cifar10_vp_ddpmpp_deep_likelihood"),
    "cascade:digits": ("system.base", "cascade:digits_base"),
    "cascade:mnist": ("system.base", "cascade:mnist_base"),
    "cascade:imagenet32_64": ("system.base", "cascade:imagenet32_base"),
    "cascade:imagenet64_128": ("system.base", "cascade:imagenet32_64"),
    "cascade:imagenet64_256": ("system.base", "cascade:imagenet32_64"),
    "inversion:digits": ("system.model", "stable_diffusion:digits"),
    **{
        f"{file}:{variant}_latent": ("system.autoencoder", f"{file}:{variant}")
        for file in ("diffae", "pdae")
        for variant in ("digits", "ffhq128", "ffhq256", "celeba64")
    },
    **{
        f"pdae:{variant}": ("system.teacher", f"diffae:{variant}_ddpm")
        for variant in ("digits", "emoji", "ffhq128", "ffhq256", "celeba64")
    },
    "lcm:digits": ("system.teacher", "stable_diffusion:digits"),
    "lcm:digits_lora": ("system.teacher", "stable_diffusion:digits"),
    "lcm:digits_latent": ("system.teacher", "latent_diffusion:digits_dit"),
    "lcm:digits_segments": ("system.teacher", "latent_diffusion:digits_dit"),
    **{
        f"pixel_classifier:{variant}": ("system.denoiser", run)
        for variant, run in {
            "composites": "pixel_classifier:composites_denoiser",
            "emoji": "pixel_classifier:emoji_denoiser",
            **dict.fromkeys(("bedroom256_28", "ffhq256_34", "cat256_15", "horse256_21"), "adm:lsun_bedroom256"),
        }.items()
    },
    "reflow:digits": ("system.teacher", "flow:digits"),
    "reflow:plane": ("system.teacher", "flow:plane"),
    "reflow:cifar10": ("system.teacher", "flow:cifar10"),
    "progressive_distillation:digits": ("system.teacher", "ddpm:digits"),
    "progressive_distillation:cifar10": ("system.teacher", "progressive_distillation:cifar10_teacher"),
    "progressive_distillation:imagenet64": ("system.teacher", "progressive_distillation:imagenet64_teacher"),
    **{
        f"latent_diffusion:{variant}": ("system.first_stage", run)
        for variant, run in {
            "digits": "autoencoder_kl:digits",
            "digits_dit": "vqgan:digits",
            "digits_captions": "autoencoder_kl:digits",
            "semantic_f4": "autoencoder_kl:crawl_tiles_f4",
            "layout_f4": "vqgan:crawl_tiles_f4",
            "mnist": "autoencoder_kl:mnist",
            "emoji_f4": "autoencoder_kl:emoji_f4",
            "cifar10_f2": "autoencoder_kl:cifar10_f2",
            "cifar10_f4": "autoencoder_kl:cifar10_f4",
            "crawl_tiles_f4": "autoencoder_kl:crawl_tiles_f4",
            "celebahq_ldm4": "vqgan:openimages_f4",
            "ffhq_ldm4": "vqgan:openimages_f4",
            "lsun_bedroom_ldm4": "vqgan:openimages_f4",
            "lsun_church_ldm8": "autoencoder_kl:openimages_f8",
            "imagenet_ldm4": "vqgan:openimages_f4",
            "imagenet_dit_xl2": "autoencoder_kl:openimages_f8",
        }.items()
    },
    "audio_latent:fsdd": ("system.first_stage", "audio_latent:fsdd_first_stage"),
    **{f"audio_latent:audioldm_{size}": ("system.first_stage", "audio_latent:audioldm_first_stage") for size in "sml"},
}
# Of these, what only starts as a copy of the other run, or only samples with it.
STARTS_FROM = (
    "cascade:digits",
    "cascade:mnist",
    "cascade:imagenet32_64",
    "cascade:imagenet64_128",
    "cascade:imagenet64_256",
    "consistency:digits_ect",
    "consistency:cifar10_ect",
    "consistency:cifar10_scm",
    "reflow:digits",
    "reflow:plane",
    "reflow:cifar10",
)


def as_if_trained(name: str) -> str:
    """A work directory with the config.json of "FILE:VARIANT", in which nothing was trained; so are its own runs."""
    directory, config = pathlib.Path(tempfile.mkdtemp()), read(name)
    (directory / "checkpoints").mkdir()
    if name in STANDS_ON:
        field, run = STANDS_ON[name]
        config.update_from_flattened_dict({field: as_if_trained(run)})
    saved.write_config(directory, config)
    return str(directory)


def a_tokenizer() -> str:
    """The folder of a tokenizer with few words."""
    directory = pathlib.Path(tempfile.mkdtemp())
    (directory / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "smiling", "cat"]))
    return str(directory)


@functools.cache
def built(name: str):
    """The config "FILE:VARIANT" for two examples and two sampling steps, its system, optimizer and abstract state."""
    config = read(name)
    config.training.batch_size = 2
    config.sampling.steps = min(config.sampling.steps, 2) if config.editing.name == "none" else 4
    if config.sampling.grid.name == "betas":  # one for each step
        config.sampling.grid["values"] = config.sampling.grid["values"][: config.sampling.steps]
    if segments := config.system.get("schedule", {}).get("segments", 0):  # which steps of sampling do not cross
        config.sampling.steps = segments
    if config.system.name == "ddgan":  # whose steps are those of its process
        config.sampling.steps = config.process.num_steps
    if "length" in config.editing:  # of jumps, in steps
        config.editing.length = 1
    if name in STANDS_ON:
        field, run = STANDS_ON[name]
        config.update_from_flattened_dict({field: as_if_trained(run)})
    if config.data.get("tokenizer"):  # made by a command of the docs
        config.data.tokenizer = a_tokenizer()
    checks.check_keys(config)
    build.check_read(config)
    made = build.build(config)
    system, (optimizer, _) = made.system, made.parts.optimizer()
    state = jax.eval_shape(lambda key: init_state(system, optimizer, config.ema.rates, key), jax.random.key(0))
    return config, system, optimizer, state


def numbers_of(system):
    """What `draw` reads once, abstractly for the base of a cascade, which is not trained here; None: it reads it."""
    if getattr(system, "base", None) is None:
        return None
    base = system.base.system
    params = jax.eval_shape(base.init, jax.random.key(0))
    return {"guidance": system.diffusion.numbers(), "base": params, "of_base": base.numbers()}


def test_the_files_are_found():
    assert {"ncsn", "ncsnv2", "ddpm", "score_sde", "edm", "flow", "dit", "toy2d"} <= {path.stem for path in FILES}
    assert len(ALL) >= 40


@pytest.mark.parametrize("name", [case(name) for name in ALL if not PUBLIC.search(name)])
def test_builds_and_traces_a_train_and_a_sample_step(name):
    """Every variant is built and initialised, and one of every kind is stepped."""
    config, system, optimizer, state = built(name)
    assert count_parameters(state.params) > 0
    if name not in stepped():
        return
    step = make_train_step(system, optimizer, num_steps=config.training.num_steps, ema_rates=config.ema.rates)
    batch = {name: jax.ShapeDtypeStruct((2, *entry.shape), entry.dtype) for name, entry in system.batch.items()}
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics["loss"].shape == ()

    if system.makes is None:  # it draws nothing
        return
    cond = system.conditions.null(2)
    drawn = jax.eval_shape(system.draw, state.params, jax.random.key(0), jnp.arange(2), cond, numbers_of(system))
    assert drawn["samples"].shape == (2, *system.makes.shape)


@pytest.mark.parametrize("name", STANDS_ON)
def test_a_missing_run_is_refused_with_the_command_that_trains_it(name):
    config = read(name)
    field, _ = STANDS_ON[name]
    directory, file = (config.system[key] for key in (field.removeprefix("system."), f"{field}_config"[7:]))
    with pytest.raises(ConfigError, match=rf"config\.{field}='{directory}'.*--config={file} --workdir={directory}"):
        build.build(config)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("dequantization:digits", "latent_diffusion:digits_dit") else SLOW)
        for name in STANDS_ON
    ],
)
def test_a_plan_needs_no_trained_run(name):
    job = prepare(read(name), 2, planning=True)
    assert count_parameters(trained(job.state.params)) > 0
    if name in STARTS_FROM:
        assert "frozen" not in job.state.params
    else:
        assert count_parameters(job.state.params["frozen"]) > 0


def sets_of(config):
    """The sections of the data sets of a config that hold its examples: several, where it joins them."""
    parts = [config.data[key] for key in ("x", "image", "instance", "examples") if key in config.data]
    return parts or [config.data]


@pytest.mark.parametrize("name", ALL)
def test_data_section(name):
    config = read(name)
    assert {key for key, value in config.data.items() if value != ""} <= {*COMMON, *keys(config.data.name)}
    assert not config.data.get("path")
    names = {part.name for part in sets_of(config)}
    assert set(config.evaluation.metrics) <= {modalities.AUTO, *modalities.of(data.spec(config)).metrics}
    if ":digits" in name:
        assert names == {"digits"} and config.training.num_steps <= 20_000
    small = names <= {"digits", "mnist", "toy", "composites"} or "retrieval" in config.evaluation.metrics
    short = config.training.num_steps <= 20_000
    small = small or (names <= {"text", "audio", "clouds"} and short) or ":eeg" in name
    small = small or (name.startswith("medical:") and short and ":histology" not in name)
    # Of a subject, of pictures after an edit, there are too few held-out examples or none to compare with. The 1,000
    # classes of stacked digits are too many for the classifier that features are of.
    small = small and config.data.name not in ("mixed", "edits", "stacked")
    assert config.evaluation.after_training == small
    assert bool(config.evaluation.metrics) == (small and config.system.name != "noisy_classifier")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_default_variant_runs_anywhere(path):
    config = from_file(str(path))
    # There is no package with recordings of speech: the error about the path says where to get some.
    assert sets_of(config)[0].name in ("digits", "toy", "text", "series", "audio", "composites", "clouds", "tiles")
    assert not config.data.get("path")
    assert config.to_dict() == read(f"{path.stem}:{variants(path)[0]}").to_dict()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_docstring_gives_the_command_and_the_variants(path):
    source = path.read_text()
    docstring = source.split('"""')[1]
    commands = re.findall(r"python -m diffusion_jax\.main --config=configs/(\w+)\.py(?::(\w+))?", docstring)
    assert (path.stem, "") in commands
    for name, variant in commands:
        assert not variant or variant in variants(CONFIGS / f"{name}.py")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        case("ddpm:cifar10", 35_746_307),  # 35.7 M, arXiv:2006.11239, appendix B
        case("ddpm:celebahq256", 113_673_219),  # 114 M, ibid.
        case("ncsnv2:cifar10", 29_694_083),  # as counted in the authors' network
        # As printed when training the authors' network.
        case("edm:afhqv2_64_ddpmpp", 61_805_571),
        # The same network, less the 9 x 128 weights that read the augmentation; attention sits at another level.
        case("flow:cifar10", 61_805_571 - 9 * 128),
        case("score_sde:cifar10_vp_ddpmpp", 61_805_571 - 9 * 128),
        # As printed by the authors' training script, less its fixed position table.
        case("dit:imagenet256_xl2", 675_129_632 - 256 * 1152),
        # The same, less the channels of the variance.
        case("dit:imagenet256_xl2_simple", 675_129_632 - 256 * 1152 - (2 * 2 * 4) * (1152 + 1)),
        case("latent_diffusion:imagenet_dit_xl2", 675_129_632 - 256 * 1152),
    ],
)
def test_published_parameter_counts(name, count):
    assert count_parameters(built(name)[-1].params["network"]) == count


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # arXiv:2102.09672 and the README of openai/improved-diffusion.
        case("iddpm:imagenet64_cond", 270),
        case("iddpm:upsampler_64_256", 280),
        # arXiv:2105.05233, table 12, and arXiv:2112.10752, tables 12 and 13.
        case("adm:imagenet64", 296),
        case("adm:imagenet256", 554),
        case("latent_diffusion:celebahq_ldm4", 274),
        case("latent_diffusion:lsun_church_ldm8", 294),
        case("latent_diffusion:imagenet_ldm4", 395),
        # The README of cvssp/audioldm-l-full; for S it has 181, and the file of its weights 185.
        case("audio_latent:audioldm_s", 185),
        case("audio_latent:audioldm_l", 739),
    ],
)
def test_published_sizes(name, millions):
    """Numbers of parameters that are published rounded; latent diffusion's are those of the network alone."""
    assert count_parameters(built(name)[-1].params["network"]) == pytest.approx(1e6 * millions, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("audio_latent:audioldm_s", 740_429_981), ("audio_latent:audioldm_first_stage", 221_586_505)]
)
def test_audioldm_has_as_many_parameters_as_the_public_files(name, size):
    """Sizes of unet/ and vae/diffusion_pytorch_model.bin of cvssp/audioldm-s-full-v2: four bytes for each parameter and
    some hundred for the name of each array."""
    network = built(name)[-1].params["network"]
    assert 0 < size - 4 * count_parameters(network) < 600 * len(jax.tree.leaves(network))


@pytest.mark.parametrize(("variant", "epsilon"), [("cifar10", 6.2e-6), ("celeba", 3.3e-6), ("bedroom", 1.8e-6)])
def test_ncsnv2_step_size_is_the_papers(variant, epsilon):
    # The paper's epsilon (appendix B) is for data in [0, 1] and noise sqrt(2 epsilon): ours is 4 times 2 times that.
    assert read(f"ncsnv2:{variant}").solver.step_size == pytest.approx(8 * epsilon, rel=0.02)


@pytest.mark.parametrize(
    ("name", "num_evaluations"), [("edm:cifar10_ddpmpp", 35), ("edm:ffhq_64_ncsnpp", 79), ("edm:digits", 35)]
)
def test_edm_takes_the_papers_number_of_network_evaluations(name, num_evaluations):
    config = read(name)
    assert config.sampling.denoise and config.sampling.grid.denoising
    assert 2 * config.sampling.steps - 1 == num_evaluations


def test_edm_average_forgets_half_in_half_a_million_images():
    config = read("edm:cifar10_ddpmpp")
    (rate,) = config.ema.rates
    assert rate ** (500_000 / config.training.batch_size) == pytest.approx(0.5)
    assert config.training.num_steps * config.training.batch_size == pytest.approx(200e6, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "fsdp", "tensor", "least"),
    [
        case("ddpm:cifar10", 8, 1, 7.7),
        case("ddpm:cifar10", 16, 4, 48),
        case("dit:imagenet256_xl2", 8, 1, 7.9),
        case("dit:imagenet256_xl2", 64, 1, 60),
        case("dit:imagenet256_xl2", 128, 8, 560),
    ],
)
def test_bytes_on_each_device_fall_with_the_mesh(name, fsdp, tensor, least):
    """Small arrays stay whole, so that the last devices save less."""
    state = built(name)[-1]
    mesh = meshes.make_mesh(data=1, fsdp=fsdp, tensor=tensor, devices=fsdp * tensor)
    placed = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        meshes.state_sharding(mesh, state),
    )
    for whole, one in summary.state_bytes(placed).values():
        assert least <= whole / one <= fsdp * tensor
