"""How far a vector lies from a cloud of others. NumPy and SciPy only: no model, no reward. Axes: n vectors, d width."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_triangular

Array = np.ndarray[Any, Any]
"""NumPy's own alias would do, but jaxtyping cannot read that of NumPy 2.5."""
TINY = 1e-6
"""Least share of the round covariance, and least spread, so that equal vectors are a cloud too."""
COMMON = 0.99
"""Share of unseen vectors that lie within a cloud's limit."""


class Cloud(NamedTuple):
    """Where the vectors of a sample lie."""

    mean: Array
    factor: Array
    """Lower Cholesky factor of the covariance."""
    limit: float
    """Distance within which most vectors lie that the cloud was not fitted on."""

    def distance(self, vectors: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Mahalanobis distance of each vector from the mean."""
        whitened: Array = solve_triangular(self.factor, (vectors - self.mean).T, lower=True)
        return np.asarray(np.linalg.norm(whitened, axis=0))

    def excess(self, vectors: Float[Array, "n d"]) -> Float[Array, " n"]:
        """By how many limits each vector lies beyond the limit: 0 for common ones."""
        return np.maximum(self.distance(vectors) / self.limit - 1, 0.0)


def fit_cloud(vectors: Float[Array, "n d"]) -> Cloud:
    """Mean and covariance of the first half, and the limit from the second one.

    In as many dimensions as there are vectors, those fitted on lie close to any mean; the limit has to come from
    others, as MOP's empirical form does (after arXiv:2510.13694). Raises ValueError for fewer than 4 vectors.
    """
    if len(vectors) < 4:
        raise ValueError(f"{len(vectors)} vectors are no cloud; at least 4 are needed")
    first, second = np.array_split(np.asarray(vectors, dtype=np.float64), 2)
    mean = first.mean(0)
    cloud = Cloud(mean, np.linalg.cholesky(shrunk_covariance(first - mean)), 1.0)
    return cloud._replace(limit=max(float(np.quantile(cloud.distance(second), COMMON)), TINY))


def shrunk_covariance(centred: Float[Array, "n d"]) -> Float[Array, "d d"]:
    """(1 - s) S + s m I with m the mean variance and s of Ledoit & Wolf 2004 (J. Multivariate Analysis 88): the least
    expected squared error. It can be inverted however few vectors there are.
    """
    n, d = centred.shape
    sample = centred.T @ centred / n
    round_ = max(float(np.trace(sample)) / d, TINY) * np.eye(d)
    off = float(((sample - round_)**2).sum())
    noise = (float(((centred**2).sum(1)**2).sum()) / n - float((sample**2).sum())) / n
    share = min(max(noise / off if off > 0 else 1.0, TINY), 1.0)
    return np.asarray((1 - share) * sample + share * round_)
