"""Named conditions: null values, dropout, structures, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.conditions import NO_CONDITIONS, Condition, Conditions, structure

ALL = Conditions(num_classes=3, vector_dim=2, token_dim=4, vocabulary=9, max_tokens=5, image_shape=(4, 4, 1))
FEATURES = Conditions(token_dim=4, max_tokens=5)


def example(num=1000):
    key = jax.random.key(0)
    return {
        "label": jax.random.randint(key, (num,), 0, 3),
        "vector": 1 + jax.random.uniform(key, (num, 2)),
        "tokens": jax.random.randint(key, (num, 5), 1, 9),
        "image": 1 + jax.random.uniform(key, (num, 4, 4, 1)),
    }


def test_none_is_outside_of_what_data_hold():
    null = ALL.null(2)
    np.testing.assert_array_equal(null["label"], [3, 3])
    assert all(not np.asarray(null[name]).any() for name in ("vector", "tokens", "image"))
    assert jax.tree.map(lambda x: (x.shape[1:], x.dtype), null) == {
        name: (entry.shape, entry.dtype) for name, entry in ALL.shapes.items()
    }
    features = FEATURES.null()
    assert features["mask"].dtype == bool and not features["mask"].any()
    assert NO_CONDITIONS.null() is None and NO_CONDITIONS.of({"label": 1}) is None


def test_dropping_replaces_all_conditions_of_a_row_at_the_rate():
    cond = example()
    dropped = ALL.dropped(jax.random.key(1), cond, 0.3)
    gone = np.asarray(dropped["label"] == 3)
    assert abs(gone.mean() - 0.3) < 0.05
    none = ALL.null()
    for name, value in cond.items():
        np.testing.assert_array_equal(dropped[name][gone], np.broadcast_to(none[name], value.shape)[gone])
        np.testing.assert_array_equal(dropped[name][~gone], value[~gone])
    assert ALL.dropped(jax.random.key(1), cond, 0.0) is cond


def test_conditions_are_dropped_each_at_its_rate_and_together():
    """Independently: the rates of combinations are products, next to the rate of all at once."""
    num = 20_000
    conditions = Conditions(num_classes=3, token_dim=1, max_tokens=2, image_shape=(1, 1, 1))
    ones = {name: jnp.ones((num, *entry.shape), entry.dtype) for name, entry in conditions.shapes.items()}
    dropped = conditions.dropped(jax.random.key(1), ones, 0.05, {"tokens": 0.1, "image": 0.3})
    label, tokens, image = (
        np.asarray(dropped[name] == null).reshape(num, -1).all(1)
        for name, null in (("label", 3), ("tokens", 0.0), ("image", 0.0))
    )
    np.testing.assert_array_equal(tokens, ~np.asarray(dropped["mask"]).any(1))
    np.testing.assert_array_equal(tokens, ~np.asarray(dropped["mask"]).all(1))
    for found, rate in (
        (label, 0.05),
        (tokens & ~image, 0.95 * 0.1 * 0.7),
        (image & ~tokens, 0.95 * 0.9 * 0.3),
        (tokens & image & ~label, 0.95 * 0.1 * 0.3),
        (label & tokens & image, 0.05),
    ):
        assert abs(found.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / num), rate


def test_conditions_of_two_are_together():
    both = Conditions(vector_dim=2) | Conditions(num_classes=3)
    assert set(both.shapes) == {"label", "vector"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(label=np.array([0, 3])), "label 3 is out of range; it must be in 0..2"),
        (dict(label=np.array([-1, 0])), "label -1 is out of range"),
        (dict(tokens=np.full((2, 5), 9)), "tokens 9 is out of range"),
        (dict(vector=np.ones((2, 3))), r"'vector' has shape \(2, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    cond = {name: np.asarray(value)[:2] for name, value in example().items()}
    ALL.check(cond)
    with pytest.raises(ValueError, match=message):
        ALL.check(cond | change)


POCKET = Conditions(num_classes=3) | Conditions({"pocket": structure((2, 3)), "mask": structure((5,), "bool", null=1)})


def test_structures_pass_dropout_unchanged():
    """Whatever the rates, also those of their own names; the other conditions of these rows are dropped."""
    pocket = jax.random.normal(jax.random.key(0), (100, 2, 3))
    cond = {"label": jnp.zeros(100, jnp.int32), "mask": jnp.zeros((100, 5), bool), "pocket": pocket}
    for rate, rates in ((1.0, {}), (0.0, {"label": 1.0, "pocket": 1.0})):
        dropped = POCKET.dropped(jax.random.key(1), cond, rate, rates)
        np.testing.assert_array_equal(dropped["label"], 3)
        np.testing.assert_array_equal(dropped["pocket"], pocket)
        assert not np.asarray(dropped["mask"]).any()


def test_the_null_condition_of_guidance_keeps_structures():
    cond = {"label": jnp.array([1, 2]), "mask": jnp.zeros((2, 5), bool), "pocket": jnp.ones((2, 2, 3))}
    null = POCKET.nulled(cond)
    np.testing.assert_array_equal(null["label"], [3, 3])
    assert null["pocket"] is cond["pocket"] and null["mask"] is cond["mask"]
    for conditions, given in ((ALL, example(2)), (ALL, None), (POCKET, None)):
        nulls = conditions.nulled(given), conditions.null()
        jax.tree.map(np.testing.assert_array_equal, *nulls)
    assert np.asarray(POCKET.null()["mask"]).all(), "without a structure, its null value"


def test_the_set_of_conditions_is_open_and_its_order_does_not_depend_on_that_of_the_parts():
    own = Condition(POCKET.specs["pocket"], null=(1.0, 2.0, 3.0))
    parts = Conditions(vector_dim=2), Conditions({"zeta": own}), Conditions({"alpha": own}), Conditions(num_classes=3)
    for first, second, third, last in (parts, parts[::-1]):
        union = first | second | third | last
        assert list(union) == ["label", "vector", "alpha", "zeta"]
        np.testing.assert_array_equal(union.null(2)["alpha"], np.broadcast_to([1.0, 2.0, 3.0], (2, 2, 3)))
    assert union == Conditions(num_classes=3, vector_dim=2) | Conditions({"alpha": own, "zeta": own})
    assert len({union, union | parts[0]}) == 1
    ids, vectors = Conditions(token_dim=4, vocabulary=9, max_tokens=5), FEATURES
    assert list(ids | vectors) == ["tokens"], "the mask goes with its tokens"
    assert list(vectors | ids) == ["tokens", "mask"]


def test_missing_conditions_and_tokens_without_a_length():
    with pytest.raises(ValueError, match="'vector' is missing"):
        ALL.of({"label": jnp.zeros(2, jnp.int32)})
    with pytest.raises(ValueError, match="need both a width and a length"):
        Conditions(token_dim=4)
    with pytest.raises(ValueError, match="num_classes=-1"):
        Conditions(num_classes=-1)
