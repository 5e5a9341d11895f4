"""Published values of discrete diffusion: MDLM, MD4, SEDD and D3PM."""

from __future__ import annotations

from benchmarks.published.entry import Published

MDLM = "MDLM (arXiv:2406.07524)"
MD4 = "MD4 (arXiv:2406.04329)"
SEDD = "SEDD (arXiv:2310.16834)"
D3PM = "D3PM (arXiv:2107.03006)"
_MDLM_CODE = "kuleshov-group/mdlm"
_SEDD_CODE = "louaaron/Score-Entropy-Discrete-Diffusion"
_TRANSFORMER = {"network.hidden_size": 768, "network.depth": 12, "network.num_heads": 12}
_MDLM_SHARED = {
    f"{_MDLM_CODE} configs/config.yaml": {
        "training.batch_size": 512,
        "training.num_steps": 1_000_000,
        "training.dtype": "bfloat16",
        "optimizer.learning_rate": 3e-4,
        "optimizer.clip_norm": 1.0,
        "ema.rates": (0.9999,),
        "ema.warmup": False,
        "times.t_min": 1e-3,
        "sampling.steps": 128,
        "sampling.denoise": True,
        "solver.cache": True,
    },
    "arXiv:2406.07524": _TRANSFORMER,
}
_BETAS = {"process.beta_start": 1e-4, "process.beta_end": 0.02}
_WINDOWS = "Windows start anywhere in the text, without marks of the beginning and end of a document."

TABLE: tuple[Published, ...] = (
    Published(
        paper=MDLM,
        variants=("masked_text:owt",),
        values={**_MDLM_SHARED, "arXiv:2406.07524": {**_TRANSFORMER, "data.length": 1024}},
        differences=(_WINDOWS,),
    ),
    Published(
        paper=MDLM,
        variants=("masked_text:lm1b",),
        values={**_MDLM_SHARED, "arXiv:2406.07524": {**_TRANSFORMER, "data.length": 128}},
        differences=(_WINDOWS,),
    ),
    Published(
        paper=MDLM,
        variants=("masked_text:text8_mdlm",),
        values=_MDLM_SHARED,
        differences=("The paper has no text8; these are its settings of LM1B for windows of 256 characters.",),
    ),
    Published(
        paper=MD4,
        variants=("masked_text:text8_md4",),
        values={
            "arXiv:2406.04329": {
                **_TRANSFORMER,
                "training.batch_size": 512,
                "training.num_steps": 1_000_000,
                "optimizer.learning_rate": 5e-4,
                "optimizer.schedule": "cosine",
                "optimizer.weight_decay": 0.03,
                "network.dropout": 0.05,
                "data.length": 256,
                "sampling.steps": 1000,
                "sampling.grid.name": "cosine",
            },
        },
        differences=("The blocks are those of DiT, not the authors' with SwiGLU.",),
    ),
    Published(
        paper=SEDD,
        variants=("sedd:owt_small", "sedd:owt_uniform"),
        values={
            f"{_SEDD_CODE} configs/config.yaml": {
                "training.batch_size": 512,
                "training.num_steps": 1_300_001,
                "optimizer.learning_rate": 3e-4,
                "optimizer.warmup_steps": 2500,
                "optimizer.clip_norm": 1.0,
                "ema.rates": (0.9999,),
                "data.vocabulary": 50_257,
                "solver.name": "euler",
                "sampling.steps": 128,
                "sampling.denoise": True,
            },
            "arXiv:2310.16834": _TRANSFORMER,
        },
        differences=(_WINDOWS,),
    ),
    Published(
        paper=D3PM,
        variants=("d3pm:text8_uniform",),
        values={"arXiv:2107.03006": {**_TRANSFORMER, "data.length": 256, "process.num_steps": 1000, "loss.ce": 0.0}},
        differences=("Batch, learning rate and number of steps are those of MDLM.",),
    ),
    Published(
        paper=D3PM,
        variants=("d3pm:text8_absorbing",),
        values={"arXiv:2107.03006": {**_TRANSFORMER, "data.length": 256, "process.num_steps": 1000, "loss.ce": 0.01}},
        differences=("Batch, learning rate and number of steps are those of MDLM.",),
    ),
    *(
        Published(
            paper=D3PM,
            variants=(f"d3pm:cifar10_{name}",),
            values={
                "arXiv:2107.03006": {
                    "process.num_steps": 1000,
                    "loss.ce": ce,
                    "network.channels": 128,
                    "network.dropout": 0.1,
                    "training.batch_size": 128,
                    "training.num_steps": 1_500_000,
                    "optimizer.learning_rate": 2e-4,
                    "ema.rates": (0.9999,),
                    **more,
                }
            },
        )
        for name, ce, more in (
            ("uniform", 0.0, {}),
            ("gauss", 0.001, {"process.beta_start": 1e-4, "process.beta_end": 0.02}),
            (
                "gauss_logistic",
                0.001,
                {"process.beta_start": 1e-4, "process.beta_end": 0.02, "system.head": "logistic"},
            ),
        )
    ),
)
