"""Values that papers and their authors' code publish for the full-size variants of configs/, each with its source.

`benchmarks.papers` writes docs/papers.md from this table, and tests/config/test_papers.py compares it with the configs.
Every value was read in the repository that its source names, "owner/name file:line"; without a line it is a paper.
Values are in the units of the configs: data in [-1, 1], numbers of steps, rates per step.
"""

from benchmarks.published import (
    adversarial,
    audio,
    bridges,
    clouds,
    consistency,
    ddpm,
    editing,
    flow_maps,
    flows,
    inverse,
    latents,
    lcm,
    palette,
    personalisation,
    representation,
    sde,
    segmentation,
    series,
    super_resolution,
    tokens,
)
from benchmarks.published.entry import Published

TABLE: tuple[Published, ...] = (
    *ddpm.TABLE,
    *sde.TABLE,
    *consistency.TABLE,
    *lcm.TABLE,
    *personalisation.TABLE,
    *latents.TABLE,
    *editing.TABLE,
    *inverse.TABLE,
    *flow_maps.TABLE,
    *flows.TABLE,
    *bridges.TABLE,
    *representation.TABLE,
    *adversarial.TABLE,
    *tokens.TABLE,
    *super_resolution.TABLE,
    *palette.TABLE,
    *segmentation.TABLE,
    *audio.TABLE,
    *series.TABLE,
    *clouds.TABLE,
)
