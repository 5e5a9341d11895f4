"""Whole pipelines against diffusers': folders that it writes, the same prompts, noise and steps, the same images."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import solvers
from diffusion_jax.config import from_file, replace
from diffusion_jax.processes import prior, row_keys, row_normal
from diffusion_jax.run import convert, requests
from diffusion_jax.run.job import prepare
from diffusion_jax.run.parameters import fresh_state, load_params
from diffusion_jax.solvers import grids
from diffusion_jax.weights import autoencoders, clip, unet_2d_condition
from diffusion_jax.weights.textual_inversion import Learned, write_learned
from tests.parity import relative_error, schedulers

pytestmark = pytest.mark.parity
STEPS, PROMPTS, NEGATIVE = 4, ("A red fox!", "two café chairs"), "blurry"
DDIM = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


def shaken(model, torch, seed):
    """Noise on every parameter, so that none is zero or one."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def make_tokenizer(folder, transformers):
    """One of a few hundred tokens: the bytes and some pairs of them."""
    letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    merges = [("r", "e"), ("re", "d</w>"), ("f", "o"), ("fo", "x</w>"), ("t", "w")]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]))
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=12)
    return tokenizer, len(vocabulary)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(torch, diffusers, the components that all pipelines share)."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    tokenizer, size = make_tokenizer(tmp_path_factory.mktemp("tokenizer"), transformers)
    text = transformers.CLIPTextConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
        scaling_factor=0.7,
    )
    shared = dict(
        vae=shaken(vae, torch, 0), text_encoder=shaken(transformers.CLIPTextModel(text), torch, 1), tokenizer=tokenizer
    )
    return torch, diffusers, shared


def make_pipeline(kind, parts, folder, components=None, safety=True, **unet):
    torch, diffusers, shared = parts
    network = diffusers.UNet2DConditionModel(
        **dict(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=16,
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        | unet
    )
    given = shared | dict(unet=shaken(network, torch, 2), scheduler=diffusers.DDIMScheduler(**DDIM))
    if safety:
        given |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline = getattr(diffusers, kind)(**given | (components or {}))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def text_section(folder, **more):
    return {"name": "clip_text", **clip.text_arguments(json.loads((folder / "config.json").read_text())), **more}


def configured(pipeline, folder, task="text_to_image", network=None, **sections):
    """A config with the folder's weights."""
    config = from_file("configs/stable_diffusion.py:sd15")
    stage = autoencoders.kl_arguments(dict(pipeline.vae.config))
    unet = {"name": "unet_2d_condition", **unet_2d_condition.arguments(dict(pipeline.unet.config))}
    config.network = ConfigDict({**(network or unet), "max_tokens": 12})
    system = dict(
        task=task,
        latent_scale=0.7,
        negative_prompt=NEGATIVE,
        text_encoder=text_section(folder / "text_encoder"),
        first_stage={"name": "autoencoder_kl", **{k: v for k, v in stage.items() if k != "image_size"}},
    )
    given = dict(
        data=dict(image_size=16),
        training=dict(dtype="float32", batch_size=2),
        sampling=dict(steps=STEPS),
        guidance=dict(name="classifier_free", scale=3.0),
        weights=str(folder),
    )
    for key, value in (system | sections.pop("system", {})).items():
        config.system[key] = ConfigDict(value) if isinstance(value, dict) else value
    return replace(config, **given | sections)


def ours(pipeline, folder, *arguments, **sections):
    """The system of `configured` and its parameters."""
    job = prepare(configured(pipeline, folder, *arguments, **sections))
    return job.system, load_params(job, folder)[0]


def first_time(system):
    """Where sampling starts."""
    return system.diffusion.grid(system.diffusion.process, system.diffusion.steps)[0]


def noise(system, key):
    """What `draw` starts from, in PyTorch's layout."""
    shape = (len(PROMPTS), *system.diffusion.shape)
    rows, first = jax.random.split(key, 3)[0], first_time(system)
    x = prior(system.diffusion.process, rows, shape, ids=jnp.arange(len(PROMPTS)), t=first)
    return np.asarray(x).transpose(0, 3, 1, 2)


def images(pipeline, torch, **arguments):
    """What the pipeline draws, not clipped, NHWC."""
    with torch.no_grad():
        z = pipeline(
            prompt=list(PROMPTS), negative_prompt=[NEGATIVE] * len(PROMPTS), output_type="latent", **arguments
        ).images
        return pipeline.vae.decode(z / 0.7).sample.numpy().transpose(0, 2, 3, 1)


def photo(channels):
    return np.random.default_rng(3).uniform(-1, 1, (2, 16, 16, channels)).astype(np.float32)


def without_noise(monkeypatch):
    """Latents of conditions are the mean here, and samples of the posterior there."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


def nchw(array, torch):
    return torch.tensor(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def test_text_to_image_from_a_folder(parts, tmp_path):
    torch, diffusers, _ = parts
    pipeline = make_pipeline("StableDiffusionPipeline", parts, tmp_path)
    key = jax.random.key(5)
    system, params = ours(pipeline, tmp_path)
    cond = requests.requested("|".join(PROMPTS), system.conditions, 2, system.texts.tokenize)
    common = dict(num_inference_steps=STEPS, guidance_scale=3.0, latents=torch.tensor(noise(system, key)))
    assert relative_error(system.sample(params, key, 2, cond)["samples"], images(pipeline, torch, **common)) < 1e-3

    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler(
        **{name: value for name, value in DDIM.items() if name.startswith("beta")},
        timestep_spacing="trailing",
        lower_order_final=False,
    )
    changes = dict(solver=solvers.dpm_solver_pp(), grid=grids.discrete("trailing"))
    system = dataclasses.replace(system, diffusion=dataclasses.replace(system.diffusion, **changes))
    common |= dict(latents=torch.tensor(noise(system, key)))
    with schedulers.full_order():
        ours_drawn = system.sample(params, key, 2, cond)["samples"]
    assert relative_error(ours_drawn, images(pipeline, torch, **common)) < 1e-3


def test_learned_tokens(parts, tmp_path):
    """States of prompts with a token of two vectors, in a file that we write and the pipeline loads."""
    torch, _, shared = parts
    own = {name: copy.deepcopy(shared[name]) for name in ("text_encoder", "tokenizer")}
    pipeline = make_pipeline("StableDiffusionPipeline", parts, tmp_path / "theirs", own)
    vectors = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    write_learned(tmp_path / "token", Learned("<cat>", (vectors,)))
    system, params = ours(pipeline, tmp_path / "theirs", system=dict(embeddings=(str(tmp_path / "token"),)))
    pipeline.load_textual_inversion(str(tmp_path / "token"))
    prompts = ["a red <cat>!", "<cat> two <cat>", "two"]
    with torch.no_grad():
        expected = pipeline.encode_prompt(prompts, "cpu", 1, False)[0].numpy()
    ids = system.texts.tokenize(prompts)
    found = np.asarray(system.texts.encode(params["frozen"]["text"], jnp.asarray(ids))["tokens"])
    assert relative_error(found, expected) < 1e-5
    assert system.texts.describe(ids)[2] == "two"
    assert (ids >= len(shared["tokenizer"])).sum(axis=1).tolist() == [2, 4, 0]


def test_latent_consistency(parts, tmp_path):
    """With the embedding of the scale, which both evaluate the network with once, and the same noise between steps."""
    torch, diffusers, _ = parts
    components = dict(scheduler=diffusers.LCMScheduler(original_inference_steps=50))
    pipeline = make_pipeline("LatentConsistencyModelPipeline", parts, tmp_path, components, time_cond_proj_dim=20)
    key, student = jax.random.key(11), from_file("configs/lcm.py:dreamshaper")
    sections = {name: student[name].to_dict() for name in ("parameterization", "solver")}
    sampling = dict(steps=STEPS, grid=student.sampling.grid.to_dict())
    guidance = dict(name="embedded", scale=3.0)
    system, params = ours(pipeline, tmp_path, guidance=guidance, sampling=sampling, **sections)
    rows = row_keys(jax.random.split(key, 3)[1], jnp.arange(len(PROMPTS)))
    z = jnp.zeros((len(PROMPTS), *system.diffusion.shape))
    noises = lambda step: row_normal(row_keys(rows, step), z).transpose(0, 3, 1, 2)
    with torch.no_grad(), schedulers.injected(pipeline.scheduler, noises):
        found = pipeline(
            prompt=list(PROMPTS),
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            latents=torch.tensor(noise(system, key)),
            output_type="latent",
        ).images
        expected = pipeline.vae.decode(found / 0.7).sample.numpy().transpose(0, 2, 3, 1)
    cond = {"tokens": system.texts.tokenize(PROMPTS)}
    assert relative_error(system.sample(params, key, 2, cond)["samples"], expected) < 1e-3


def test_a_converted_pipeline_is_a_teacher(parts, tmp_path):
    """Its tokenizer, encoders and first stage are those of the student, and its U-Net the base of low-rank updates."""
    pipeline = make_pipeline("StableDiffusionPipeline", parts, tmp_path / "theirs")
    config = configured(pipeline, tmp_path / "theirs")
    convert.to_workdir(tmp_path / "theirs", tmp_path / "run", config)
    student = from_file("configs/lcm.py:sd15_lora")
    student.network, student.system.teacher = config.network, str(tmp_path / "run")
    training = dict(dtype="float32", batch_size=2)
    job = prepare(replace(student, data=dict(image_size=16), training=training, lora=dict(rank=2)))
    params = fresh_state(job).params
    expected = pipeline.unet.conv_out.weight.detach().numpy().transpose(2, 3, 1, 0)
    for network in (params["frozen"]["network"], params["frozen"]["teacher"]["network"]):
        np.testing.assert_array_equal(network["conv_out"]["kernel"], expected)
    assert params["lora"]["encoder"]["mid_block"]["resnets"]["0"]["conv1"]["down"].shape[-1] == 2
    batch = {"x": photo(3), "tokens": job.system.tokenize(PROMPTS)}
    loss, _ = jax.jit(lambda p: job.learner.loss(p, jax.random.key(0), batch, None))(params)
    assert loss.shape == (2,) and np.isfinite(loss).all() and (loss > 0).all()


def test_image_to_image(parts, tmp_path, monkeypatch):
    torch, _, _ = parts
    pipeline = make_pipeline("StableDiffusionImg2ImgPipeline", parts, tmp_path)
    without_noise(monkeypatch)
    key, x = jax.random.key(6), photo(3)
    system, params = ours(pipeline, tmp_path, "image_to_image", system=dict(strength=0.6))
    start = noise(system, key) / float(system.diffusion.process.sigma(first_time(system)))
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **kwargs: torch.tensor(start))
    cond = {"tokens": system.texts.tokenize(PROMPTS), "image": x}
    expected = images(
        pipeline, torch, image=nchw(x, torch), strength=0.6, num_inference_steps=STEPS, guidance_scale=3.0
    )
    assert relative_error(system.sample(params, key, 2, cond)["samples"], expected) < 1e-3


def test_inpainting(parts, tmp_path, monkeypatch):
    torch, _, _ = parts
    pipeline = make_pipeline("StableDiffusionInpaintPipeline", parts, tmp_path, in_channels=9)
    without_noise(monkeypatch)
    key, x = jax.random.key(7), photo(4)
    system, params = ours(pipeline, tmp_path, "inpainting")
    expected = images(
        pipeline,
        torch,
        image=nchw(x[..., :3], torch),
        mask_image=nchw((x[..., 3:] >= 0).astype(np.float32), torch),
        height=16,
        width=16,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        latents=torch.tensor(noise(system, key)),
    )
    cond = {"tokens": system.texts.tokenize(PROMPTS), "image": x}
    assert relative_error(system.sample(params, key, 2, cond)["samples"], expected) < 1e-3


def test_instruct_pix2pix(parts, tmp_path):
    torch, _, _ = parts
    pipeline = make_pipeline("StableDiffusionInstructPix2PixPipeline", parts, tmp_path, in_channels=8)
    key, x = jax.random.key(8), photo(3)
    guidance = dict(name="instruct_pix2pix", scale=3.0, image_scale=1.7)
    system, params = ours(pipeline, tmp_path, "instruct_pix2pix", guidance=guidance)
    expected = images(
        pipeline,
        torch,
        image=nchw(x, torch),
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        image_guidance_scale=1.7,
        latents=torch.tensor(noise(system, key)),
    )
    cond = {"tokens": system.texts.tokenize(PROMPTS), "image": x}
    assert relative_error(system.sample(params, key, 2, cond)["samples"], expected) < 1e-3


def test_xl(parts, tmp_path):
    """Two encoders, the second of which has other padding, sizes, and zeros in the place of an empty text."""
    torch, _, shared = parts
    transformers = pytest.importorskip("transformers")
    text = transformers.CLIPTextConfig(
        **{**shared["text_encoder"].config.to_dict(), "hidden_act": "gelu", "projection_dim": 10}
    )
    shared["tokenizer"].save_pretrained(tmp_path / "second")
    components = dict(
        text_encoder_2=shaken(transformers.CLIPTextModelWithProjection(text), torch, 3),
        tokenizer_2=transformers.CLIPTokenizer.from_pretrained(tmp_path / "second", pad_token="!", model_max_length=12),
        add_watermarker=False,
    )
    pipeline = make_pipeline(
        "StableDiffusionXLPipeline",
        parts,
        tmp_path / "xl",
        components,
        safety=False,
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10,
    )
    folder = tmp_path / "xl"
    encoders = {
        name: text_section(folder / name, skip=1, normalize=False) for name in ("text_encoder", "text_encoder_2")
    }
    system, params = ours(pipeline, folder, system=encoders | dict(zero_negative=True, negative_prompt=""))
    key = jax.random.key(9)
    with torch.no_grad():
        z = pipeline(
            prompt=list(PROMPTS),
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            latents=torch.tensor(noise(system, key)),
            output_type="latent",
        ).images
        expected = pipeline.vae.decode(z / 0.7).sample.numpy().transpose(0, 2, 3, 1)
    cond = {"tokens": system.texts.tokenize(PROMPTS)}
    assert relative_error(system.sample(params, key, 2, cond)["samples"], expected) < 1e-3


def test_controlnet(parts, tmp_path):
    torch, diffusers, _ = parts
    net = diffusers.ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        conditioning_embedding_out_channels=(4, 8),
    )
    components = dict(controlnet=shaken(net, torch, 4))
    pipeline = make_pipeline("StableDiffusionControlNetPipeline", parts, tmp_path, components)
    network = {"name": "controlnet", **unet_2d_condition.controlnet_arguments(dict(net.config))}
    system, params = ours(pipeline, tmp_path, network=network)
    key, x = jax.random.key(10), photo(3)
    expected = images(
        pipeline,
        torch,
        image=nchw((x + 1) / 2, torch),
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        latents=torch.tensor(noise(system, key)),
    )
    cond = {"tokens": system.texts.tokenize(PROMPTS), "control": x}
    assert relative_error(system.sample(params, key, 2, cond)["samples"], expected) < 1e-3


def test_upscaling(parts, tmp_path, monkeypatch):
    torch, diffusers, _ = parts
    components = dict(
        low_res_scheduler=diffusers.DDPMScheduler(**{k: v for k, v in DDIM.items() if k.startswith("beta")}),
        watermarker=None,
        safety_checker=None,
        feature_extractor=None,
    )
    pipeline = make_pipeline(
        "StableDiffusionUpscalePipeline",
        parts,
        tmp_path,
        components,
        safety=False,
        in_channels=7,
        num_class_embeds=1000,
        only_cross_attention=(True, False),
    )
    pipeline.vae.register_to_config(scaling_factor=0.7)  # which this pipeline has changed
    pipeline.vae.save_config(tmp_path / "vae")
    key, x = jax.random.key(11), photo(3)[:, ::2, ::2]
    system, params = ours(pipeline, tmp_path, "upscaling", system=dict(noise_level=30))
    start = noise(system, key)
    own = row_normal(row_keys(jax.random.split(key, 3)[2], jnp.arange(2)), jnp.asarray(x))
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_upscale.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **kwargs: nchw(np.asarray(own), torch))
    expected = images(
        pipeline,
        torch,
        image=nchw(x, torch),
        noise_level=30,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        latents=torch.tensor(start),
    )
    cond = {"tokens": system.texts.tokenize(PROMPTS), "image": x}
    assert relative_error(system.sample(params, key, 2, cond)["samples"], expected) < 1e-3
