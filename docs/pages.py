"""Hooks of mkdocs (`make docs`): the pages of the API reference, and links that work here and on the site alike.

The reference has one page per folder of the package, made from its docstrings. Files outside of docs/ that pages link
to, such as README.md, become pages as well, and every link between files of the repository becomes one of the site. A
link to a module leads to its place in the reference.
"""

from __future__ import annotations

import ast
import os
import pathlib
import posixpath
import re

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "diffusion_jax"
# Files outside of docs/, by their names on the site.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    "CITATION.cff": "CITATION.cff",
    "benchmarks/README.md": "benchmarks.md",
    "colabs/quickstart.ipynb": "quickstart.ipynb",
    "colabs/few_steps.ipynb": "few_steps.ipynb",
    "colabs/image_to_image.ipynb": "image_to_image.ipynb",
    "colabs/inverse_problems.ipynb": "inverse_problems.ipynb",
    "colabs/representation.ipynb": "representation.ipynb",
    "colabs/text.ipynb": "text.ipynb",
    "colabs/audio.ipynb": "audio.ipynb",
    "colabs/time_series.ipynb": "time_series.ipynb",
}
TOP = ("parameterizations", "types", "main")  # modules that are in no folder


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the reference and the files outside of docs/."""
    for path, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_bytes().decode()))
    for title, modules in rooms().items():
        files.append(File.generated(config, reference(title), content=page(title, modules)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository as links of the site, and bars within code of a table as they are read there."""
    bars = re.compile(r"`[^`\n]*`")
    rows = [bars.sub(_unescape, line) if line.startswith("|") else line for line in markdown.split("\n")]
    markdown = "\n".join(rows)
    source = {uri: path for path, uri in OUTSIDE.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def replace(match: re.Match) -> str:
        target, fragment = match["target"], match["fragment"] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        found = uri(path.removesuffix("/"), fragment)
        return f"]({os.path.relpath(found, posixpath.dirname(page.file.src_uri) or '.')})" if found else match[0]

    return re.sub(r"\]\((?P<target>[^)#:\s]+)(?P<fragment>#[^)\s]*)?\)", replace, markdown)


def uri(path: str, fragment: str = "") -> str | None:
    """The address on the site of a file of the repository, or None, upon which mkdocs reports the link."""
    if f"{path}/README.md" in OUTSIDE:
        path = f"{path}/README.md"
    if path in OUTSIDE:
        return OUTSIDE[path] + fragment
    if path.startswith("docs/"):
        return path.removeprefix("docs/") + fragment
    module = path.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
    for title, modules in rooms().items():
        if module in modules:
            return f"{reference(title)}#{module}"
    return None


def rooms() -> dict[str, list[str]]:
    """The modules of every folder of the package, the folder's own first, and of the top level."""
    result = {}
    for folder in sorted(path.parent for path in (ROOT / PACKAGE).glob("*/__init__.py")):
        paths = sorted(path for path in folder.rglob("*.py") if not path.stem.startswith("__"))
        packages = sorted(path.parent for path in folder.rglob("__init__.py"))
        result[folder.name] = [_dotted(path) for path in (*packages, *paths)]
    return result | {PACKAGE: [f"{PACKAGE}.{name}" for name in TOP]}


def reference(title: str) -> str:
    return f"reference/{title}.md"


def page(title: str, modules: list[str]) -> str:
    """A page of the reference: the docstrings of these modules. Names that a package re-exports are in the modules."""
    blocks = [
        f"\n::: {module}" + ("\n    options: { members: false }" if _is_package(module) else "") for module in modules
    ]
    return "\n".join([f"# {title}", *blocks]) + "\n"


class Shapes(griffe.Extension):
    """Annotations as they stand in the source: jaxtyping's shapes are strings, not types in quotation marks."""

    def on_function_instance(self, *, node: ast.AST, func: griffe.Function, **_: object) -> None:
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            func.parameters[argument.arg].annotation = _source(argument.annotation)
        func.returns = _source(node.returns)

    def on_attribute_instance(self, *, node: ast.AST, attr: griffe.Attribute, **_: object) -> None:
        if isinstance(node, ast.AnnAssign):
            attr.annotation = _source(node.annotation)


def _source(annotation: ast.expr | None) -> str | None:
    return annotation and ast.unparse(annotation)


def _unescape(match: re.Match) -> str:
    return match[0].replace("\\|", "|")


def _is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).is_dir()


def _dotted(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)
