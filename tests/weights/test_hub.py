"""Which files of a repository of the Hub are downloaded, with lists of files as public repositories have them."""

import sys
import types

import pytest

from diffusion_jax.run import convert
from diffusion_jax.weights.hub import choose

KINDS = [f"{variant}{suffix}" for suffix in (".bin", ".safetensors") for variant in ("", ".fp16", ".non_ema")]
STABLE_DIFFUSION = [
    *(".gitattributes", "README.md", "model_index.json", "v1-inference.yaml", "v1-5-pruned.ckpt"),
    *("v1-5-pruned.safetensors", "v1-5-pruned-emaonly.ckpt", "scheduler/scheduler_config.json"),
    *("feature_extractor/preprocessor_config.json", "safety_checker/config.json", "safety_checker/model.safetensors"),
    *(f"tokenizer/{n}" for n in ("merges.txt", "vocab.json", "special_tokens_map.json", "tokenizer_config.json")),
    *(f"{name}/config.json" for name in ("unet", "vae", "text_encoder")),
    *(f"{name}/diffusion_pytorch_model{kind}" for name in ("unet", "vae") for kind in KINDS),
    *(f"text_encoder/{stem}{end}" for stem, end in (("model", ".safetensors"), ("pytorch_model", ".bin"))),
    *("text_encoder/model.fp16.safetensors", "unet/diffusion_flax_model.msgpack"),
]
READ = [
    *("model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json"),
    *("text_encoder/model.safetensors", "tokenizer/merges.txt", "tokenizer/special_tokens_map.json"),
    *("tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "unet/config.json"),
    *("unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
]
SHARDED = [
    *("config.json", "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.bin"),
    *(f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)),
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    *(f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)),
]


def test_a_pipeline():
    assert choose(STABLE_DIFFUSION) == sorted(READ)


def test_a_component_comes_with_the_scheduler_that_describes_it():
    expected = [name for name in READ if name.startswith(("unet/", "scheduler/", "model_index"))]
    assert choose(STABLE_DIFFUSION, "unet") == sorted(expected)
    assert choose(STABLE_DIFFUSION, "v1-5-pruned.safetensors") == ["v1-5-pruned.safetensors"]
    assert "tokenizer/merges.txt" in choose(STABLE_DIFFUSION, "tokenizer")


def test_sharded_weights_of_one_variant():
    assert choose(SHARDED) == sorted(SHARDED[i] for i in (0, 1, 3, 4))
    only = [SHARDED[0], *SHARDED[5:]]
    assert choose(only) == sorted(only)


def test_files_of_torch_and_sentencepiece_if_there_is_nothing_else():
    files = ["model_index.json", "text_encoder/config.json", "text_encoder/pytorch_model.bin"]
    files += ["tokenizer/spiece.model", "tokenizer/special_tokens_map.json"]
    assert choose([*files, "text_encoder/tf_model.h5"]) == sorted(files)


@pytest.mark.parametrize("files", [[], ["README.md", "model.ckpt"], ["config.json"]])
def test_repositories_without_a_model(files):
    with pytest.raises(ValueError, match=r"model_index\.json"):
        choose(files)


def test_fetch_lists_before_it_downloads(monkeypatch, tmp_path):
    calls = []
    client = types.SimpleNamespace(
        list_repo_files=lambda **options: calls.append(options) or STABLE_DIFFUSION,
        snapshot_download=lambda **options: calls.append(options) or str(tmp_path),
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    assert convert.fetch("hub:some/model/unet@main") == tmp_path / "unet"
    place = dict(repo_id="some/model", revision="main")
    assert calls == [place, place | dict(allow_patterns=choose(STABLE_DIFFUSION, "unet"))]

    def unreachable(**options):
        raise OSError("no connection")

    client.list_repo_files = unreachable
    assert convert.fetch("hub:some/model") == tmp_path and calls[-1]["local_files_only"]
    client.snapshot_download = unreachable
    with pytest.raises(ValueError, match="hub:some/model cannot be downloaded: no connection"):
        convert.fetch("hub:some/model")
