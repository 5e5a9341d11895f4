"""Published values of diffusion models of text: MDLM, MD4, SEDD, D3PM and Diffusion-LM."""

from __future__ import annotations

from benchmarks.published.entry import Published

MDLM = "MDLM (arXiv:2406.07524)"
MD4 = "MD4 (arXiv:2406.04329)"
SEDD = "SEDD (arXiv:2310.16834)"
D3PM = "D3PM (arXiv:2107.03006)"
DIFFUSION_LM = "Diffusion-LM (arXiv:2205.14217)"
_MDLM_CODE = "kuleshov-group/mdlm"
_DIFFUSION_LM_CODE = "XiangLi1999/Diffusion-LM"
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
    *(
        Published(
            paper=D3PM,
            variants=(f"d3pm:{data}_{process}",),
            values={
                "arXiv:2107.03006": {
                    **_TRANSFORMER,
                    "process.num_steps": 1000,
                    "process.name": process,
                    "loss.ce": ce,
                    **sizes,
                }
            },
            differences=("Batch, learning rate and number of steps are those of MDLM.",),
        )
        for data, sizes in (("text8", {"data.length": 256}), ("lm1b", {"data.length": 128, "data.vocabulary": 8192}))
        for process, ce in (("uniform", 0.0), ("absorbing", 0.01))
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
    *(
        Published(
            paper=DIFFUSION_LM,
            variants=(f"diffusion_lm:{name}",),
            values={
                f"{_DIFFUSION_LM_CODE} README.md": {
                    "process.betas": "sqrt",
                    "process.num_steps": 2000,
                    "parameterization.name": "x0",
                    "optimizer.learning_rate": 1e-4,
                    "system.embedding_size": width,
                    "data.vocabulary": vocabulary,
                    "training.num_steps": num_steps,
                },
                f"{_DIFFUSION_LM_CODE} improved-diffusion/scripts/run_train.py": {
                    "data.length": 64,
                    "network.dropout": 0.1,
                    "training.batch_size": 64,
                },
                "arXiv:2205.14217": _TRANSFORMER,
            },
            differences=(
                "The blocks are those of TokenDiT, with adaLN and RoPE, not BERT's.",
                "D predicts the embedding of a token at every step, the authors' the noisy embedding after the first.",
            ),
        )
        for name, width, vocabulary, num_steps in (
            ("e2e", 16, 821, 200_000),
            ("rocstories", 128, 11_043, 400_000),
        )
    ),
)
