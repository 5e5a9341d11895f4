"""The commands of README and docs/ name configs, variants, keys, flags and files that exist; the site has all pages."""

import inspect
import pathlib
import re
import shlex

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from diffusion_jax import main
from diffusion_jax.config import build, checks, data, fits, from_file, names, parts, sections
from diffusion_jax.data.load import COMMON, keys
from diffusion_jax.weights import schedulers

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def commands(page: pathlib.Path) -> list[list[str]]:
    """The words of every command of a page that names a config or runs a module: indented lines, joined at a \\."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    lines = re.findall(r"^ {4}([^#\n]*(?:python -m |launch/\w+\.sh |sbatch).*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines if "..." not in line]


def flagged(words: list[str]) -> tuple[ConfigDict, ConfigDict]:
    """The config of a command's flags, read as `diffusion_jax.main` does, and that of its file."""
    words = [word.replace("--config=configs/", f"--config={ROOT}/configs/") for word in words]
    argv = ["", *(re.sub(r"\$\w+", "0.5", word) for word in words if word.startswith("--config"))]
    values = flags.FlagValues()
    options = dict(lock_config=False, accept_new_attributes=True, flag_values=values, sys_argv=argv)
    flag = config_flags.DEFINE_config_file("config", **options)
    values(argv)
    original = from_file(config_flags.get_config_filename(values["config"]))
    sections.drop_replaced(flag.value, original)
    data.drop_replaced(flag.value, original)
    return flag.value, original


def check(config: ConfigDict, original: ConfigDict) -> None:
    """Every section is one that its constructor takes. Networks and systems are not built: only their keys are read."""
    checks.check_keys(config)
    build.check_read(config)
    if config.process.name in names.CATEGORICAL_PROCESSES:  # the recipe makes the parts
        build.system(config)
        return
    reads = build.RECIPES[config.system.name].reads
    # What latents are is written in their folder.
    own = parts.Parts(config, None if config.data.name == "latents" else data.spec(config), None)
    bridge = config.process.name in names.BRIDGES
    for name in reads & {"parameterization", "weighting", "solver", "editing", "sampling.threshold"}:
        getattr(own, f"{'bridge_' * (bridge and name == 'parameterization')}{name.removeprefix('sampling.')}")
    if {"sampling.grid", "process"} <= reads:
        fits.sampling_times(config, own.bridge.reference if bridge else own.process, own.grid)
    own.optimizer()
    allowed = {"data": {"name", *COMMON, *keys(config.data.name)}, "system": set(original.system)}
    networks = names.GENERATORS | names.NETWORKS | names.AUTOENCODERS | names.FLOWS
    for section, table, more in (("network", networks, {"fourier"}), ("guidance", names.GUIDANCE, {"then"})):
        if section in reads:
            constructor = table[config[section].name]
            signature = inspect.signature(constructor.__init__ if isinstance(constructor, type) else constructor)
            allowed[section] = {"name", *signature.parameters} | more
    for section, names_of in allowed.items():
        assert {key for key, value in config[section].items() if value != ""} <= names_of, section


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_configs_and_keys(page):
    for words in commands(page):
        file = next((word for word in words if word.startswith("--config=configs/")), "")
        own = f"# {file.removeprefix('--config=')}\n" in page.read_text()  # a file that the page itself shows
        if file and not own and not file.endswith("/CONFIG"):
            check(*flagged(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_modules_and_flags(page):
    own = {flag.name for flag in flags.FLAGS.flags_by_module_dict()[main.__name__]}
    for words in commands(page):
        if "-m" in words:
            module = words[words.index("-m") + 1]
            path = ROOT / module.replace(".", "/")
            source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
            text = source.read_text() if module.startswith(("diffusion_jax", "benchmarks", "tests")) else None
            shared = re.findall(r"^from benchmarks import (\w+)$", text or "", re.MULTILINE)
            text = text and text + "".join((ROOT / "benchmarks" / f"{name}.py").read_text() for name in shared)
        else:
            script = next(word for word in words if word.startswith(("launch/", "python")))
            assert (ROOT / script).exists()
            words, module, text = words[words.index(script) :], main.__name__, ""
        for word in words:
            name = re.match(r"--(\w+)(?=$|=)", word)
            if name and text is not None:
                known = name[1] in own if module == main.__name__ else f'"--{name[1]}"' in text
                assert known, f"{word} in {' '.join(words)}"


def test_the_glossary_names_what_schedulers_become():
    """Every class that is read is in the table, with what a folder of it gives; every `key=value` is of a config."""
    page = (ROOT / "docs" / "glossary.md").read_text()
    table = page.partition("## From a class of diffusers")[2].partition("\n## ")[0]
    rows = [row.split(" | ") for row in re.findall(r"^\| (`.*) \|$", table, re.MULTILINE)]
    folders = {name: row[-1] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    for name, kind in schedulers.SCHEDULERS.items():
        assert folders.pop(name) == ("yes" if kind.solver else "schedule")
    assert set(folders.values()) == {"no"}
    tables = {"solver": names.SOLVERS, "process": names.PROCESSES, "sampling.grid": names.GRIDS}
    tables["evaluation.likelihood"] = names.LIKELIHOODS
    chosen = re.findall(r"`((?:[\w.]+=\w+ ?)+)`", page.partition("## From a class")[2].partition("## Conditioning")[0])
    assert len(chosen) > 40
    for text in chosen:
        pairs = dict(pair.split("=") for pair in text.split())
        for section in {key.rpartition(".")[0] for key in pairs} & tables.keys():
            given = {key.removeprefix(f"{section}."): number_or_text(value) for key, value in pairs.items()}
            if "name" in given:
                sections.construct(tables[section], section, given, grid=None, levels=256, num_steps=20)


def number_or_text(value: str) -> int | str:
    return int(value) if value.isdigit() else value


def test_the_site_has_every_page_and_every_folder_of_the_package():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = set(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE))
    rooms = {f"reference/{path.parent.name}.md" for path in (ROOT / "diffusion_jax").glob("*/__init__.py")}
    assert rooms | {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} <= listed
