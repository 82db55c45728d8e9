"""Schedules: from a time t to a noise level.  Three families, one currency (`Level`).

=============  ==================  ==================  ============================================
family         signal              noise               time t that the level carries
=============  ==================  ==================  ============================================
`Schedule`     sqrt(alpha_bar_t)   sqrt(1-alpha_bar)   row of the table, 0 ... T; fractions between
`EDM`          1                   sigma               sigma itself, 0 ... sigma_max
`Flow`         1 - sigma           sigma               T sigma, 0 ... T
=============  ==================  ==================  ============================================

Each reads a level at a time (``level(t)``) and at a half log-SNR (``at_lam(lam)``);
`tinydiff.grids` chooses which levels a sampler visits.
"""
from tinydiff.schedules.preserving import Schedule
from tinydiff.schedules.straight import EDM, Flow
from tinydiff.schedules.tables import (
    TABLES,
    cosine_alpha_bar,
    cumulative,
    linear_beta,
    scaled_linear_beta,
    sigmoid_alpha_bar,
    sigmoid_beta,
    zero_terminal_snr,
)

__all__ = ["EDM", "TABLES", "Flow", "Schedule", "cosine_alpha_bar", "cumulative", "linear_beta",
           "scaled_linear_beta", "sigmoid_alpha_bar", "sigmoid_beta", "zero_terminal_snr"]
