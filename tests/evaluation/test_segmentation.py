"""Masks against the truth: overlaps by hand, and calibration in closed form for exact, too sure and unsure models."""

import numpy as np
import pytest

from diffusion_jax.evaluation.segmentation import calibration_error, reliability, segmentation

RNG = np.random.default_rng(0)
F = RNG.uniform(size=(400, 8, 8, 1))  # the probability of each pixel, uniform: the mean of f (1 - f) is 1 / 6


def masks(p, k=1):
    """k draws of independent pixels with the probabilities p."""
    return np.where(RNG.uniform(size=(k, *p.shape)) < p, 1.0, -1.0).reshape(-1, *p.shape[1:])


def sharpened(p, power):
    return p**power / (p**power + (1 - p) ** power)


def test_overlaps_by_hand():
    truth, sample = np.full((1, 2, 3, 1), -1.0), np.full((1, 2, 3, 1), -1.0)
    truth[0, 0], sample[0, :, 0], sample[0, 0, 1] = 1, 1, 1  # 3 and 3 pixels, 2 in common
    found = segmentation(sample, truth)
    assert found["segmentation_iou"] == pytest.approx(2 / 4)
    assert found["segmentation_dice"] == pytest.approx(2 * 2 / 6)
    assert found["segmentation_miou"] == pytest.approx((2 / 4 + 2 / 4) / 2)  # outside: 2 in common of 4
    assert found["segmentation_accuracy"] == pytest.approx(4 / 6)
    assert segmentation(truth, truth)["segmentation_iou"] == 1
    nothing = np.full_like(truth, -1)
    assert segmentation(nothing, nothing)["segmentation_iou"] == 1
    assert segmentation(truth, nothing)["segmentation_iou"] == 0


def test_classes_of_several_channels_and_pixels_without_a_label():
    classes = np.array([[[0, 0, 1], [2, 2, 1]]])
    truth = np.where(classes[..., None] == np.arange(3), 1.0, -1.0)
    sample = np.where(np.array([[[0, 1, 1], [2, 2, 2]]])[..., None] == np.arange(3), 1.0, -1.0)
    assert segmentation(sample, truth)["segmentation_miou"] == pytest.approx((1 / 2 + 1 / 3 + 2 / 3) / 3)
    truth[0, 1, 2] = -1  # without a label
    found = segmentation(sample, truth)
    assert found["segmentation_miou"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert found["segmentation_accuracy"] == pytest.approx(4 / 5)


def test_the_vote_of_several_draws_is_that_of_their_mean():
    truth = np.array([1.0, 1.0, -1.0, -1.0]).reshape(1, 2, 2, 1)
    draws = np.array([[1, -1, -1, -1], [1, 1, -1, 1], [-1, 1, -1, -1.0]]).reshape(3, 2, 2, 1)
    found = segmentation(draws, truth)
    assert found["segmentation_iou"] == 1
    assert found["segmentation_iou_single"] == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)
    assert found["segmentation_samples_per_image"] == 3


@pytest.mark.parametrize("k", [2, 9])
def test_draws_from_the_law_of_the_truth_are_calibrated_at_any_number(k):
    found = segmentation(masks(F, k), masks(F))
    assert found["segmentation_calibration"] == pytest.approx(1, abs=0.02)
    # Two classes, each with the variance f (1 - f) of the truth and its k-th part of the mean of the draws.
    assert found["segmentation_brier"] == pytest.approx(2 * (1 + 1 / k) / 6, rel=0.02)


@pytest.mark.parametrize(("power", "low", "high"), [(3.0, 1.3, 9.0), (0.3, 0.1, 0.9)])
def test_draws_that_are_too_sure_or_too_unsure_are_not(power, low, high):
    assert low < segmentation(masks(sharpened(F, power), 9), masks(F))["segmentation_calibration"] < high


def test_probabilities_are_calibrated_by_their_own_variance_and_in_bins():
    exact, sure = (segmentation(2 * p - 1, masks(F)) for p in (F, sharpened(F, 3.0)))
    assert exact["segmentation_calibration"] == pytest.approx(1, abs=0.03)
    assert exact["segmentation_ece"] < 0.02
    assert sure["segmentation_calibration"] > 1.3
    # The mean of |f^3 / (f^3 + (1 - f)^3) - f| over uniform f.
    f = np.linspace(0, 1, 10_001)
    assert sure["segmentation_ece"] == pytest.approx(np.abs(sharpened(f, 3.0) - f).mean(), abs=0.02)


def test_reliability_counts_the_pixels_of_each_bin():
    p = np.array([[0.95, 0.05], [0.45, 0.55], [0.45, 0.55], [0.0, 1.0]])
    right = np.array([[True, False], [False, True], [True, False], [False, True]])
    table = reliability(p, right)
    np.testing.assert_array_equal(table.count, [1, 0, 0, 0, 0, 2, 0, 0, 0, 1])
    np.testing.assert_allclose(table.observed[[0, 5, 9]], [0, 0.5, 1])
    assert calibration_error(table) == pytest.approx((0.05 + 2 * 0.05 + 0) / 4)


def test_masks_that_belong_to_no_image_are_refused():
    with pytest.raises(ValueError, match="5 samples of 2 images; every image needs as many"):
        segmentation(np.ones((5, 2, 2, 1)), np.ones((2, 2, 2, 1)))
