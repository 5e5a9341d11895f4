"""Names of a config: one table per section, from its `name` to the constructor (process, sampler, network, ...).

The other keys of a section are keyword arguments of the constructor. To add a name, write its function and one line
here.
"""

from __future__ import annotations

import functools

from diffusion_jax import parameterizations, processes, solvers, token_parameterizations
from diffusion_jax.config import guidance
from diffusion_jax.config.sections import construct
from diffusion_jax.guidance import (
    bandwidth,
    editing,
    filters,
    infilling,
    inpainting,
    inversion,
    jpeg,
    matched_noise,
    operators,
    scans,
    steering,
    thresholding,
)
from diffusion_jax.likelihood import bound_likelihood, exact_likelihood, iwae_likelihood, ode_likelihood
from diffusion_jax.losses import categorical as categorical_losses
from diffusion_jax.losses import denoising_loss, hybrid_loss, score_matching_loss, times, vlb_loss, weightings
from diffusion_jax.networks.adm import ADM
from diffusion_jax.networks.adversarial import MLPDiscriminator, MLPGenerator
from diffusion_jax.networks.autoencoder_kl import AutoencoderKL
from diffusion_jax.networks.clip import CLIPTextModel
from diffusion_jax.networks.controlnet import controlled_unet
from diffusion_jax.networks.csdi import CSDI
from diffusion_jax.networks.diffwave import DiffWave
from diffusion_jax.networks.dit import DiT
from diffusion_jax.networks.edm import DhariwalUNet, SongUNet
from diffusion_jax.networks.encoder_unet import EncoderUNet
from diffusion_jax.networks.ldm_bert import LDMBert
from diffusion_jax.networks.mlp import MLP
from diffusion_jax.networks.mlp_skip import MLPSkip
from diffusion_jax.networks.ncsnpp import NCSNpp
from diffusion_jax.networks.point_transformer import PointTransformer
from diffusion_jax.networks.pointwise import PointwiseNet
from diffusion_jax.networks.r3gan import R3Discriminator, R3Generator
from diffusion_jax.networks.real_nvp import RealNVP
from diffusion_jax.networks.refinenet import NCSN, NCSNv2
from diffusion_jax.networks.semantic_encoders import MLPEncoder, StridedEncoder, unet_encoder
from diffusion_jax.networks.sequence_dit import SequenceDiT
from diffusion_jax.networks.tarflow import TarFlow
from diffusion_jax.networks.timegrad import TimeGradNet
from diffusion_jax.networks.token_dit import TokenDiT
from diffusion_jax.networks.tsdiff import TSDiffNet
from diffusion_jax.networks.unet import UNet
from diffusion_jax.networks.unet_2d_condition import UNet2DConditionModel
from diffusion_jax.networks.vq_model import VQModel
from diffusion_jax.networks.wavegrad import WaveGrad
from diffusion_jax.processes import categorical, transition_tables
from diffusion_jax.solvers import categorical as categorical_solvers
from diffusion_jax.solvers import grids
from diffusion_jax.systems import bottlenecks

PROCESSES = {
    "vp": processes.VP,
    "subvp": processes.SubVP,
    "ve": processes.VE,
    "cosine": processes.Cosine,
    "truncated_cosine": processes.TruncatedCosine,
    "edm": processes.EDM,
    "rectified_flow": processes.RectifiedFlow,
    "trig": processes.Trig,
    "discrete_vp": processes.discrete_vp,
    "learned_vp": processes.learned_vp,
}
BRIDGES = {  # processes of the systems bridge and schroedinger_bridge
    "i2sb": processes.i2sb_bridge,
    "brownian_bridge": processes.brownian_bridge,
    "ve_bridge": processes.ve_bridge,
    "vp_bridge": processes.vp_bridge,
}
PARAMETERIZATIONS = {
    "eps": parameterizations.eps_prediction,
    "x0": parameterizations.x0_prediction,
    "score": parameterizations.score_prediction,
    "v": parameterizations.v_prediction,
    "velocity": parameterizations.velocity_prediction,
    "edm": parameterizations.edm_preconditioning,
    "consistency": parameterizations.consistency,
    "latent_consistency": parameterizations.latent_consistency,
}
BRIDGE_PARAMETERIZATIONS = {
    "i2sb": parameterizations.i2sb_prediction,
    "ddbm": parameterizations.ddbm_preconditioning,
}
LABELS = {
    "time": parameterizations.time_label,
    "unit_time": parameterizations.unit_time_label,
    "index": parameterizations.index_label,
    "alpha": parameterizations.alpha_label,
    "timestep": parameterizations.timestep_label,
    "log_sigma": parameterizations.log_sigma_label,
    "quarter_log_sigma": parameterizations.quarter_log_sigma_label,
    "log_sigma_unit": parameterizations.log_sigma_unit_label,
    "log_snr": parameterizations.log_snr_label,
    "ddbm": parameterizations.ddbm_label,
    "ddbm_sigma": parameterizations.ddbm_sigma_label,
}
WEIGHTINGS = {
    "simple": weightings.simple,
    "sigma_squared": weightings.sigma_squared,
    "likelihood": weightings.likelihood,
    "uniform": weightings.uniform,
    "velocity_matching": weightings.velocity_matching,
    "edm": weightings.edm,
    "min_snr": weightings.min_snr,
    "truncated_snr": weightings.truncated_snr,
    "p2": weightings.p2,
    "sigmoid": weightings.sigmoid,
    "pdae": weightings.pdae,
}
TIMES = {
    "uniform": times.uniform,
    "low_discrepancy": times.low_discrepancy,
    "discrete": times.discrete,
    "levels": times.levels,
    "log_normal": times.log_normal,
    "karras": times.karras,
    "logit_normal": times.logit_normal,
    "importance": times.importance,
    "loss_second_moment": times.loss_second_moment,
}
GRIDS = {
    "uniform": grids.uniform,
    "quadratic": grids.quadratic,
    "karras": grids.karras,
    "uniform_log_snr": grids.uniform_log_snr,
    "discrete": grids.discrete,
    "levels": grids.levels,
    "noise_levels": grids.noise_levels,
    "latent_consistency": grids.latent_consistency,
    "cosine": grids.cosine,
    "betas": grids.betas,
}
LOSSES = {
    "denoising": denoising_loss,
    "score_matching": score_matching_loss,
    "hybrid": hybrid_loss,
    "vlb": vlb_loss,
}
NETWORKS = {
    "mlp": MLP,
    "mlp_skip": MLPSkip,
    "unet": UNet,
    "ncsn": NCSN,
    "ncsnv2": NCSNv2,
    "ncsnpp": NCSNpp,
    "adm": ADM,
    "song_unet": SongUNet,
    "dhariwal_unet": DhariwalUNet,
    "dit": DiT,
    "diffwave": DiffWave,
    "wavegrad": WaveGrad,
    "token_dit": TokenDiT,
    "csdi": CSDI,
    "timegrad": TimeGradNet,
    "sequence_dit": SequenceDiT,
    "tsdiff": TSDiffNet,
    "point_transformer": PointTransformer,
    "pointwise": PointwiseNet,
    "encoder_unet": EncoderUNet,
    "unet_2d_condition": UNet2DConditionModel,
    "controlnet": controlled_unet,
}
ENCODERS = {"mlp": MLPEncoder, "strided": StridedEncoder, "unet": unet_encoder}  # of diffusion autoencoders
FLOWS = {"tarflow": TarFlow, "real_nvp": RealNVP}  # invertible networks
GENERATORS = {"mlp": MLPGenerator, "r3gan": R3Generator}  # of generative adversarial networks
DISCRIMINATORS = {"mlp": MLPDiscriminator, "r3gan": R3Discriminator}  # of these, and of denoising diffusion GANs
AUTOENCODERS = {"autoencoder_kl": AutoencoderKL, "vq_model": VQModel}
TEXT_ENCODERS = {"clip_text": CLIPTextModel, "ldm_bert": LDMBert}
BOTTLENECKS = {"autoencoder_kl": bottlenecks.Gaussian, "vqgan": bottlenecks.Codebook}
PREDICTORS = {
    "ancestral": solvers.ancestral,
    "ddim": solvers.ddim,
    "euler_maruyama": solvers.euler_maruyama,
    "reverse_diffusion": solvers.reverse_diffusion,
    "euler": solvers.euler,
    "heun": solvers.heun,
}


def _predictor_corrector(
    predictor: str = "reverse_diffusion", snr: float = 0.16, corrector_steps: int = 1
) -> solvers.Solver:
    """A predictor, one of PREDICTORS, followed by Langevin corrector steps at each time."""
    return solvers.predictor_corrector(
        construct(PREDICTORS, "solver.predictor", {"name": predictor}),
        solvers.langevin_corrector(snr, corrector_steps),
    )


SOLVERS = {
    **PREDICTORS,
    "adaptive_ode": solvers.adaptive_ode,
    "adaptive_sde": solvers.adaptive_sde,
    "annealed_langevin": solvers.annealed_langevin,
    "consistency": solvers.consistency,
    "bridge_ddim": solvers.bridge_ddim,
    "bridge_heun": solvers.bridge_heun,
    "bridge_posterior": solvers.bridge_posterior,
    "deis": solvers.deis,
    "dpm_solver": solvers.dpm_solver,
    "dpm_solver_pp": solvers.dpm_solver_pp,
    "exponential_sde": solvers.exponential_sde,
    "flow_map": solvers.flow_map,
    "lms": solvers.lms,
    "plms": solvers.plms,
    "pndm": solvers.pndm,
    "renoised": solvers.renoised,
    "sde_dpm_solver_pp": solvers.sde_dpm_solver_pp,
    "seeds": solvers.seeds,
    "unipc": solvers.unipc,
    "predictor_corrector": _predictor_corrector,
}
OPERATORS = {
    "box": operators.box,
    "random": operators.random,
    "half": operators.half,
    "average": filters.average,
    "bicubic": filters.bicubic,
    "gaussian_blur": filters.gaussian_blur,
    "motion_blur": filters.motion_blur,
    "grey": filters.grey,
    "compressed": scans.compressed,
    "tomography": scans.tomography,
    "k_space": scans.k_space,
    "phase": scans.phase,
    "jpeg": jpeg.jpeg,
    "low_pass": bandwidth.low_pass,
}
GUIDANCE = {
    "none": steering.none,
    "classifier_free": steering.classifier_free,
    "embedded": guidance.embedded,
    "classifier": guidance.classifier,
    "autoguidance": guidance.autoguidance,
    "instruct_pix2pix": steering.instruct_pix2pix,
    "measurement": functools.partial(guidance.measurement, OPERATORS),
    "observation": guidance.observation,
}
EDITING = {
    "none": editing.none,
    "sdedit": editing.sdedit,
    "replacement": inpainting.replacement,
    "repaint": inpainting.repaint,
    "colorization": inpainting.colorization,
    "inversion": inversion.inversion,
    "between": inversion.between,
    "infilling": infilling.infilling,
    "bandwidth": bandwidth.bandwidth,
    "denoising": matched_noise.denoising,
}
THRESHOLDS = {"none": lambda: lambda D: D, "static": thresholding.static, "dynamic": thresholding.dynamic}
LIKELIHOODS = {"none": lambda: None, "ode": ode_likelihood, "bound": bound_likelihood}
FLOW_LIKELIHOODS = {"none": lambda: None, "exact": exact_likelihood}
VAE_LIKELIHOODS = {"none": lambda: None, "iwae": iwae_likelihood}

# Of tokens and grey levels, under a categorical process.
CATEGORICAL_PROCESSES = {
    "absorbing": categorical.absorbing,
    "uniform": categorical.uniform,
    "discretized_gaussian": transition_tables.discretized_gaussian,
}
TOKEN_PARAMETERIZATIONS = {
    "x0_logits": token_parameterizations.x0_logits,
    "joint": token_parameterizations.joint,
    "log_score": token_parameterizations.log_score,
}
TOKEN_LABELS = {
    "time": parameterizations.time_label,
    "total_noise": token_parameterizations.total_noise_label,
}
CATEGORICAL_LOSSES = {
    "nelbo": categorical_losses.nelbo,
    "discrete_nelbo": categorical_losses.discrete_nelbo,
    "score_entropy": categorical_losses.score_entropy,
}
CATEGORICAL_TIMES = {"uniform": times.uniform, "low_discrepancy": times.low_discrepancy}
CATEGORICAL_SOLVERS = {
    "ancestral": categorical_solvers.ancestral,
    "first_hitting": categorical_solvers.first_hitting,
    "euler": categorical_solvers.euler,
    "tau_leaping": categorical_solvers.tau_leaping,
    "confidence": categorical_solvers.confidence,
    "remasking": categorical_solvers.remasking,
}
CATEGORICAL_GUIDANCE = {"none": steering.none, "classifier_free": steering.classifier_free}
CATEGORICAL_EDITING = {"none": editing.none, "infilling": infilling.infilling}
