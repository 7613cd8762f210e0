"""Distances from a cloud, by hand and beside NumPy's covariance."""

import numpy as np
import pytest

from rlhflab.core.outliers import Cloud, fit_cloud, shrunk_covariance


def test_distance_and_excess_by_hand() -> None:
    cloud = Cloud(mean=np.array([1.0, 0.0]), factor=np.diag([2.0, 1.0]), limit=2.0)  # variances 4 and 1
    points = np.array([[1.0, 0.0], [5.0, 0.0], [1.0, 3.0], [9.0, 3.0]])
    np.testing.assert_allclose(cloud.distance(points), [0, 2, 3, 5])
    np.testing.assert_allclose(cloud.excess(points), [0, 0, 0.5, 1.5])


def test_the_covariance_shrinks_by_the_share_of_ledoit_and_wolf() -> None:
    # Rows (2, 0), (-2, 0), (0, 1), (0, -1): S = diag(2, 1/2), m = 5/4, |S - m I|^2 = 9/8; the outer products have
    # squared norms 16, 16, 1, 1, so their mean distance from S is (34/4 - 17/4) / 4 = 17/16, and s = 17/18.
    rows = np.array([[2.0, 0], [-2, 0], [0, 1], [0, -1]])
    np.testing.assert_allclose(shrunk_covariance(rows), np.diag([2 / 18 + 17 / 18 * 1.25, 0.5 / 18 + 17 / 18 * 1.25]))


def test_of_many_vectors_little_is_shrunk_and_the_limit_is_that_of_unseen_ones() -> None:
    draw = np.random.default_rng(0).normal(size=(8000, 3)) @ np.array([[3.0, 0, 0], [1, 1, 0], [0, 0, 0.5]])
    cloud = fit_cloud(draw)
    np.testing.assert_allclose(cloud.factor @ cloud.factor.T, np.cov(draw[:4000].T), rtol=0.05, atol=0.05)
    assert cloud.limit == pytest.approx(3.368, abs=0.12), "the root of chi-square's .99 quantile with 3 degrees"
    assert (cloud.excess(draw[4000:]) > 0).mean() == pytest.approx(0.01, abs=0.002)


@pytest.mark.parametrize("vectors", [np.ones((6, 4)), np.eye(4), np.array([[2.0, 0], [-2, 0], [2, 0], [-2, 0]])])
def test_few_or_equal_vectors_are_a_cloud_too(vectors: np.ndarray) -> None:
    excess = fit_cloud(vectors).excess(np.full_like(vectors, 9.0))
    assert np.isfinite(excess).all() and (excess > 0).all()


def test_three_vectors_are_none() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        fit_cloud(np.eye(3))
