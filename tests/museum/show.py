"""Draw an exhibit: what is right above, what the bug makes of it below."""
import matplotlib.pyplot as plt
import numpy as np

from museum import EXHIBITS, Curve, Pictures
from tinydiff.pictures import sheet


def visit(name):
    """Make both pictures of an exhibit, draw them, and return the two errors, right and wrong."""
    exhibit = EXHIBITS[name]
    right, small = exhibit.make()
    with exhibit.switch():
        wrong, large = exhibit.make()
    draw = (pictures if isinstance(right, Pictures)
            else curves if isinstance(right, Curve) else points)
    draw(right, wrong)
    plt.tight_layout()
    plt.show()
    plt.close()
    print(f"{exhibit.title}: error {small:.2g} without the bug, {large:.2g} with it")
    return small, large


def pictures(right, wrong):
    """Two rows; a third, of the difference made visible, where the eye might miss it."""
    black = np.nan_to_num(wrong.x, nan=-1.0)
    rows = {"right": right.x, "wrong": black}
    apart = black - right.x
    if 0 < np.sqrt((apart**2).mean()) < 0.15:
        factor = max(1.0, float(f"{0.9 / np.abs(apart).max():.0e}"))
        rows[f"difference\ntimes {factor:g}"] = factor * apart
    _, axes = plt.subplots(len(rows), 1, figsize=(0.9 * len(right.x) + 1, len(rows)),
                           squeeze=False)
    for axis, (name, row) in zip(axes[:, 0], rows.items(), strict=True):
        axis.imshow(sheet(row, len(row), scale=2))
        axis.set_ylabel(name, fontsize=8)
    bare(axes)


def points(right, wrong):
    _, axes = plt.subplots(1, 2, figsize=(5.2, 2.8))
    reach = 1.15 * np.abs(right.truth).max()
    for axis, name, made in zip(axes, ("right", "wrong"), (right, wrong), strict=True):
        axis.scatter(*right.truth.T, s=5, color="0.8")
        axis.scatter(*np.clip(made.x, -reach, reach).T, s=3, color="C3" if made is wrong else "C0")
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=name)
    bare(axes)


def curves(right, wrong):
    _, axis = plt.subplots(figsize=(4.2, 2.8))
    for name, made, mark in (("right", right, "o-C0"), ("wrong", wrong, "s-C3")):
        draw = axis.loglog if made.logarithmic else axis.plot
        draw(made.x, made.y, mark, markersize=4, label=f"{name}: {made.legend}")
    axis.set(xlabel=right.axes[0], ylabel=right.axes[1])
    if right.logarithmic:
        axis.set(xticks=right.x, xticklabels=right.x)
        axis.minorticks_off()
    axis.legend(fontsize=8)


def bare(axes):
    for axis in np.ravel(axes):
        axis.set(xticks=[], yticks=[])
