"""A finite data set as the distribution: its best denoiser, and that of a part of it."""
import numpy as np


class FiniteData:
    """The data set itself as the distribution: E[x0 | x_t] is a weighted mean of its pictures.

    Parameters
    ----------
    pictures : (N, ...) ndarray
        All equally probable.
    labels : (N,) sequence, optional
        For `of_class`.

    References
    ----------
    .. [1] T. Karras et al., 2022, arXiv:2206.00364, Eq. 57, the ideal denoiser.

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> data = FiniteData(np.array([[-1.0], [1.0]]))
    >>> data(np.array([[5.0]]), Level(1.0, 0.6, 0.8))[0].round(3)
    array([[1.]])
    """

    def __init__(self, pictures, labels=None):
        self.pictures = np.asarray(pictures)
        if len(self.pictures) == 0:
            raise ValueError("a data set without pictures has no denoiser")
        self.labels = np.zeros(len(self.pictures)) if labels is None else np.asarray(labels)
        if len(self.labels) != len(self.pictures):
            raise ValueError(f"{len(self.labels)} labels for {len(self.pictures)} pictures")

    def __call__(self, x_t, t):
        """Return ``(x0_hat, eps_hat)``, in the shape and dtype of `x_t`.

        Notes
        -----
        The weight of picture i is softmax over i of ``-||x_t - signal x_i||^2 / (2 noise^2)``.
        """
        if t.noise == 0:
            return x_t / t.signal, 0.0 * x_t
        x0 = self.shares(x_t, t) @ self.pictures.reshape(len(self.pictures), -1)
        x0 = x0.reshape(x_t.shape).astype(x_t.dtype, copy=False)
        return x0, (x_t - t.signal * x0) / t.noise

    def shares(self, x_t, t):
        """How probable each picture is, having seen `x_t`: (B, N), rows add up to 1."""
        flat = np.asarray(x_t, np.float64).reshape(len(x_t), -1)
        data = t.signal * self.pictures.reshape(len(self.pictures), -1).astype(np.float64)
        apart = (flat**2).sum(axis=1)[:, None] - 2 * flat @ data.T + (data**2).sum(axis=1)
        logs = -apart / (2 * t.noise**2)
        weight = np.exp(logs - logs.max(axis=1, keepdims=True))
        return weight / weight.sum(axis=1, keepdims=True)

    def of_class(self, label):
        """Return the data set of the pictures that carry `label`."""
        keep = self.labels == label
        if not keep.any():
            raise ValueError(f"no picture has the label {label!r}, there are "
                             f"{sorted(set(self.labels.tolist()))}")
        return FiniteData(self.pictures[keep], self.labels[keep])

    def given(self, known, values, tolerance=1e-6):
        """Return the data set of the pictures that agree with `values` where `known` is True.

        Parameters
        ----------
        known : bool ndarray, the shape of a picture
        values : ndarray, the shape of a picture
            Read where `known` is True.
        tolerance : float, default 1e-6
            Largest difference that still agrees.

        Raises
        ------
        ValueError
            If a shape is wrong, or no picture agrees.
        """
        if known.shape != self.pictures.shape[1:] or values.shape != known.shape:
            raise ValueError(f"known {known.shape} and values {values.shape}: the shape of a "
                             f"picture, {self.pictures.shape[1:]}, is needed")
        apart = np.abs(np.where(known, self.pictures - values, 0.0)).reshape(len(self.pictures), -1)
        keep = apart.max(axis=1) <= tolerance
        if not keep.any():
            raise ValueError("no picture of the data set agrees with the known pixels")
        return FiniteData(self.pictures[keep], self.labels[keep])
