"""Text and image encoders: what does not need the original to be known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.networks.clip import CLIPTextModel, CLIPVisionModel
from diffusion_jax.networks.functional import init_methods
from diffusion_jax.networks.ldm_bert import LDMBert
from diffusion_jax.networks.t5 import T5Encoder, buckets
from diffusion_jax.systems.text_to_image import with_rows

CLIP = dict(vocab_size=50, hidden_size=8, intermediate_size=12, num_attention_heads=2, max_position_embeddings=7)


def text(**changes):
    return CLIPTextModel(**{**CLIP, "num_hidden_layers": 2, **changes}, rngs=nnx.Rngs(0))


def compiled(network, dtype="float32", **arguments):
    """The network, whose parameters depend on the order of its parts alone, as a function of arrays."""
    init, (call,) = init_methods(lambda rngs: network(**arguments, rngs=rngs), ("__call__",), dtype)
    return jax.jit(lambda *arrays: call(init(jax.random.key(0)), *arrays))


def test_clip_reads_from_left_to_right_up_to_the_end_of_the_text():
    ids = np.array([[40, 3, 4, 41, 41, 49, 0], [40, 3, 5, 6, 7, 8, 41]])
    net = compiled(CLIPTextModel, **CLIP, num_hidden_layers=2, eos_token_id=41)
    before, after = net(ids), net(np.where(np.arange(7) < 4, ids, 9))
    np.testing.assert_allclose(after.hidden[:, :4], before.hidden[:, :4], atol=1e-6)
    assert np.abs(after.hidden[:, 4:] - before.hidden[:, 4:]).max() > 1e-3
    np.testing.assert_array_equal(before.pooled, before.hidden[np.arange(2), [3, 6]])
    np.testing.assert_allclose(after.pooled[0], before.pooled[0], atol=1e-6)


def test_clip_takes_the_greatest_id_and_projects_it():
    """And bfloat16 within, of which float32 comes out, makes a small difference."""
    ids = np.array([[40, 3, 4, 41, 41, 49, 0], [40, 3, 5, 6, 7, 8, 41]])
    arguments = {**CLIP, "num_hidden_layers": 1, "projection_dim": 3}
    found = compiled(CLIPTextModel, **arguments)(ids)
    matrix = CLIPTextModel(**arguments, rngs=nnx.Rngs(0)).text_projection.kernel[...]
    np.testing.assert_allclose(found.pooled, found.hidden[np.arange(2), [5, 6]] @ matrix, atol=1e-6)

    rounded = compiled(CLIPTextModel, "bfloat16", **arguments)(ids)
    assert rounded.hidden.dtype == rounded.pooled.dtype == jnp.float32
    assert 0 < np.abs(rounded.hidden - found.hidden).max() < 0.1


def test_learned_tokens_are_further_rows_and_never_end_a_text():
    init, (call,) = init_methods(lambda rngs: CLIPTextModel(**CLIP, num_hidden_layers=1, rngs=rngs), ("__call__",))
    params = init(jax.random.key(0))
    rows = params["token_embedding"]["embedding"][3:5]
    ids, plain = np.array([[40, 50, 51, 49, 0, 0, 0]]), np.array([[40, 3, 4, 49, 0, 0, 0]])
    found, expected = call(with_rows(params, "token_embedding", [rows]), ids), call(params, plain)
    np.testing.assert_allclose(found.hidden, expected.hidden, atol=1e-6)
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=1e-6)
    np.testing.assert_array_equal(found.pooled[0], found.hidden[0, 3])


def test_clip_leaves_out_its_last_layers():
    """A network of two layers whose last is skipped is one of one layer."""
    ids = np.array([[40, 3, 4, 41, 41, 41, 41]])
    skipping = compiled(CLIPTextModel, **CLIP, num_hidden_layers=2, skip=1)(ids)
    short = compiled(CLIPTextModel, **CLIP, num_hidden_layers=1)(ids)
    np.testing.assert_allclose(skipping.hidden, short.hidden, atol=1e-6)
    assert np.abs(skipping.pooled - short.pooled).max() > 1e-3


def test_t5_knows_distances_and_not_places():
    """What is masked at the front shifts the text, and nothing else."""
    net = compiled(T5Encoder, vocab_size=30, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2)
    ids = np.array([[5, 6, 7, 8, 9, 10, 11, 12, 13]])
    mask = (np.arange(9) >= 3) & (np.arange(9) < 7)
    front = np.array([[8, 9, 10, 11, 1, 1, 1, 1, 1]])
    found, expected = net(ids, mask[None]), net(front, np.arange(9)[None] < 4)
    np.testing.assert_allclose(found[:, 3:7], expected[:, :4], atol=1e-5)
    assert np.abs(net(ids, np.ones((1, 9), bool))[:, 3:7] - expected[:, :4]).max() > 1e-3


def test_buckets():
    """Of eight, four for each direction: 0 and 1 by themselves, then by logarithm up to the greatest distance."""
    found = buckets(40, 8, 20)
    assert found[0, [0, 1, 2, 6, 7, 20, 39]].tolist() == [0, 5, 6, 6, 7, 7, 7]
    np.testing.assert_array_equal(found[1:, 0] + 4, found[0, 1:])
    assert (np.diagonal(found, 5) == found[0, 5]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: text(skip=3), r"skip=3 must be in 0\.\.2"),
        (lambda: text(num_attention_heads=3), "num_heads=3 must be a positive divisor of the width, 8"),
        (lambda: text(hidden_act="swish"), "'swish' is unknown"),
        (lambda: text()(jnp.zeros((1, 8), int)), "8 tokens is longer than max_position_embeddings=7"),
        (lambda: CLIPVisionModel(image_size=30, patch_size=14, rngs=nnx.Rngs(0)), "multiple of patch_size=14"),
        (lambda: T5Encoder(feed_forward_proj="gated-silu", rngs=nnx.Rngs(0)), "'gated-silu' is unknown"),
        (lambda: T5Encoder(relative_attention_num_buckets=6, rngs=nnx.Rngs(0)), "must be a multiple of 4"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_and_texts_of_another_size():
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    net = compiled(CLIPVisionModel, **sizes, image_size=8, patch_size=4, projection_dim=5)
    found = net(np.ones((2, 8, 8, 3), np.float32))
    assert found.hidden.shape == (2, 5, 8) and found.pooled.shape == (2, 5)
    with pytest.raises(ValueError, match="images of 8 x 12 pixels must have 8 on each side"):
        net(np.zeros((2, 8, 12, 3), np.float32))
    sizes = dict(vocab_size=9, max_position_embeddings=4, d_model=8, encoder_layers=1, encoder_ffn_dim=8, head_dim=2)
    bert = compiled(LDMBert, **sizes, encoder_attention_heads=3)
    assert bert(np.zeros((2, 3), int)).hidden.shape == (2, 3, 8)
    with pytest.raises(ValueError, match="5 tokens is longer"):
        bert(np.zeros((2, 5), int))
