"""Systems: what is trained and sampled, one per file. Each implements the protocol `diffusion_jax.types.System`."""

from diffusion_jax.systems.autoencoder import Autoencoder
from diffusion_jax.systems.bridge import Bridge
from diffusion_jax.systems.cloud_completion import CloudCompletion
from diffusion_jax.systems.consistency import Consistency, ContinuousConsistency
from diffusion_jax.systems.ddgan import DenoisingDiffusionGan
from diffusion_jax.systems.dequantizer import VariationalDequantization
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.diffusion_autoencoder import CodeDiffusion, DiffusionAutoencoder
from diffusion_jax.systems.diffusion_lm import DiffusionLM
from diffusion_jax.systems.discrete_diffusion import DiscreteDiffusion
from diffusion_jax.systems.flow_map import FlowMapModel
from diffusion_jax.systems.gan import Gan
from diffusion_jax.systems.latent_diffusion import LatentDiffusion
from diffusion_jax.systems.noisy_classifier import NoisyClassifier
from diffusion_jax.systems.normalizing_flow import NormalizingFlow
from diffusion_jax.systems.palette import Palette
from diffusion_jax.systems.pixel_classifier import PixelClassifier
from diffusion_jax.systems.point_vae import PointVAE
from diffusion_jax.systems.progressive_distillation import ProgressiveDistillation
from diffusion_jax.systems.schroedinger_bridge import SchroedingerBridge
from diffusion_jax.systems.series_diffusion import SeriesDiffusion
from diffusion_jax.systems.shifted_diffusion import ShiftedDiffusion
from diffusion_jax.systems.specgrad import SpecGrad
from diffusion_jax.systems.super_resolution import SuperResolution
from diffusion_jax.systems.text_to_image import TextToImage
from diffusion_jax.systems.timegrad import TimeGrad
from diffusion_jax.systems.vdm import VDM

__all__ = [
    "VDM",
    "Autoencoder",
    "Bridge",
    "CloudCompletion",
    "CodeDiffusion",
    "Consistency",
    "ContinuousConsistency",
    "DenoisingDiffusionGan",
    "Diffusion",
    "DiffusionAutoencoder",
    "DiffusionLM",
    "DiscreteDiffusion",
    "FlowMapModel",
    "Gan",
    "LatentDiffusion",
    "NoisyClassifier",
    "NormalizingFlow",
    "Palette",
    "PixelClassifier",
    "PointVAE",
    "ProgressiveDistillation",
    "SchroedingerBridge",
    "ShiftedDiffusion",
    "SpecGrad",
    "SuperResolution",
    "SeriesDiffusion",
    "TextToImage",
    "TimeGrad",
    "VariationalDequantization",
]
