"""The truth: data whose denoiser, score, density and flow are known in closed form.

Any sampler runs on these with no network, and what it makes can be compared with what it should
have made.  For data drawn from a Gaussian mixture, the noisy data at a level are a mixture too::

    x0  ~  sum_k  w_k  N(m_k, C_k)
    x_t ~  sum_k  w_k  N(signal m_k, V_k),        V_k = signal^2 C_k + noise^2 I

    r_k              =  share of component k in the density at x_t
    E[eps | x_t]     =  noise  sum_k r_k V_k^-1 (x_t - signal m_k)             (-noise * score)
    E[x0  | x_t]     =  sum_k r_k (m_k + signal C_k V_k^-1 (x_t - signal m_k))

Samplers ask the best denoiser there is for this pair, so every error that is left is the
sampler's own.  A finite data set is the mixture of its pictures with C_k = 0: the denoiser that a
network would reach if it learnt its training data by heart.

H. Robbins, "An Empirical Bayes Approach to Statistics", 1956, for the score ("Tweedie's formula");
T. Karras et al., 2022, arXiv:2206.00364, App. B.3, for the finite data set.
"""
from tinydiff.oracle.finite import FiniteData
from tinydiff.oracle.guided import guided_oracle
from tinydiff.oracle.mixture import GaussianMixture

__all__ = ["FiniteData", "GaussianMixture", "guided_oracle"]
