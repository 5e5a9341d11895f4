"""Which room may import which, and what no room may do: the nevers of the layout, by imports and source text."""

import ast
import collections
import functools
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "diffusion_jax"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text()
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}
COMMANDS = {f"{PACKAGE}.main", f"{PACKAGE}.latents", f"{PACKAGE}.weights.__main__", f"{PACKAGE}.evaluation.__main__"}
ABOVE = ("config", "run", "main", "latents", "defaults", "__init__")  # everything else lies below config/
DRAWING = ("PIL", "matplotlib", f"{PACKAGE}.evaluation.sheets")
KINDS = ("modalities", "data.sources", "evaluation", "networks")  # that may ask what kind of data an array is

# One subject has one name wherever it is: its network, its weights table, its recipe, its loss.
SUBJECTS = ("networks", "weights", "systems", "config.recipes", "losses")
# A kind of data has one file about how it is stored, one about how its samples are, and maybe one of its metrics.
OF_ONE_KIND = ("data.sources", "modalities", "evaluation")
# The same question on several axes, as the layout has it.
SHARED = {
    "base": {"processes", "solvers", "systems", "modalities", "networks"},
    "ode": {"solvers", "likelihood"},
    "bridge": {"processes", "solvers"},
    "consistency": {"losses", "solvers", "systems"},
    "flow_map": {"losses", "solvers", "systems"},
    "images": {"data", "data.sources"},
    "report": {"evaluation", "run"},
    "files": {"data.sources", "weights"},
    "categorical": {"processes", "losses", "solvers"},
    "latents": {"", "data.sources"},  # the former command
    "defaults": {"", "config"},  # the former name, which config files import
}


def room(module: str) -> str:
    """The room of a module: "data.sources" of diffusion_jax.data.sources.images, "" at the top."""
    return ".".join(module.split(".")[1:-1])


def within(module: str, *rooms: str) -> bool:
    """Whether a module or name lies in one of the rooms, or is one of the modules, of the package."""
    return any(f"{module}.".startswith(f"{PACKAGE}.{name}.") for name in rooms)


def imports(source: str) -> set[str]:
    """Every name that a source imports, wherever in it: "diffusion_jax.config.build" for both ways to import it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(name: str) -> str | None:
    """The module of the package that an imported name is in."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        for module in (".".join(parts[:end]), ".".join([*parts[:end], "__init__"])):
            if module in MODULES:
                return module
    return None


def classes(module: str) -> list[ast.ClassDef]:
    return [node for node in ast.walk(ast.parse(MODULES[module])) if isinstance(node, ast.ClassDef)]


@functools.cache
def systems() -> set[str]:
    """The names of the classes that are systems: those of systems/ with a loss."""
    return {
        node.name
        for module in MODULES
        if within(module, "systems")
        for node in classes(module)
        if any(isinstance(part, ast.FunctionDef) and part.name == "loss" for part in node.body)
    }


@functools.cache
def shared(module: str) -> bool:
    """Whether a module of systems/ or networks/ is for all of them, and defines none of them itself.

    Low-rank updates are: they are a system only to stand for any other in training.
    """
    if module.endswith(".low_rank"):
        return True
    bases = {ast.unparse(base) for node in classes(module) for base in node.bases}
    network = within(module, "networks") and any(base == "nnx.Module" or base.endswith("Network") for base in bases)
    system = within(module, "systems") and any(node.name in systems() for node in classes(module))
    return not (network or system or module.endswith("__init__"))


def forbidden_imports(module: str, source: str) -> Iterator[str]:
    """The imports of a module that the layout forbids."""
    low = not within(module, *ABOVE) and module not in COMMANDS
    for name in sorted(imports(source)):
        if low and (within(name, "config", "defaults") or name.startswith("ml_collections")):
            yield f"{module} lies below config/ and imports {name}"
        if within(module, "training") and within(name, "systems", "networks", "data", "processes", "config"):
            yield f"{module} is of training/ and imports {name}"
        if within(module, "run") and within(name, "systems", "networks") and not shared(module_of(name)):
            yield f"{module} is of run/ and imports {name}"
        if within(module, "systems") and name.startswith(DRAWING):
            yield f"{module} is of systems/ and imports {name}, which draws"
        if within(name, "run") and not within(module, "run") and module not in COMMANDS:
            yield f"{module} imports {name} of run/"


LOOKS = re.compile(r"\bsystem('\])?(\.name|\['name'\]|\.get\('name'\))$")


def parents(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def names_of_systems(module: str, source: str) -> Iterator[str]:
    """Where a module looks at config.system.name other than to print it."""
    if module == f"{PACKAGE}.config.build":
        return
    above = parents(tree := ast.parse(source))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Subscript | ast.Call) or getattr(node, "attr", "name") != "name":
            continue
        text = ast.unparse(node)
        if LOOKS.search(text):
            outer = node
            while outer in above and not isinstance(outer, ast.JoinedStr):
                outer = above[outer]
            if not isinstance(outer, ast.JoinedStr):
                yield f"{module}:{node.lineno} looks at {text}"


def types_of_systems(module: str, source: str) -> Iterator[str]:
    """Where a module asks which system an object is."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            asked = node.args[1]
        elif isinstance(node, ast.MatchClass):
            asked = node.cls
        else:
            continue
        names = {part.id for part in ast.walk(asked) if isinstance(part, ast.Name)}
        names |= {part.attr for part in ast.walk(asked) if isinstance(part, ast.Attribute)}
        if found := names & systems():
            yield f"{module}:{node.lineno} asks whether something is a {', '.join(sorted(found))}"


def ranks(module: str, source: str) -> Iterator[str]:
    """Where a module branches on the rank of an array, or on a number of channels as that of an image.

    A check that raises is none: it refuses what it cannot read, and does not guess what it is.
    """
    if within(module, *KINDS):
        return
    above = parents(tree := ast.parse(source))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        left, (right, *_) = ast.unparse(node.left), node.comparators
        rank = isinstance(node.ops[0], ast.Eq | ast.NotEq) and left.endswith(".ndim")
        channels = isinstance(node.ops[0], ast.In | ast.NotIn) and ast.unparse(right)[1:].startswith("1, 3")
        if not rank and not channels:
            continue
        outer = node
        while outer in above and not isinstance(outer, ast.If | ast.stmt):
            outer = above[outer]
        if not (isinstance(outer, ast.If) and isinstance(outer.body[-1], ast.Raise)):
            yield f"{module}:{node.lineno} asks {ast.unparse(node)}"


RULES = (forbidden_imports, names_of_systems, types_of_systems, ranks)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_module_breaks(rule):
    assert [line for module, source in MODULES.items() for line in rule(module, source)] == []


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (forbidden_imports, "solvers.ode", "from diffusion_jax.config import build"),
        (forbidden_imports, "data.load", "import ml_collections"),
        (forbidden_imports, "types", "def f():\n    from diffusion_jax import config"),
        (forbidden_imports, "training.loop", "from diffusion_jax.networks.functional import count_parameters"),
        (forbidden_imports, "training.step", "import diffusion_jax.processes.base"),
        (forbidden_imports, "run.train", "from diffusion_jax.networks.unet import UNet"),
        (forbidden_imports, "run.train", "from diffusion_jax.systems.diffusion import Diffusion"),
        (forbidden_imports, "run.train", "from diffusion_jax import systems"),
        (forbidden_imports, "run.train", "from diffusion_jax.systems import VDM"),
        (forbidden_imports, "systems.vdm", "from diffusion_jax.evaluation.sheets import image_sheet"),
        (forbidden_imports, "systems.vdm", "from diffusion_jax.evaluation import sheets"),
        (forbidden_imports, "systems.vdm", "import PIL.Image"),
        (forbidden_imports, "systems.vdm", "from matplotlib import pyplot"),
        (forbidden_imports, "config.build", "from diffusion_jax.run import job"),
        (forbidden_imports, "evaluation.suite", "from diffusion_jax.run.job import prepare"),
        (names_of_systems, "run.train", "if job.config.system.name == 'vdm': pass"),
        (names_of_systems, "run.train", "x = {'vdm': 1}[config.system.name]"),
        (names_of_systems, "config.parts", "x = 'vdm' in config['system']['name']"),
        (names_of_systems, "config.data", "x = lookup(TABLE, 'system.name', config.system.get('name'))"),
        (types_of_systems, "run.sample", "x = isinstance(job.system, Diffusion)"),
        (types_of_systems, "run.sample", "x = isinstance(job.system, (int, systems.Autoencoder))"),
        (types_of_systems, "run.sample", "match system:\n    case VDM(): pass"),
        (ranks, "run.sample", "x = 'image' if samples.ndim == 4 else 'points'"),
        (ranks, "run.sample", "if samples.ndim != 4:\n    x = 3"),
        (ranks, "run.sample", "def f(x):\n    return x.shape[-1] in (1, 3)"),
        (ranks, "guidance.editing", "x = shape[-1] not in (1, 3, 4)"),
    ],
)
def test_what_is_forbidden_is_found(rule, module, source):
    assert len(list(rule(f"{PACKAGE}.{module}", source))) == 1


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (forbidden_imports, "config.build", "from ml_collections import ConfigDict"),
        (forbidden_imports, "main", "from diffusion_jax.run import train"),
        (forbidden_imports, "run.train", "from diffusion_jax.networks.functional import count_parameters"),
        (forbidden_imports, "run.requests", "from diffusion_jax.networks.conditions import Conditions"),
        (forbidden_imports, "run.parameters", "from diffusion_jax.systems.low_rank import learner"),
        (forbidden_imports, "run.parameters", "from diffusion_jax.systems.base import at"),
        (forbidden_imports, "systems.autoencoder", "from diffusion_jax.evaluation.reconstruction import psnr"),
        (names_of_systems, "run.train", "raise ConfigError(f'config.system.name={config.system.name!r} has none')"),
        (names_of_systems, "config.build", "x = RECIPES[config.system.name]"),
        (types_of_systems, "systems.diffusion", "x = isinstance(times, Resampler)"),
        (ranks, "processes.discrete", "if betas.ndim != 1:\n    raise ValueError"),
        (ranks, "networks.mlp", "x = x.ndim == 4"),
    ],
)
def test_what_is_allowed_is_not_found(rule, module, source):
    assert list(rule(f"{PACKAGE}.{module}", source)) == []


def test_modules_of_one_name_are_of_one_subject():
    places = collections.defaultdict(set)
    for module in MODULES:
        name = module.rpartition(".")[2]
        if not name.startswith("__"):
            places[name].add(room(module))
    twice = {
        name: sorted(rooms - SHARED.get(name, set()))
        for name, rooms in places.items()
        if len(rooms) > 1
        and not any(rooms <= {*subject} | SHARED.get(name, set()) for subject in (SUBJECTS, OF_ONE_KIND))
    }
    assert twice == {}
    assert {name: rooms - places[name] for name, rooms in SHARED.items() if rooms - places[name]} == {}


def test_systems_draw_nothing_through_others():
    """Also what systems/ import does not import what draws."""
    reached, left = set(), [module for module in MODULES if within(module, "systems")]
    while left:
        module = left.pop()
        if module in reached:
            continue
        reached.add(module)
        names = imports(MODULES[module])
        assert not [name for name in names if name.startswith(DRAWING)], module
        left += [target for name in names if (target := module_of(name))]
