"""What the full-size configs have from the papers, and where they differ: the page docs/papers.md.

    python -m benchmarks.papers

The values are those of `benchmarks.published`, written between the markers of docs/papers.md.
tests/config/test_papers.py compares them with the configs.
"""

from __future__ import annotations

import inspect
import pathlib
from typing import Any

from ml_collections import ConfigDict

from benchmarks.published import TABLE, Published
from diffusion_jax.config import names
from diffusion_jax.data.load import opener
from diffusion_jax.training.optimizers import make_optimizer

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "papers.md"
BEGIN, END = "<!-- papers: written by python -m benchmarks.papers -->", "<!-- end of papers -->"
_TABLES = {
    "process": names.PROCESSES | names.BRIDGES | names.CATEGORICAL_PROCESSES,
    "parameterization": names.PARAMETERIZATIONS | names.BRIDGE_PARAMETERIZATIONS | names.TOKEN_PARAMETERIZATIONS,
    "times": names.TIMES,
    "loss": names.LOSSES | names.CATEGORICAL_LOSSES,
    "network": names.NETWORKS | names.AUTOENCODERS,
    "solver": names.CATEGORICAL_SOLVERS | names.SOLVERS,
    "guidance": names.GUIDANCE,
    "sampling.grid": names.GRIDS,
}


def value_of(config: ConfigDict, key: str) -> Any:
    """The value of a key such as "solver.eta"; of one that the config leaves out, the default of its constructor.

    Raises KeyError for a key that the constructor does not have.
    """
    field, _, name = key.rpartition(".")
    section = config
    for part in field.split("."):
        section = section[part]
    if name in section:
        return section[name]
    if field == "optimizer":
        constructor = make_optimizer
    elif field == "data":
        constructor = opener(config.data.name).open
    elif field.startswith("data."):
        constructor = opener(section.name).open
    else:
        constructor = _TABLES[field][section.name]
    made = constructor.__init__ if isinstance(constructor, type) else constructor
    return inspect.signature(made).parameters[name].default


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_cell, value))}{',' if len(value) == 1 else ''})"
    return str(value)


def _entry(entry: Published) -> list[str]:
    """The table of the values of some variants."""
    lines = [", ".join(f"`{variant}`" for variant in entry.variants), "", "| source | values |", "|---|---|"]
    for source, values in entry.values.items():
        lines.append(f"| {source} | {', '.join(f'`{key}={_cell(value)}`' for key, value in values.items())} |")
    return [*lines, ""]


def _differences(entries: list[Published]) -> list[str]:
    """The differences of the variants of a paper, each with the variants that it is about, unless it is about all."""
    everything = {name for entry in entries for name in entry.variants}
    variants: dict[str, list[str]] = {}
    for entry in entries:
        for difference in entry.differences:
            variants.setdefault(difference, []).extend(entry.variants)
    if not variants:
        return []
    lines = ["Differences:", ""]
    for words, concerned in variants.items():
        which = "" if everything == {*concerned} else f"{', '.join(f'`{name}`' for name in concerned)}: "
        lines.append(f"- {which}{words}")
    return [*lines, ""]


def text() -> str:
    """The text between the markers."""
    papers: dict[str, list[Published]] = {}
    for entry in TABLE:
        papers.setdefault(entry.paper, []).append(entry)
    lines = []
    for paper, entries in papers.items():
        lines += [f"## {paper}", ""]
        for entry in entries:
            lines += _entry(entry)
        lines += _differences(entries)
    return "\n".join(lines).rstrip()


def written(page: str) -> str:
    """The page with the text between its markers."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
