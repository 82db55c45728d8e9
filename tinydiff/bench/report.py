"""Figures of a measurement, the ratio of two sides, and the table of it all."""
from math import isfinite
from statistics import median
from typing import NamedTuple

TORCH = ("default", "channels_last")    # PyTorch's memory layouts
HEADERS = ("workload", "tinydiff", "PyTorch", "channels-last", "ratio to the better")


class Record(NamedTuple):
    """One row: what each contestant took.

    Attributes
    ----------
    letter, what : str
        The workload.
    unit : {"s", "bytes"}
    values : dict of str to list of float
        Of "tinydiff", "default" and "channels_last": one figure a round, in the order of the
        rounds, so figures of the same index were taken one after the other.
    difference : float or None
        How far the results of the two sides lay apart, as a share of the largest entry.
    note : str or None
        Why there are no figures, or no comparison.
    idle : float
        The largest share of a turn for which another process was busy; 0 is as it should be.
    """

    letter: str
    what: str
    unit: str
    values: dict
    difference: float | None = None
    note: str | None = None
    idle: float = 0.0

    @property
    def better(self):
        """PyTorch's layout with the smaller median, or None without PyTorch."""
        layouts = [layout for layout in TORCH if self.values.get(layout)]
        return min(layouts, key=lambda layout: median(self.values[layout]), default=None)

    @property
    def ratios(self):
        """Our figure over PyTorch's better layout's, round by round; empty without either."""
        if self.better is None or not self.values.get("tinydiff"):
            return []
        return [own / theirs for own, theirs in
                zip(self.values["tinydiff"], self.values[self.better], strict=False)]

    def to_json(self):
        """Return the row with its medians, as JSON takes it."""
        ratios = self.ratios
        known = self.difference is not None and isfinite(self.difference)
        return {**self._asdict(), "difference": self.difference if known else None,
                "median": {who: median(v) for who, v in self.values.items() if v},
                "better": self.better, "ratio": median(ratios) if ratios else None,
                "ratio_range": [min(ratios), max(ratios)] if ratios else None}


def amount(value, unit):
    """Write a figure with three digits and a fitting unit.

    Examples
    --------
    >>> amount(0.0123, "s"), amount(12.34, "s"), amount(0.0000456, "s"), amount(3 * 2**20, "bytes")
    ('12.3 ms', '12.3 s', '45.6 us', '3 MiB')
    """
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    for factor, name in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{_three_digits(value * factor)} {name}"
    return f"{_three_digits(value * 1e6)} us"


def _three_digits(x):
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def table(records):
    """Write the rows as a table in plain text.

    Parameters
    ----------
    records : iterable of Record

    Returns
    -------
    str

    Examples
    --------
    >>> print(table([Record("a", "a step", "s", {"tinydiff": [0.2, 0.3], "default": [0.4, 0.5]})]))
    workload    tinydiff  PyTorch  channels-last  ratio to the better
    (a) a step  250 ms    450 ms   -              0.55 (0.50-0.60)
    """
    rows = [HEADERS]
    for record in records:
        cells = [f"({record.letter}) {record.what}"]
        for who in ("tinydiff", *TORCH):
            values = record.values.get(who)
            cells.append(amount(median(values), record.unit) if values else "-")
        ratios = record.ratios
        cells.append(f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios
                     else record.note or "-")
        rows.append(cells)
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEADERS) - 1)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in
                                  zip(row, widths, strict=False)), row[-1]]) for row in rows)
