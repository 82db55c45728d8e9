"""Workloads timed side by side with PyTorch: ``tinydiff bench cpu``.

Two processes take turns: `worker` runs in each, with `tinydiff_side` in one and, perhaps under
another Python, `torch_side` in the other.  The `referee` hands both the same `workloads`,
compares what they compute, and only then times them; `report` keeps the figures.
"""
from tinydiff.bench.cpu import LETTERS, Results, run
from tinydiff.bench.report import Record, table

__all__ = ["LETTERS", "Record", "Results", "run", "table"]
