"""Published values of editing with trained models: RePaint and SDEdit."""

from __future__ import annotations

from benchmarks.published.entry import Published

REPAINT = "RePaint (arXiv:2201.09865)"
SDEDIT = "SDEdit (arXiv:2108.01073)"
_REPAINT_CODE = "andreas128/RePaint"
_REPAINT_SHARED = {
    "editing.length": 10,
    "editing.repeats": 10,
    "sampling.steps": 250,
    "process.num_steps": 1000,
    "process.betas": "linear",
    "solver.variance": "learned",
    "network.model_channels": 256,
    "network.num_res_blocks": 2,
    "network.num_head_channels": 64,
    "network.resblock_updown": True,
    "network.use_scale_shift_norm": True,
    "network.dropout": 0.0,
}
_REPAINT_DIFFERENCES = (
    "The authors' result is not merged with the image after its last step, so that its known pixels are the network's; "
    "here they are those of the image.",
)

TABLE: tuple[Published, ...] = (
    Published(
        paper=REPAINT,
        variants=("inpainting:celebahq256",),
        values={f"{_REPAINT_CODE} confs/face_example.yml:14-62": _REPAINT_SHARED},
        differences=_REPAINT_DIFFERENCES,
    ),
    Published(
        paper=REPAINT,
        variants=("inpainting:imagenet256",),
        values={
            f"{_REPAINT_CODE} confs/test_inet256_thick.yml:14-61": {**_REPAINT_SHARED, "network.num_classes": 1000},
        },
        differences=(
            *_REPAINT_DIFFERENCES,
            "The authors' code draws a random class unless one is given, and has a classifier; here the class is "
            "given, and guidance by a classifier is config.guidance.name=classifier.",
        ),
    ),
    Published(
        paper=SDEDIT,
        variants=("editing:celebahq256",),
        values={
            "ermongroup/SDEdit README.md:50-53": {"editing.strength": 0.5, "editing.repeats": 3},
        },
        differences=("The repository gives the commands for bedrooms and churches; the variant is of faces.",),
    ),
)
