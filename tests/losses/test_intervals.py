"""Schedules of consistency models: their tables as published, and the intervals that drawn times fall into."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from diffusion_jax.losses import intervals, times
from diffusion_jax.processes import EDM, DiscreteVP, beta_table
from diffusion_jax.solvers import grids
from diffusion_jax.types import Train

PROCESS = EDM()


def at(step, num_steps):
    return Train(jnp.int32(step), num_steps)


def indices(schedule, t, train=None):
    """The index n of the grid's interval [n, n + 1] in which each t falls, counted from the data, and N."""
    upper, lower = schedule.interval(PROCESS, t, train)
    points = int(schedule.points(train))
    grid = np.asarray(PROCESS.sigma(grids.karras()(PROCESS, points - 1)))[::-1]
    n = np.abs(grid[None] - np.asarray(PROCESS.sigma(lower))[:, None]).argmin(1)
    np.testing.assert_allclose(PROCESS.sigma(lower), grid[n], rtol=1e-4)
    np.testing.assert_allclose(PROCESS.sigma(upper), grid[n + 1], rtol=1e-4)
    assert ((np.asarray(t) <= upper * (1 + 1e-5)) & (np.asarray(t) >= lower * (1 - 1e-5))).all()
    return n, points


def test_number_of_points_of_consistency_training_is_the_papers():
    """N(k) of arXiv:2303.01469, appendix C, worked out by hand at the start, in the middle and at the end."""
    schedule, total = intervals.scales(s0=2, s1=150), 800_000
    middle = math.ceil(math.sqrt((151**2 - 4) / 2 + 4) - 1) + 1
    expected = {0: 2, 1: 3, total // 2: middle, total: 151}
    for step, points in expected.items():
        assert schedule.points(at(step, total)) == points
    assert middle == 107 and schedule.points(None) == 151


@pytest.mark.parametrize(
    ("variant", "start", "end"),
    [("authors", 0.81, 0.9 ** (2 / 150)), ("paper", 0.9, 0.9 ** (2 / 151))],
)
def test_rate_of_the_target_as_in_the_paper_and_in_its_code(variant, start, end):
    points = intervals.scales(s0=2, s1=150).points
    rate = intervals.scheduled_rate(mu0=0.9, s0=2, variant=variant, points=points)
    np.testing.assert_allclose(rate(at(0, 800_000)), start, rtol=1e-6)
    np.testing.assert_allclose(rate(at(800_000, 800_000)), end, rtol=1e-6)


def test_number_of_points_doubles_in_stages_of_equal_length():
    """N(k) of arXiv:2310.14189: 11, 21, ..., 1281 in eight stages of 50 000 steps of 400 000."""
    schedule = intervals.doubling(s0=10, s1=1280)
    for stage in range(8):
        for step in (50_000 * stage, 50_000 * (stage + 1) - 1):
            assert schedule.points(at(step, 400_000)) == 10 * 2**stage + 1
    assert schedule.points(at(400_000, 400_000)) == schedule.points(None) == 1281
    assert intervals.doubling(s0=10, s1=10).points(at(5, 10)) == 11


def test_every_interval_of_the_grid_is_as_likely_under_karras_times():
    t, weight = times.karras()(PROCESS, jax.random.key(0), 50_000)
    n, points = indices(intervals.fixed(points=18), t)
    counts = np.bincount(n, minlength=points - 1)
    assert len(counts) == 17 and (weight == 1).all()
    np.testing.assert_allclose(counts / len(n), 1 / 17, rtol=0.08)  # 5 standard deviations


def test_intervals_under_log_normal_times_have_the_published_probabilities():
    """p(n) ~ erf((log s_{n+1} - m) / (sqrt 2 d)) - erf((log s_n - m) / (sqrt 2 d)), arXiv:2310.14189, section 3.5."""
    t, _ = times.log_normal(-1.1, 2.0, truncated=True)(PROCESS, jax.random.key(0), 100_000)
    n, points = indices(intervals.doubling(s0=10, s1=1280), t, at(0, 80))
    sigma = np.asarray(PROCESS.sigma(grids.karras()(PROCESS, points - 1)), np.float64)[::-1]
    p = np.diff(norm.cdf((np.log(sigma) + 1.1) / 2.0))
    counts = np.bincount(n, minlength=points - 1)
    np.testing.assert_allclose(counts / len(n), p / p.sum(), atol=0.01)
    plain, _ = times.log_normal(-1.1, 2.0)(PROCESS, jax.random.key(0), 100_000)
    assert (plain < 1e-9).mean() > 0.003 and (
        t < 1e-9
    ).mean() < 1e-4  # what is beyond the ends is moved, or never drawn


def test_uniform_grid_is_that_of_latent_consistency_models():
    """50 DDIM steps: the timesteps 19, 39, ..., 999, each compared with 20 before it, and the first with 0."""
    process = DiscreteVP.from_betas(beta_table("linear", 1000))
    schedule = intervals.fixed(points=51, spacing="uniform", t_min=1e-3)
    drawn = jnp.float32([1e-3, 0.0199, 0.0201, 0.5, 0.9999, 1.0])
    t, s = schedule.interval(process, drawn, None)
    np.testing.assert_allclose(1000 * t - 1, [19, 19, 39, 499, 999, 999], atol=1e-3)
    np.testing.assert_allclose(1000 * s - 1, [0, 0, 19, 479, 979, 979], atol=1e-3)


def test_ratio_of_easy_consistency_tuning():
    """arXiv:2406.14548: in stage 0, s = t_min up to sigma = log 7, then s / t tends to 1 / 2; later it tends to 1."""
    schedule = intervals.ratio(q=2.0, k=8.0, b=1.0, stages=8)
    sigma = np.array([0.01, 0.5, math.log(7) - 0.01, math.log(7) + 0.05, 5.0, 60.0])
    t = jnp.float32((sigma - 0.002) / (80 - 0.002))
    for stage, step in ((0, 0), (0, 124), (1, 125), (7, 999)):
        upper, s = schedule.interval(PROCESS, t, at(step, 1000))
        expected = sigma * np.maximum(1 - (1 + 8 / (1 + np.exp(sigma))) / 2.0 ** (stage + 1), 0)
        np.testing.assert_array_equal(upper, t)
        np.testing.assert_allclose(PROCESS.sigma(s), np.maximum(expected, 0.002), rtol=1e-3)
    first = schedule.interval(PROCESS, t, at(0, 1000))[1]
    assert (first[:3] < 1e-9).all() and (first[3:] > 1e-6).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: intervals.fixed(points=1), "points is 1"),
        (lambda: intervals.fixed(spacing="log"), "spacing is 'log'"),
        (lambda: intervals.scales(s0=1), r"\(s0, s1\) is \(1, 150\)"),
        (lambda: intervals.doubling(s0=20, s1=10), r"\(s0, s1\) is \(20, 10\)"),
        (lambda: intervals.ratio(q=1.0), "q is 1.0"),
        (lambda: intervals.ratio(stages=0), "stages is 0"),
        (lambda: intervals.ema_rate(1.0), "mu is 1.0"),
        (lambda: intervals.scheduled_rate(), "schedule is None"),
        (lambda: intervals.scheduled_rate(variant="ours", points=lambda train: 2), "variant is 'ours'"),
        (lambda: times.karras(t_min=0.5, t_max=0.5), "t_min < t_max"),
    ],
)
def test_refuses_numbers_out_of_range(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_pairs_of_latent_consistency_are_those_of_the_authors():
    """Timesteps 19, 39, ..., 999 and 20 less, where -1 is 0, each as likely; with `skip` of 1000 at any timestep."""
    process = DiscreteVP.from_betas(beta_table("scaled_linear", 1000))
    drawn, _ = times.uniform(t_min=0.0)(process, jax.random.key(0), 50_000)
    t, s = intervals.fixed(points=51, spacing="uniform", t_min=0.001).interval(process, drawn, None)
    start, end = (np.rint(np.asarray(x) * 1000 - 1).astype(int) for x in (t, s))
    np.testing.assert_array_equal(np.unique(start), np.arange(1, 51) * 20 - 1)
    np.testing.assert_array_equal(end, np.maximum(start - 20, 0))
    np.testing.assert_allclose(np.unique(start, return_counts=True)[1] / 50_000, 0.02, rtol=0.2)
    skipping = intervals.fixed(points=1001, spacing="uniform", t_min=0.001, skip=20)
    t, s = skipping.interval(process, drawn, None)
    start, end = (np.rint(np.asarray(x) * 1000 - 1).astype(int) for x in (t, s))
    np.testing.assert_array_equal(end, np.maximum(start - 20, 0))
    assert len(np.unique(start)) == 1000
    with pytest.raises(ValueError, match="skip is 51; it must be from 1 to 50"):
        intervals.fixed(points=51, skip=51)


@pytest.mark.parametrize(
    ("spacing", "process"), [("uniform", DiscreteVP.from_betas(beta_table())), ("karras", PROCESS)]
)
def test_no_interval_leaves_its_segment(spacing, process):
    t_min = 0.001 if spacing == "uniform" else 0.0
    schedule = intervals.fixed(points=25, spacing=spacing, t_min=t_min, skip=5, segments=4)
    drawn = jax.random.uniform(jax.random.key(0), (2000,))
    t, s = schedule.interval(process, drawn, None)
    start = schedule.start(process, t)
    assert (s >= start - 1e-6).all() and (s < t).all()
    grid = grids.karras() if spacing == "karras" else grids.uniform(t_min=0.0)
    expected = np.maximum(grid(process, 4)[1:][::-1], t_min)
    found = np.unique(np.asarray(start).round(5))
    np.testing.assert_allclose(found, np.float32(expected).round(5), atol=2e-5)
    np.testing.assert_array_equal(
        schedule.start(process, jnp.float32([1.0])), schedule.start(process, jnp.float32([0.99]))
    )
    with pytest.raises(ValueError, match="segments is 5; it must be at least 1 and a divisor of the 24 intervals"):
        intervals.fixed(points=25, segments=5)
