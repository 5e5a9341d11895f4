"""The similarity of images and texts against transformers' CLIPModel, its tokenizer and its preprocessing."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from diffusion_jax.evaluation import clip_score
from tests.data.test_tokenization import write_clip
from tests.parity import relative_error
from tests.parity.test_networks_text import shaken

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("size", [(32, 32), (20, 33), (50, 18)])
def test_preprocessing(size):
    transformers = pytest.importorskip("transformers")
    x = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    expected = processor([PIL.Image.fromarray(image) for image in x], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(clip_score.prepared(x, 24), np.stack(expected).transpose(0, 2, 3, 1), atol=1e-5)


def test_similarities(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    write_clip(tmp_path)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    config = transformers.CLIPConfig(
        text_config=dict(sizes, vocab_size=len(tokenizer), **ids, hidden_act="gelu"),
        vision_config=dict(sizes, image_size=24, patch_size=8),
        projection_dim=6,
    )
    model = shaken(transformers.CLIPModel(config), torch)
    model.save_pretrained(tmp_path)
    prompts = ["a red heart", "the loss of a network", "", "dog face", "a! " * 90]
    x = np.random.default_rng(0).uniform(-1, 1, (5, 32, 32, 3)).astype(np.float32)
    judge = clip_score.load(tmp_path)
    found = clip_score.similarities(judge, x, prompts, batch_size=2)

    pixels = clip_score.prepared(np.round((x + 1) * 127.5).astype(np.uint8), 24).transpose(0, 3, 1, 2)
    inputs = tokenizer(prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=inputs["input_ids"], pixel_values=torch.tensor(np.ascontiguousarray(pixels)))
    expected = (out.logits_per_image / model.logit_scale.exp()).diagonal().detach().numpy()
    assert relative_error(found, expected) < 2e-5 and np.ptp(expected) > 0.05
    opposite = dataclasses.replace(judge, embed=lambda *given: (-judge.embed(*given)[0], judge.embed(*given)[1]))
    for judging, sign in ((judge, 1), (opposite, -1)):
        figures = clip_score.clip_score(judging, x, prompts)
        assert figures["clip_similarity"] == pytest.approx(sign * expected.mean(), abs=1e-5)
        assert figures["clip_score"] == pytest.approx(2.5 * np.maximum(sign * expected, 0).mean(), abs=1e-5)
        assert figures["clip_score_num"] == 5
    with pytest.raises(ValueError, match="as many prompts as images, and at least one, got 4 and 5"):
        clip_score.similarities(judge, x, prompts[:4])
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(ValueError, match="of a whole CLIP"):
        clip_score.load(tmp_path)
