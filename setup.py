"""Packaging of diffusion_jax: `pip install -e .[test]`."""

import pathlib
import re

import setuptools

here = pathlib.Path(__file__).parent
version = re.search(r'__version__ = "(.+?)"', (here / "diffusion_jax/__init__.py").read_text()).group(1)

setuptools.setup(
    name="diffusion_jax",
    version=version,
    description="Train, sample and evaluate every classical family of diffusion model in JAX",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["diffusion_jax", "diffusion_jax.*"]),
    install_requires=[
        "jax>=0.10,<1",  # 0.10 is the last release for Python 3.11; 3.12 and later get newer ones
        "flax>=0.12.8,<1",
        "optax>=0.2.8,<1",
        "diffrax>=0.7",  # adaptive solvers and likelihoods
        "orbax-checkpoint>=0.12.8,<1",
        "grain>=0.2.18,<1",
        "tensorflow-datasets>=4.9.10,<5",
        "importlib_resources",  # imported by tensorflow-datasets, which does not declare it
        "array_record>=0.8.1",
        "ml_collections>=1.1.0,<2",
        "absl-py",
        "jaxtyping>=0.3",
        "numpy>=2.0",
        "ml_dtypes",  # bfloat16 in weights of PyTorch
        "safetensors>=0.8",  # reads bfloat16 into NumPy
        "tqdm>=4.60",  # progress on a terminal
        "tokenizers>=0.20",  # prompts of public text encoders
        "pillow>=10",
        "scipy>=1.11",  # .wav files
        "scikit-learn>=1.5",  # its digits are the embedded data set of every default config
        "matplotlib>=3.8",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-timeout>=2",
            "pytest-xdist>=3.5",
            "chex>=0.1.92",
            "beartype>=0.18",
            "nbclient",
            "tensorboardX>=2.6",
            "nbformat",
            "jsonschema>=4",
            "nibabel>=5",
            "pyyaml",
            "ipykernel",
        ],
        "lint": ["ruff>=0.9"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=1", "ruff>=0.9"],
        "audit": ["pip-audit>=2.7"],
        "tensorboard": ["tensorboardX>=2.6"],
        "wandb": ["wandb>=0.17"],
        "parity": ["torch==2.13.0", "diffusers>=0.42", "transformers>=5", "torchmetrics>=1.4", "sentencepiece>=0.2"],
        "cuda": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "hub": ["huggingface_hub>=0.30"],
        "audio": ["soundfile>=0.12"],
        "medical": ["nibabel>=5", "scikit-image>=0.24"],  # NIfTI volumes; baselines of the benchmark
        "colab": ["ipywidgets"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
