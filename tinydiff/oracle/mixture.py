"""Gaussian mixtures: the denoiser, density, conditionals and flow of `tinydiff.oracle`."""
from math import pi, prod

import numpy as np

from tinydiff.diffusion import Level


class GaussianMixture:
    """Gaussians with weights: E[x0 | x_t], score, density, conditionals and flow, all exact.

    Parameters
    ----------
    means : (K, D) ndarray
    covariances : (K, D, D) ndarray, or (K,) ndarray or float of variances
        One full matrix a component, or one variance; positive semi-definite.
    weights : (K,) ndarray, optional
        Positive; scaled to add up to 1.  Equal by default.
    labels : sequence of K, optional
        The class of each component, for `of_class`.

    Raises
    ------
    ValueError
        If shapes do not agree, a weight is not positive or a covariance is not one.

    Examples
    --------
    >>> two = GaussianMixture([[-1.0], [1.0]], 0.01)
    >>> x0_hat, eps_hat = two(np.array([[0.6]]), Level(1.0, 0.6, 0.8))
    >>> (0.6 * x0_hat + 0.8 * eps_hat).round(12)                # the two halves make up x_t
    array([[0.6]])
    """

    def __init__(self, means, covariances, weights=None, labels=None):
        self.means = np.array(means, np.float64)                      # (K, D)
        if self.means.ndim != 2:
            raise ValueError(f"means have shape {self.means.shape}, (K, D) is needed")
        K, D = self.means.shape
        self.weights = np.full(K, 1 / K) if weights is None else np.array(weights, np.float64)
        if self.weights.shape != (K,) or not (self.weights > 0).all():
            raise ValueError(f"weights: {K} positive numbers are needed, one a component")
        self.weights = self.weights / self.weights.sum()
        self.labels = [0] * K if labels is None else list(labels)
        if len(self.labels) != K:
            raise ValueError(f"{len(self.labels)} labels for {K} components")
        covariances = np.array(covariances, np.float64)
        if covariances.ndim < 2:                                      # variances
            covariances = np.broadcast_to(covariances, (K,))[:, None, None] * np.eye(D)
        if covariances.shape != (K, D, D):
            raise ValueError(f"covariances have shape {covariances.shape}, ({K}, {D}, {D}) or "
                             f"({K},) is needed")
        # C = U diag(e) U^T: V = signal^2 C + noise^2 I has the same axes at every level.
        self.e, self.U = np.linalg.eigh(covariances)                  # (K, D), (K, D, D)
        if (self.e < -1e-9 * np.abs(self.e).max()).any():
            raise ValueError("a covariance has a negative eigenvalue: it is none")
        self.e = np.maximum(self.e, 0.0)

    @property
    def covariances(self):
        """The covariance of each component, (K, D, D)."""
        return np.einsum("kij,kj,klj->kil", self.U, self.e, self.U)

    # ---- the noisy data at a level ----

    def __call__(self, x_t, t):
        """Return ``(x0_hat, eps_hat)``, what a perfect denoiser says: a sampler's `denoise`.

        Parameters
        ----------
        x_t : (B, ...) ndarray
            D entries a picture, in any shape.
        t : Level

        Returns
        -------
        x0_hat, eps_hat : (B, ...) ndarray
            E[x0 | x_t] and E[eps | x_t], in the dtype of `x_t`.
        """
        if t.noise == 0:
            return x_t / t.signal, 0.0 * x_t
        z, variance = self._centred(x_t, t)                        # (B, K, D) on the own axes
        r = self.shares(x_t, t)                                       # (B, K)
        white = z / variance
        eps = t.noise * np.einsum("bk,kij,bkj->bi", r, self.U, white)
        x0 = r @ self.means + t.signal * np.einsum("bk,kij,bkj->bi", r, self.U, self.e * white)
        return (x0.reshape(x_t.shape).astype(x_t.dtype, copy=False),
                eps.reshape(x_t.shape).astype(x_t.dtype, copy=False))

    def shares(self, x_t, t):
        """How probable it is that `x_t` came from each component, (B, K); rows add up to 1."""
        logs = self._log_parts(x_t, t)
        logs = np.exp(logs - logs.max(axis=1, keepdims=True))
        return logs / logs.sum(axis=1, keepdims=True)

    def log_density(self, x_t, t):
        """Log density of the noisy data at `x_t`, (B,), in nats; `t` = CLEAN: of the data."""
        logs = self._log_parts(x_t, t)
        most = logs.max(axis=1)
        return most + np.log(np.exp(logs - most[:, None]).sum(axis=1))

    def score(self, x_t, t):
        """Gradient of `log_density` in `x_t`, in its shape."""
        z, variance = self._centred(x_t, t)
        r = self.shares(x_t, t)
        return -np.einsum("bk,kij,bkj->bi", r, self.U, z / variance).reshape(x_t.shape)

    def class_score(self, label, x_t, t):
        """Gradient of log p(label | x_t) in `x_t`, in its shape: the exact classifier's guidance.

        By Bayes' rule the score of the class less the score of all.
        """
        return self.of_class(label).score(x_t, t) - self.score(x_t, t)

    def sample(self, n, rng):
        """Draw `n` clean samples, (n, D)."""
        k = rng.choice(len(self.weights), n, p=self.weights)
        z = rng.normal(size=(n, self.means.shape[1])) * np.sqrt(self.e[k])
        return self.means[k] + np.einsum("nij,nj->ni", self.U[k], z)

    def moments(self, t):
        """Mean (D,) and covariance (D, D) of the noisy data at level `t`."""
        mean = self.weights @ self.means
        apart = self.means - mean
        within = np.einsum("k,kij->ij", self.weights, self.covariances)
        between = np.einsum("k,ki,kj->ij", self.weights, apart, apart)
        return (t.signal * mean,
                t.signal**2 * (within + between) + t.noise**2 * np.eye(len(mean)))

    # ---- conditionals ----

    def of_class(self, label):
        """Return the mixture of the components that carry `label`: p(x0 | class).

        Raises
        ------
        ValueError
            If no component carries it.
        """
        keep = [k for k, own in enumerate(self.labels) if own == label]
        if not keep:
            raise ValueError(f"no component has the label {label!r}, there are "
                             f"{sorted(set(self.labels), key=str)}")
        return GaussianMixture(self.means[keep], self.covariances[keep], self.weights[keep],
                               [label] * len(keep))

    def given(self, known, values):
        """Return p(x0 | some entries of it): what exact inpainting draws from.

        Parameters
        ----------
        known : (D,) bool ndarray
        values : (number known,) ndarray

        Returns
        -------
        mixture : GaussianMixture
            Over all D entries; the known ones have their values and no variance.

        Notes
        -----
        Within each component, with the entries split into known y and others u::

            E[u | y]   = m_u + C_uy C_yy^-1 (y - m_y)
            Cov[u | y] = C_uu - C_uy C_yy^-1 C_yu

        and the weight of a component is multiplied by its density at y.
        """
        known, values = np.asarray(known, bool), np.asarray(values, np.float64)
        if known.shape != self.means.shape[1:] or values.shape != (known.sum(),):
            raise ValueError(f"known has shape {known.shape} and {known.sum()} entries, values "
                             f"shape {values.shape}: ({self.means.shape[1]},) and one value a "
                             "known entry are needed")
        C, means = self.covariances, np.array(self.means)
        logs = np.log(self.weights)
        new = np.zeros_like(C)
        for k in range(len(logs)):
            yy, uy = C[k][np.ix_(known, known)], C[k][np.ix_(~known, known)]
            gain = np.linalg.solve(yy, uy.T).T                        # C_uy C_yy^-1
            apart = values - self.means[k, known]
            means[k, known], means[k, ~known] = values, self.means[k, ~known] + gain @ apart
            new[k][np.ix_(~known, ~known)] = C[k][np.ix_(~known, ~known)] - gain @ uy.T
            _, log_det = np.linalg.slogdet(2 * pi * yy)
            logs[k] -= (log_det + apart @ np.linalg.solve(yy, apart)) / 2
        keep = logs > logs.max() - 700                                # the others weigh nothing
        labels = [own for own, kept in zip(self.labels, keep, strict=True) if kept]
        return GaussianMixture(means[keep], new[keep], np.exp(logs[keep] - logs.max()), labels)

    # ---- the flow ----

    def flow(self, x, t, s):
        """Carry samples along the probability flow from level `t` to level `s`, up or down.

        Parameters
        ----------
        x : (B, ...) ndarray
            Samples at level `t`.
        t, s : Level
            Both with signal; noise may be 0.

        Returns
        -------
        x_s : (B, ...) float64 ndarray
            For one Gaussian the closed form; else integrated with relative errors near 1e-11.

        Notes
        -----
        With x_bar = x / signal and sigma = noise / signal the flow is d x_bar / d sigma = eps.
        One Gaussian: on each axis of its covariance, the deviation from the mean scales like the
        standard deviation sqrt(e + sigma^2).

        References
        ----------
        .. [1] arXiv:2206.00364, Eq. 4 (the flow).
        """
        flat = np.asarray(x, np.float64).reshape(len(x), -1) / t.signal
        start, end = t.noise / t.signal, s.noise / s.signal
        if len(self.weights) == 1:
            U, e = self.U[0], self.e[0]
            stretch = np.sqrt((e + end**2) / (e + start**2))
            moved = self.means[0] + (flat - self.means[0]) @ U * stretch @ U.T
        else:
            moved = self._integrate(flat, start, end)
        return (s.signal * moved).reshape(x.shape)

    def _integrate(self, flat, start, end):
        """Solve d x_bar / d sigma = eps, the variable being asinh(sigma): it steps evenly."""
        from scipy.integrate import solve_ivp
        if start == end:
            return flat

        def slope(u, x):
            sigma = np.sinh(u)
            _, eps = self(x.reshape(flat.shape), Level(0.0, 1.0, float(sigma)))
            return (np.cosh(u) * eps).ravel()
        solved = solve_ivp(slope, np.arcsinh([start, end]), flat.ravel(), "DOP853",
                           rtol=1e-12, atol=1e-12, t_eval=np.arcsinh([end]))
        return solved.y[:, -1].reshape(flat.shape)

    # ---- inside ----

    def _centred(self, x_t, t):
        """Deviations from each component's mean on its own axes (B, K, D), and variances (K, D)."""
        D = self.means.shape[1]
        if prod(x_t.shape[1:]) != D:
            raise ValueError(f"x_t has shape {x_t.shape}, D = {D} entries a sample are needed")
        flat = np.asarray(x_t, np.float64).reshape(len(x_t), 1, D)
        z = np.einsum("bki,kij->bkj", flat - t.signal * self.means, self.U)
        variance = t.signal**2 * self.e + t.noise**2
        return z, variance

    def _log_parts(self, x_t, t):
        """Log of weight times density of each component, (B, K)."""
        z, variance = self._centred(x_t, t)
        log_det = np.log(2 * pi * variance).sum(axis=1)               # (K,)
        return np.log(self.weights) - (log_det + (z**2 / variance).sum(axis=2)) / 2
