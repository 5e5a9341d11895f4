"""Files below a folder or inside a zip archive, which are listed and opened alike."""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import types
import zipfile
from collections.abc import Iterator, Mapping

from diffusion_jax.data.images import readable_suffixes
from diffusion_jax.data.sources import archives

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev")  # usual names
METADATA = ("dataset.json", "metadata.jsonl", "metadata.csv")
_SYSTEM = ("__MACOSX",)  # folders that archive tools and file managers add
_ARCHIVES = (".tar", ".tgz", ".tbz", ".txz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_OTHERS = (".tfrecord", ".parquet", ".arrow", ".lmdb", ".mdb", ".h5", ".hdf5", ".mat", ".pkl")


@dataclasses.dataclass(frozen=True)
class Member:
    """One file of an `Archive`, opened like a path."""

    archive: Archive
    name: str

    def read_bytes(self) -> bytes:
        """The content, of the size that the archive announces. OSError: it is missing or damaged."""
        if self.name not in self.archive.members:
            raise FileNotFoundError(f"no such file in {self.archive}")
        try:
            return self.archive.file.read(self.archive.members[self.name])
        except Exception as error:  # damaged members raise from zipfile and zlib, encrypted ones RuntimeError
            raise OSError(f"damaged or encrypted: {error}") from error

    def open(self, mode: str = "rb") -> io.BytesIO:
        return io.BytesIO(self.read_bytes())

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


@dataclasses.dataclass(frozen=True)
class Archive:
    """A zip archive, or a folder in one: `archive / name` is a file in it, as for a path."""

    path: pathlib.Path
    file: zipfile.ZipFile
    members: Mapping[str, zipfile.ZipInfo]  # by their paths below `folder`
    folder: str = ""

    def __truediv__(self, name: str | os.PathLike) -> Member:
        return Member(self, pathlib.PurePosixPath(name).as_posix())

    def __str__(self) -> str:
        return f"{self.path}/{self.folder}".rstrip("/")

    def below(self, folder: str) -> Archive:
        """The folder `folder` of the archive."""
        prefix = f"{folder}/"
        inside = {name.removeprefix(prefix): item for name, item in self.members.items() if name.startswith(prefix)}
        return dataclasses.replace(
            self, members=types.MappingProxyType(inside), folder=f"{self.folder}/{folder}".lstrip("/")
        )


Root = pathlib.Path | Archive


def open_zip(path: pathlib.Path) -> Archive:
    """The members of a zip archive, by their paths with "/" as separator, without a leading "/" or "./".

    An archive all of whose files are in one folder is that folder, unless it is named like a split or has images
    directly in it and no metadata: then it may be a class.

    Raises:
        ValueError: it is damaged, announces more bytes than images need, see `archives.check_announced`, or has a
            member outside of its folder.
    """
    try:
        file = zipfile.ZipFile(path)
        archives.check_announced(path, file)
    except Exception as error:  # a damaged archive can raise from zipfile, zlib or struct
        raise ValueError(f"Cannot read the zip archive {path}: {error}.") from error
    named = {_relative(item.filename): item for item in file.infolist() if not _is_folder(item.filename)}
    members = {name: item for name, item in named.items() if name}
    if outside := [name for name in members if ".." in name.split("/")]:
        raise ValueError(f"Cannot read the zip archive {path}: the path {outside[0]!r} leads out of it.")
    archive = Archive(path, file, types.MappingProxyType(members))
    tops = {name.partition("/")[:2] for name in members if _visible(name)}
    (top, below), *others = tops or {("", "")}
    if not below or others or top.lower() in SPLITS:
        return archive
    inner = archive.below(top)
    direct = {name for name in inner.members if "/" not in name}
    suffixes = readable_suffixes()
    has_images = any(pathlib.PurePosixPath(name).suffix.lower() in suffixes for name in direct)
    return archive if has_images and direct.isdisjoint(METADATA) else inner


def names(root: Root) -> list[str]:
    """The files below `root` by their relative paths, sorted part by part.

    Hidden files and folders, whose names begin with ".", and __MACOSX are left out. Links to folders are followed,
    except for those to a folder that they are in.

    Raises:
        ValueError: a folder cannot be read, or a link without the suffix of a file leads nowhere.
    """
    found = root.members if isinstance(root, Archive) else _walk(root, "", ())
    return sorted((name for name in found if _visible(name)), key=lambda name: name.split("/"))


def folders(root: Root) -> list[str]:
    """The names of the folders directly in `root`, empty ones too, sorted; hidden ones are left out."""
    if isinstance(root, Archive):
        inside = {f"{_relative(name)}/" for name in root.file.namelist() if _is_folder(name)}
        prefix = f"{root.folder}/".lstrip("/")
        empty = {name.removeprefix(prefix) for name in inside if name.startswith(prefix) and name != prefix}
        tops = {name.split("/")[0] for name in (*root.members, *empty) if "/" in name}
    else:
        tops = {entry.name for entry in root.iterdir() if entry.is_dir()}
    return sorted(name for name in tops if _visible(name))


def check_readable(path: pathlib.Path) -> None:
    """Raises ValueError, with what to do, for a file that is no zip archive of images."""
    if path.is_dir():
        return
    suffix = path.suffix.lower()
    advice = "it must be a folder of image files, or a zip archive of them"
    if suffix in (".npz", ".npy"):
        advice = "data.name='arrays' reads it"
    elif suffix in _ARCHIVES:
        advice = (
            f"archives other than .zip, such as the shards of WebDataset, are not read: unpack it (mkdir FOLDER; tar "
            f"-xf {path.name} -C FOLDER) and give FOLDER; texts next to images are data.caption_key=.txt"
        )
    elif suffix in _OTHERS:
        advice = f"{suffix} files are not read: write the images as files of a folder, or as an .npz file"
    elif zipfile.is_zipfile(path):
        return
    raise ValueError(f"{path} is a file; {advice}.")


def unread(root: Root) -> str:
    """The archives and other containers directly in `root`, for a message that it has no image; "" without any."""
    tops = [name for name in names(root) if "/" not in name]
    found = [name for name in tops if name.lower().endswith((*_ARCHIVES, *_OTHERS, ".zip", ".npz", ".npy"))]
    return f", but {', '.join(found[:3])}: unpack them, or give a .zip or .npz file itself" if found else ""


def _relative(name: str) -> str:
    """The name of a member of an archive as a relative path, whatever wrote it: "./a\\b.png" is a/b.png."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _is_folder(name: str) -> bool:
    return name.endswith(("/", "\\"))


def _visible(name: str) -> bool:
    return not any(part.startswith(".") or part in _SYSTEM for part in name.split("/"))


def _walk(root: pathlib.Path, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """The visible files in `root / below`; `above` are the identities of the folders that this one is in."""
    folder = root / below
    try:
        status = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ValueError(f"Cannot read the folder {folder}: {error}.") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if not _visible(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(root, name, (*above, identity))
        elif entry.is_symlink() and not pathlib.Path(name).suffix and not os.path.exists(entry.path):
            raise ValueError(f"The link {root / name} leads nowhere.")
        else:
            yield name
