"""Folders and zip archives as other tools write and read them: classes, links, hidden folders, metadata."""

import json
import os
import pathlib
import tarfile
import warnings
import zipfile

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.data.captions import texts_of
from diffusion_jax.data.sources import trees


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("L", (4, 4), value).save(path)


def zipped(folder, file, order=sorted):
    """`folder` as a zip archive, without entries for its folders."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in order(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder).as_posix())
    return file


def load(path, **options):
    return data.load(name="folder", path=str(path), **options)


def labels(path, **options):
    return data.arrays(load(path, **options))["label"].tolist()


def values(source):
    return np.round((data.arrays(source)["x"][:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()


def either(folder, form):
    """The folder itself, or a zip archive of it."""
    return folder if form == "folder" else zipped(folder, folder.with_suffix(".zip"))


FORMS = pytest.mark.parametrize("form", ["folder", "zip"])


@FORMS
def test_hidden_folders_are_neither_data_nor_classes(tmp_path, form):
    for i, name in enumerate(["cat/a", "dog/a", ".ipynb_checkpoints/a", "dog/.thumbs/b", "__MACOSX/cat/._a"]):
        save(tmp_path / "d" / f"{name}.png", i)
    source = load(either(tmp_path / "d", form))
    assert values(source) == [0, 1] and source.facts["classes"] == ("cat", "dog")


def test_a_hidden_folder_can_hold_the_data(tmp_path):
    save(tmp_path / ".cache" / "cat" / "a.png")
    assert len(load(tmp_path / ".cache")) == 1


def test_links_are_followed(tmp_path):
    """To class folders, folders in them and files; not in circles."""
    root = tmp_path / "d"
    save(root / "cat" / "a.png", 1)
    save(tmp_path / "elsewhere" / "b.png", 2)
    save(tmp_path / "c.png", 3)
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "c.png").symlink_to(tmp_path / "c.png")
    (root / "cat" / "up").symlink_to(root)
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    source = load(root)
    assert values(source) == [1, 3, 2, 2] and labels(root) == [0, 0, 0, 1]
    (tmp_path / "all").symlink_to(root)
    assert len(load(tmp_path / "all")) == 4
    (root / "eel").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"eel leads nowhere"):
        load(root)


@FORMS
@pytest.mark.parametrize("prefix", ["", "d/"])
def test_labels_of_dataset_tool_are_those_of_its_file(tmp_path, form, prefix):
    """The first level of folders counts images there; archives have no folder of their own, or one."""
    root = tmp_path / "edm" / prefix
    names = [f"{i // 2:05d}/img{i:08d}.png" for i in range(4)]
    for i, name in enumerate(names):
        save(root / name, i)
    file = root / "dataset.json"
    file.write_text(json.dumps({"labels": [[name, i % 2] for i, name in enumerate(names)][::-1]}))
    path = root if form == "folder" else tmp_path / "edm.zip"

    def stored():
        return path if form == "folder" else zipped(tmp_path / "edm", path)

    assert labels(stored()) == [0, 1, 0, 1] and load(path).num_classes == 2 and values(load(path)) == [0, 1, 2, 3]
    assert sorted(labels(path, split="train[:2]") + labels(path, split="train[2:]")) == [0, 0, 1, 1]
    file.write_text(json.dumps({"labels": None}))
    source = load(stored())
    assert source.num_classes == 0 and "null" in source.facts["unlabelled"]
    for content, message in (
        ({"labels": [[names[0], 1]]}, f"no label for {names[1]}"),
        ({"labels": [[name, [0.5]] for name in names]}, r"the label \[0\.5\]"),
        ({"labels": [[name, -1] for name in names]}, "the label -1"),
        ({"labels": [[name, True] for name in names]}, "the label True"),
        ({"labels": 3}, '"labels": null'),
        ([], '"labels": null'),
        ("{", '"labels": null'),
    ):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ValueError, match=rf"dataset\.json.*{message}"):
            load(stored())


@FORMS
def test_every_split_has_the_class_numbers_of_training(tmp_path, form):
    """A class that is missing elsewhere keeps its number, one that is unknown in training is refused."""
    root = tmp_path / "d"
    for name in ("train/a", "train/b", "train/c", "val/a", "val/c", "odd/a", "odd/z"):
        save(root / name / "0.png")
    (root / "val" / "b").mkdir()
    path = either(root, form)
    assert labels(path) == [0, 1, 2]
    for options in (dict(split="val"), dict(eval_split="val", evaluation=True), dict(split="val[:2]")):
        source = load(path, **options)
        assert sorted(data.arrays(source)["label"].tolist()) == [0, 2] and source.num_classes == 3
        assert source.facts["classes"] == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"class 'z' is not among .*training split: 0 a, 1 b, 2 c"):
        load(path, split="odd")


def test_the_training_split_may_have_another_name(tmp_path):
    for name in ("train_b/b", "train_b/c", "train/a", "test/c"):
        save(tmp_path / "d" / name / "0.png")
    assert labels(tmp_path / "d", split="train_b", evaluation=True) == [1]
    with pytest.raises(ValueError, match="class 'c'"):
        labels(tmp_path / "d", split="test")


def test_splits_as_zip_archives(tmp_path):
    for split, names in (("train", "ab"), ("test", "b")):
        for name in names:
            save(tmp_path / split / name / "0.png")
        zipped(tmp_path / split, tmp_path / f"{split}.zip")
        for name in names:
            (tmp_path / split / name / "0.png").unlink()
            (tmp_path / split / name).rmdir()
        (tmp_path / split).rmdir()
    assert labels(tmp_path) == [0, 1] and labels(tmp_path, evaluation=True) == [1]


def test_a_class_folder_without_images_is_refused(tmp_path):
    for name in "ac":
        save(tmp_path / name / "0.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.heic").write_bytes(b"unread")
    with pytest.raises(ValueError, match=r"/b is a class without an image"):
        load(tmp_path)
    save(tmp_path / "0.png")
    assert load(tmp_path).num_classes == 0, "no classes, no class without images"


def test_folders_named_like_splits_are_no_classes(tmp_path):
    for name in ("training/a", "test/a"):
        save(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match=r"'train', but test, training.*data\.split"):
        load(tmp_path)
    assert labels(tmp_path, split="training") == labels(tmp_path, split="test") == [0]


def test_a_stray_picture_is_named(tmp_path):
    for name in ("a/0", "b/0", "stray"):
        save(tmp_path / f"{name}.png")
    source = load(tmp_path)
    assert source.num_classes == 0 and "stray.png lies in" in source.facts["unlabelled"]


@pytest.mark.parametrize("kind", ["folder", "arrays"])
def test_strings_of_label_key_have_the_numbers_of_training(tmp_path, kind):
    for split, words in (("train", "bac"), ("test", "ca"), ("odd", "xa")):
        if kind == "arrays":
            images = np.zeros((len(words), 2, 2), np.uint8)
            np.savez(tmp_path / f"{split}.npz", images=images, labels=np.array(list(words)))
            continue
        rows = [json.dumps({"file_name": f"{i}.png", "kind": word}) for i, word in enumerate(words)]
        for i in range(len(words)):
            save(tmp_path / split / f"{i}.png")
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(rows))
    options = dict(name=kind, path=str(tmp_path), **({"label_key": "kind"} if kind == "folder" else {}))
    train, test = data.load(**options), data.load(**options, evaluation=True)
    assert train.facts["classes"] == test.facts["classes"] == ("a", "b", "c") and test.num_classes == 3
    assert data.arrays(train)["label"].tolist() == [1, 0, 2] and data.arrays(test)["label"].tolist() == [2, 0]
    with pytest.raises(ValueError, match="class 'x' is not among"):
        data.load(**options, split="odd")
    if kind == "arrays":
        np.savez(tmp_path / "test.npz", images=np.zeros((2, 2, 2), np.uint8), labels=np.array([0, 1]))
        with pytest.raises(ValueError, match="integers, and those of the training split strings"):
            data.load(**options, evaluation=True)


@FORMS
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("above", [False, True])
def test_metadata_of_imagefolder(tmp_path, form, suffix, above):
    """In the folder of the split, or one for all splits next to their folders."""
    root, rows = tmp_path / "d", []
    for split in ("train", "test"):
        for i, word in enumerate(["red, round", "wei\u00df \u2028x"]):
            save(root / split / f"{i}.png")
            rows.append({"file_name": f"{split}/{i}.png" if above else f"{i}.png", "text": word, "kind": 10 - i})
            rows[-1]["mask"] = f"{split}/mask.png" if above else "mask.png"
        save(root / split / "mask.png")
        content = "\n".join(map(lambda row: json.dumps(row, ensure_ascii=False), rows))
        if suffix == "csv":
            lines = [",".join(f'"{value}"' for value in row.values()) for row in rows]
            content = "\r\n".join([",".join(rows[0]), *lines, ""])
        file = root / f"metadata.{suffix}" if above else root / split / f"metadata.{suffix}"
        file.write_bytes(b"\xef\xbb\xbf" + content.encode())
        rows = rows if above else []
    path = either(root, form)
    keys = dict(caption_key="text", label_key="kind", control_key="mask", shapes={"control": (4, 4, 1)})
    for split in ("train", "test"):
        batch = data.arrays(load(path, **keys, split=split, max_tokens=16))
        assert texts_of(batch["tokens"]) == ["red, round", "wei\u00df \u2028x"]
        assert batch["label"].tolist() == [10, 9], "digits of a table are numbers"
        assert batch["control"].shape == (2, 4, 4, 1)


@pytest.mark.parametrize("kinds", [["x", 1], [["a"], ["b"]], [0.5, 1.5], [True, False], [None, "a"]])
def test_classes_of_metadata_are_all_strings_or_all_integers(tmp_path, kinds):
    rows = [json.dumps({"file_name": f"{i}.png", "kind": kind}) for i, kind in enumerate(kinds)]
    for i in range(2):
        save(tmp_path / f"{i}.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"metadata\.jsonl: 'kind' must be strings, or integers"):
        load(tmp_path, label_key="kind")


def test_metadata_that_cannot_be_read_is_named(tmp_path):
    save(tmp_path / "0.png")
    options = dict(caption_key="text", max_tokens=4)
    with pytest.raises(ValueError, match=r"neither metadata\.jsonl nor metadata\.csv"):
        load(tmp_path, **options)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(ValueError, match=r"sub/metadata\.csv lies below"):
        load(tmp_path, **options)
    file = tmp_path / "metadata.csv"
    for content, message in (
        (b"file_name,text\n0.png,a,b\n", "line 2"),
        (b"file_name,text\n0.png\n", "line 2"),
        (b'file_name,text\n0.png,"a\n', "unexpected end"),
        (b"name,text\n0.png,a\n", "file_name"),
        ("file_name,text\n0.png,a\n".encode("utf-16"), "UTF-16"),
        ("file_name,text\n0.png,\u00e4\n".encode("latin-1"), "UTF-8"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"metadata\.csv.*{message}"):
            load(tmp_path, **options)
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"metadata\.jsonl and metadata\.csv"):
        load(tmp_path, **options)


def test_captions_next_to_images_in_an_archive(tmp_path):
    for i in range(2):
        save(tmp_path / "d" / f"{i}.png")
        (tmp_path / "d" / f"{i}.txt").write_text(f"text {i}\nmore")
    source = load(zipped(tmp_path / "d", tmp_path / "d.zip"), caption_key=".txt", max_tokens=8)
    assert texts_of(data.arrays(source)["tokens"]) == ["text 0", "text 1"]


def test_other_files_are_refused_by_what_they_are(tmp_path):
    save(tmp_path / "d" / "a" / "0.png")
    with tarfile.open(tmp_path / "shard-000.tar", "w") as archive:
        archive.add(tmp_path / "d", "d")
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2, 2), np.uint8))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "bad.zip").write_bytes(b"PK nonsense")
    for name, message in (
        ("shard-000.tar", r"unpack.*tar -xf shard-000\.tar"),
        ("a.npz", "data.name='arrays'"),
        ("a.parquet", "parquet files are not read"),
        ("bad.zip", "bad.zip"),
        ("d/a/0.png", "must be a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)
    with pytest.raises(ValueError, match=r"No image file in .*, but bad\.zip, shard-000\.tar"):
        (tmp_path / "d" / "a" / "0.png").unlink()
        (tmp_path / "a.npz").unlink()
        (tmp_path / "a.parquet").unlink()
        load(tmp_path)
    save(tmp_path / "e" / "0.png")
    with pytest.raises(ValueError, match=r"data\.name='folder'"):
        data.load(name="arrays", path=str(zipped(tmp_path / "e", tmp_path / "e.zip")))
    with pytest.raises(ValueError, match=r"e is a folder without train\.npz"):
        data.load(name="arrays", path=str(tmp_path / "e"))


def test_archives_of_windows_and_bombs(tmp_path):
    save(tmp_path / "0.png")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        for name in ("a\\0.png", "b\\0.png"):
            archive.writestr(zipfile.ZipInfo(name), (tmp_path / "0.png").read_bytes())
    assert labels(tmp_path / "w.zip") == [0, 1]
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", b"")
        archive.infolist()[0].file_size = 2**32 - 2
    with pytest.raises(ValueError, match=r"b\.zip: its .* bytes announce"):
        load(tmp_path / "b.zip")


def test_a_damaged_member_of_an_archive_is_named(tmp_path):
    for i in range(2):
        PIL.Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)).save(tmp_path / f"{i}.png")
    path = zipped(tmp_path, tmp_path / "d.zip", order=lambda paths: sorted(p for p in paths if p.suffix == ".png"))
    content = bytearray(path.read_bytes())
    content[content.rfind(b"IDAT") + 8] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"d\.zip/1\.png"):
        data.arrays(load(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator reads everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    save(tmp_path / "a" / "0.png")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(ValueError, match="Cannot read the folder"):
            load(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o700)


def test_animations_give_their_first_picture_and_a_warning(tmp_path):
    frames = [PIL.Image.new("L", (4, 4), value) for value in (10, 20)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.tiff", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"several pictures.*data\.check"):
        assert values(load(tmp_path)) == [10, 10]
    save(tmp_path / "c" / "one.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(data.arrays(load(tmp_path / "c"))["x"]) == 1


def test_names_are_those_below_the_root(tmp_path):
    for name in ("b/1.png", "a b/2.png", "a.png"):
        save(tmp_path / "d" / name)
    archive = trees.open_zip(zipped(tmp_path / "d", tmp_path / "d.zip"))
    for root in (tmp_path / "d", archive):
        assert trees.names(root) == ["a b/2.png", "a.png", "b/1.png"] and trees.folders(root) == ["a b", "b"]
        assert (root / "b/1.png").read_bytes() == pathlib.Path(tmp_path, "d", "b", "1.png").read_bytes()
    with pytest.raises(OSError, match="no such file"):
        (archive / "b/9.png").read_bytes()


def test_paths_in_archives_are_relative(tmp_path):
    save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()

    def archive(*names):
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
            for name in names:
                file.writestr(name, b"" if name.endswith("/") else content)
        return tmp_path / "images.zip"

    assert labels(archive("./cat/0.png", "./dog/0.png")) == [0, 1]
    assert labels(archive("/data/cat/0.png", "/data/dog/0.png", "data/dog/1.png")) == [0, 1, 1]
    with pytest.raises(ValueError, match=r"images\.zip: the path '\.\./cat/0\.png' leads out of it"):
        load(archive("../cat/0.png", "dog/0.png"))
    with pytest.raises(ValueError, match="fox"):  # a class without images
        load(archive("./cat/0.png", "./dog/0.png", "./fox/"))


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_an_image_has_one_line_of_metadata(tmp_path, suffix):
    save(tmp_path / "0.png")

    def metadata(*texts):
        rows = [{"file_name": name, "text": text} for name, text in zip(["0.png", "./0.png"], texts, strict=True)]
        lines = [json.dumps(row) for row in rows]
        if suffix == "csv":
            lines = ["file_name,text", *(",".join(row.values()) for row in rows)]
        (tmp_path / f"metadata.{suffix}").write_text("\n".join(lines) + "\n")
        return load(tmp_path, caption_key="text", max_tokens=4)

    with pytest.raises(ValueError, match=rf"metadata\.{suffix}, line {2 + (suffix == 'csv')}: 0\.png has another line"):
        metadata("a cat", "a dog")
