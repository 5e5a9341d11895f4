"""Pipelines of diffusers for the processes of configs: what is written is what is read back, or a reason."""

import pytest

from diffusion_jax.weights import export, schedulers

SECTIONS = dict(
    process=dict(name="discrete_vp", betas="scaled_linear", num_steps=50, beta_start=0.001, beta_end=0.02),
    parameterization=dict(name="v", label="index"),
    solver=dict(name="ancestral", variance="beta"),
    threshold=dict(name="static", bound=3.0),
    grid=dict(name="discrete", spacing="linspace"),
)
UNET = {"unet": dict(channels=8)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(solver=dict(name="ancestral", variance="beta_tilde"), threshold=dict(name="none")),
        dict(solver=dict(name="ancestral", variance="learned"), threshold=dict(name="static")),
        dict(solver=dict(name="ddim"), grid=dict(name="discrete", spacing="leading", offset=1, end=1)),
        dict(threshold=dict(name="dynamic", percentile=0.9, largest=2.0)),
        dict(process=SECTIONS["process"] | dict(zero_terminal_snr=True)),
        dict(process=dict(name="discrete_vp", betas="cosine", num_steps=20)),
    ],
)
def test_what_is_written_is_read_back(tmp_path, changes):
    sections = SECTIONS | changes
    made = export.pipeline(UNET, **sections)
    export.write(tmp_path, made)
    read = schedulers.read(tmp_path)
    assert read.process() == sections["process"] and read.prediction() == "v"
    assert (read.solver(), read.threshold(), read.grid()) == tuple(sections[k] for k in ("solver", "threshold", "grid"))
    assert made.index["_class_name"] == ("DDIMPipeline" if read.name == "DDIMScheduler" else "DDPMPipeline")
    assert made.index["unet"] == ["diffusers", "UNet2DModel"] and made.index["scheduler"] == ["diffusers", read.name]
    assert not made.differs


def test_pipelines_of_latents():
    made = export.pipeline({"transformer": dict(num_classes=1000, learn_sigma=True), "vae": {}}, **SECTIONS)
    assert made.index["_class_name"] == "DiTPipeline" and made.scheduler["_class_name"] == "DDIMScheduler"
    assert "ancestral" in made.differs
    made = export.pipeline({"unet": {}, "vqvae": {}}, **SECTIONS | dict(solver=dict(name="ddim")))
    assert made.index["_class_name"] == "LDMPipeline" and made.index["vqvae"] == ["diffusers", "VQModel"]


@pytest.mark.parametrize(
    ("networks", "changes", "message"),
    [
        (UNET, dict(process=dict(name="edm")), r"config\.process\.name='edm'"),
        (UNET, dict(process=dict(name="discrete_vp", betas="sqrt")), r"config\.process\.betas='sqrt'"),
        (UNET, dict(parameterization=dict(name="edm")), r"config\.parameterization\.name='edm'"),
        (UNET, dict(parameterization=dict(name="eps", label="log_snr")), r"config\.parameterization\.label='log_snr'"),
        (UNET, dict(threshold=dict(name="dynamic", bound=2.0)), r"config\.sampling\.threshold\.bound=2\.0"),
        ({"unet": dict(num_classes=3)}, {}, "num_classes=3"),
        ({"unet": dict(learn_sigma=True)}, dict(solver=dict(name="heun")), "'heun'"),
        ({"transformer": dict(num_classes=3), "vae": {}}, {}, "num_classes=3"),
        ({"transformer": {}}, {}, "no pipeline of transformer"),
        ({"unet": {}, "vae": {}}, {}, "no pipeline of unet, vae"),
    ],
)
def test_what_diffusers_does_not_have_is_named(networks, changes, message):
    with pytest.raises(ValueError, match=message):
        export.pipeline(networks, **SECTIONS | changes)
