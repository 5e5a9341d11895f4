"""Evaluating and drawing samples: distances and scores between sets of images, of any model.

    from diffusion_jax import evaluation

    features = evaluation.inception("pt_inception-2015-12-05-6726825d.pth")
    evaluation.compare("samples.npz", "images/", features=features, metrics=("fid", "precision_recall"))

The same from a shell: `python -m diffusion_jax.evaluation --help`. docs/metrics.md explains the metrics.
"""

from diffusion_jax.evaluation.features import (
    Extractor,
    Features,
    classifier_features,
    collect,
    image_source,
    inception,
)
from diffusion_jax.evaluation.frechet import frechet_distance
from diffusion_jax.evaluation.neighbours import density_coverage, precision_recall
from diffusion_jax.evaluation.reference import Statistics, read_statistics, statistics_of, write_statistics
from diffusion_jax.evaluation.scores import inception_score, kernel_distance
from diffusion_jax.evaluation.suite import compare

__all__ = [
    "Extractor",
    "Features",
    "Statistics",
    "classifier_features",
    "collect",
    "compare",
    "density_coverage",
    "frechet_distance",
    "image_source",
    "inception",
    "inception_score",
    "kernel_distance",
    "precision_recall",
    "read_statistics",
    "statistics_of",
    "write_statistics",
]
