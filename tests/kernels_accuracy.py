"""How exact a fast kernel must be; the rule stands beside the kernels, whose own checks use it."""
from tinydiff.kernels.accuracy import assert_as_accurate_as

__all__ = ["assert_as_accurate_as"]
