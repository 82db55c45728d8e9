"""Pictures of what happens inside: strips of noise and denoising, curves.

Each function takes the named tuples and tables that the package makes, and returns a picture.
"""
from tinydiff.viz.attention import word_strip
from tinydiff.viz.curves import schedule_curves, training_curve
from tinydiff.viz.strips import denoising_strip, forward_strip

__all__ = ["denoising_strip", "forward_strip", "schedule_curves", "training_curve", "word_strip"]
