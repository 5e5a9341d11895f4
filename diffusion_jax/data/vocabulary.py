"""A vocabulary of the captions at hand, for models that learn to read from scratch.

    python -m diffusion_jax.data.vocabulary --path=pictures.npz --caption_key=names --split='train[:95%]' \\
        --to=runs/words --size=2048
    python -m diffusion_jax.main --config=configs/latent_diffusion.py:emoji_f4 --workdir=runs/emoji \\
        --config.data.path=pictures.npz --config.data.tokenizer=runs/words --config.network.vocabulary=2048

`--path` is a folder of images or a file of arrays, `--caption_key` where the captions are, see `data.load`. It writes
tokenizer.json, which `data.tokenization` and the library tokenizers read. Without config.data.tokenizer a network reads
the bytes of a text, which takes it longer to learn.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from diffusion_jax.data import tokenization
from diffusion_jax.data.sources import arrays, files
from diffusion_jax.training.faults import check_local_options, one_line_if_interrupted

PAD = "[PAD]"
_BYTES = 256
_LARGEST = 2**20


def learn(texts: Sequence[str], size: int) -> tokenizers.Tokenizer:
    """A byte-pair encoding of words without capitals, from the texts (arXiv:1508.07909, on bytes as in GPT-2).

    Ids are 0 for padding, then the 256 bytes, so that there is no unknown text, then pairs of tokens inside words, the
    most frequent first, until there are `size` or every word is one token. The same texts give the same ids.

    Raises:
        ValueError: `size` outside 257..2^20, or something that is no text.
    """
    if not _BYTES < size <= _LARGEST:
        raise ValueError(f"size={size} must be in {_BYTES + 1}..{_LARGEST}: padding, {_BYTES} bytes, and pairs.")
    tokenization.check_texts(texts)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=1,
        special_tokens=[PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def captions(path: str, split: str, caption_key: str, image_key: str = "") -> list[str]:
    """The captions of a folder of images or a file of arrays. Raises ValueError where there are none."""
    where, keys = pathlib.Path(path).expanduser(), {"caption": caption_key, "image": image_key}
    keys = {kind: key for kind, key in keys.items() if key}
    if where.suffix == ".zip" or (where.is_dir() and not any(where.glob("*.np[yz]"))):
        texts = files.folder_images(where, split, keys).captions
    else:
        texts = arrays.read_arrays(where, split, keys).others.get("caption", ())
    if not len(texts):
        raise ValueError(f"{path} has no captions; --caption_key={caption_key!r} says where they are.")
    return [str(text) for text in texts]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_jax.data.vocabulary",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--path", required=True, help="folder of images, or file of arrays")
    parser.add_argument("--caption_key", default="", help="where the captions are")
    parser.add_argument("--image_key", default="", help="of a folder: the field that names images without captions")
    parser.add_argument("--split", default="train")
    parser.add_argument("--size", type=int, default=2048, help="number of tokens, padding and bytes among them")
    parser.add_argument("--to", required=True, type=pathlib.Path, help="folder for tokenizer.json")
    options = parser.parse_args(arguments)
    try:
        check_local_options(vars(options))
        texts = captions(options.path, options.split, options.caption_key, options.image_key)
        backend = learn(texts, options.size)
        options.to.mkdir(parents=True, exist_ok=True)
        backend.save(str(options.to / "tokenizer.json"))
        read = tokenization.load(options.to, max_tokens=tokenization.CLIP_TOKENS)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    longest = max(len(encoding.ids) for encoding in backend.encode_batch_fast(texts))
    print(f"{read.size} tokens of {len(texts)} captions in {options.to / 'tokenizer.json'}; the longest has {longest}")


if __name__ == "__main__":
    with one_line_if_interrupted():
        main()
