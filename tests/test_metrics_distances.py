"""Distances of distributions: exact where the answer is known, and 0 on average where it is 0."""
import numpy as np
import pytest

from tinydiff.metrics import frechet_distance, frechet_of_gaussians, kernel_distance


def normal_set(n, d, seed, mean=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(mean, scale, (n, d))


# ---- Fréchet ----

def test_the_distance_of_gaussians_that_commute_is_that_of_means_and_deviations():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.0])       # variances on common axes
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    got = frechet_of_gaussians(np.zeros(3), axes * a @ axes.T, np.array([1.0, 2.0, 2.0]),
                               axes * b @ axes.T)
    np.testing.assert_allclose(got, 9 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rtol=1e-9)


def test_the_distance_of_gaussians_that_do_not_commute_uses_the_root_of_their_product():
    rng = np.random.default_rng(1)
    a, b = (m @ m.T for m in rng.normal(size=(2, 4, 4)))
    values = np.linalg.eigvals(a @ b)                                 # positive, if not symmetric
    want = np.trace(a) + np.trace(b) - 2 * np.sqrt(values.real).sum()
    np.testing.assert_allclose(frechet_of_gaussians(np.zeros(4), a, np.zeros(4), b), want)


def test_of_large_sets_it_is_that_of_their_gaussians():
    a, b = normal_set(100_000, 2, 0), normal_set(100_000, 2, 1, mean=[3, 0], scale=2)
    assert abs(frechet_distance(a, b) - 11) < 0.1                     # 9 + 2 (2 - 1)^2


def test_a_set_is_at_no_distance_from_itself_and_the_order_does_not_matter():
    a, b = normal_set(50, 8, 0), normal_set(60, 8, 1)
    assert abs(frechet_distance(a, a)) < 1e-9
    np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a))


def test_fewer_vectors_than_dimensions_are_no_obstacle():
    distance = frechet_distance(normal_set(10, 32, 0), normal_set(10, 32, 1))
    assert np.isfinite(distance) and distance > 0


# ---- kernel ----

def test_the_estimate_is_its_definition():
    a, b = normal_set(5, 3, 0), normal_set(4, 3, 1)

    def k(x, y):
        return (x @ y / 3 + 1) ** 3
    want = (np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
            + np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
            - 2 * np.mean([k(x, y) for x in a for y in b]))
    np.testing.assert_allclose(kernel_distance(a, b).value, want)


def test_the_margin_is_the_jackknifes():
    a, b = normal_set(6, 3, 0), normal_set(5, 3, 1)
    without = [[kernel_distance(np.delete(a, i, 0), b).value for i in range(6)],
               [kernel_distance(a, np.delete(b, i, 0)).value for i in range(5)]]
    variance = sum((len(x) - 1) * np.var(x) for x in without)
    np.testing.assert_allclose(kernel_distance(a, b).margin, 1.96 * np.sqrt(variance))


def test_it_is_zero_on_average_for_one_distribution():
    values = [kernel_distance(normal_set(20, 4, 2 * s), normal_set(20, 4, 2 * s + 1)).value
              for s in range(400)]
    assert abs(np.mean(values)) < 2 * np.std(values) / 20
    assert 0.3 < np.mean(np.array(values) < 0) < 0.7                  # not biased: half are below


def test_another_distribution_is_found_and_its_interval_covers_the_truth():
    # k = (x.y + 1)^3 in one dimension is 1 + 3xy + 3x²y² + x³y³.  Of numbers even in [-1, 1], and
    # of the same plus m, the means of x, x², x³ differ by m, m² and m³ + m.
    m = 0.5
    truth = 3 * m**2 + 3 * m**4 + (m**3 + m) ** 2
    covered = []
    for s in range(200):
        a, b = np.random.default_rng(s).uniform(-1, 1, (2, 100, 1))
        value, margin = kernel_distance(a, b + m)
        covered.append(abs(value - truth) < margin)
    assert 0.9 < np.mean(covered) < 0.985                             # 95 % are meant


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_features_that_do_not_fit_are_named(distance):
    with pytest.raises(ValueError, match=r"shapes \(4, 3\) and \(4, 2\)"):
        distance(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="1 and 4 feature vectors: at least"):
        distance(np.zeros((1, 3)), np.zeros((4, 3)))
