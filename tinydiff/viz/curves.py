"""Curves: how a training went, and what a noise schedule does over time.

Matplotlib is imported when the first curve is drawn, and draws off screen: no window, no
global state, on any machine.
"""
import csv
from pathlib import Path

import numpy as np

# Distinct for colour-blind readers too: M. Okabe and K. Ito, "Color Universal Design", 2008.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")


def training_curve(log_csv, out=None, window=None):
    """Plot the loss and the learning rate of a run over its steps, or of several legs in a row.

    Parameters
    ----------
    log_csv : path-like or list of path-like
        A run's log.csv, with the columns step, loss and lr; or one of each leg, the first first.
    out : path-like, optional
        Also write the plot there; the name's ending decides the format.
    window : int, optional
        Steps in the running mean of the strong line; by default a fiftieth of the longest leg.

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such log, or it is empty, damaged or lacks a column.
    """
    legs = [read_log(path) for path in
            (log_csv if isinstance(log_csv, (list, tuple)) else [log_csv])]
    window = window or max(1, max(len(leg["loss"]) for leg in legs) // 50)
    smooth = [running_mean(leg["loss"], window) for leg in legs]

    figure, (top, bottom) = _figure(2, 1, size=(8, 5), sharex=True, height_ratios=(3, 1))
    before = 0                                                        # steps of the legs before
    for k, (leg, mean) in enumerate(zip(legs, smooth, strict=True)):
        steps, colour = before + leg["step"], COLOURS[2 * k % len(COLOURS)]
        name = f"mean over {window} steps" if len(legs) == 1 else f"leg {k + 1}, {window} steps"
        top.plot(steps, leg["loss"], color=colour, alpha=0.25, linewidth=0.8,
                 label="each step" if len(legs) == 1 else None)
        top.plot(steps, mean, color=colour, linewidth=2, label=name)
        bottom.plot(steps, leg["lr"], color=COLOURS[1], linewidth=2)
        before = steps[-1]
    top.set_yscale("log")
    every, means = (np.concatenate(parts) for parts in ([leg["loss"] for leg in legs], smooth))
    top.set_ylim(0.95 * every.min(), 1.05 * max(means.max(), np.quantile(every, 0.99)))
    _plain_ticks(top)
    top.set_ylabel("loss")
    top.legend(frameon=False)
    bottom.set_ylim(bottom=0)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    figure.align_ylabels()
    return _finish(figure, out)


def schedule_curves(schedules, out=None):
    """Plot what is left of the picture, what has come in of the noise, and their ratio.

    Parameters
    ----------
    schedules : dict of str to Schedule
        The names are the legend's.
    out : path-like, optional
        Also write the plot there.

    Returns
    -------
    PIL.Image.Image
        Three panels over t / T, so that schedules of different T compare: signal, noise and
        the log signal-to-noise ratio, ``log(signal^2 / noise^2) = 2 lam``.

    Raises
    ------
    ValueError
        If there are no schedules.
    """
    if not schedules:
        raise ValueError("schedule_curves needs at least one schedule: {name: Schedule}")
    figure, panels = _figure(1, 3, size=(11, 3.4))
    for i, (name, schedule) in enumerate(schedules.items()):
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)],
                 "linewidth": 2, "label": name}
        alpha_bar = schedule.alpha_bar                                # (T + 1,)
        u = np.arange(schedule.T + 1) / schedule.T                    # (T + 1,)
        inside = (alpha_bar > 0) & (alpha_bar < 1)          # the log of the others is infinite
        a = alpha_bar[inside]
        for panel, x, y in zip(panels, (u, u, u[inside]),
                               (alpha_bar**0.5, (1 - alpha_bar) ** 0.5, np.log(a / (1 - a))),
                               strict=True):
            panel.plot(x, y, **style)
    for panel, title in zip(panels, ("signal", "noise", "log SNR"), strict=True):
        panel.set_title(title)
        panel.set_xlabel("t / T")
    panels[2].axhline(0, color="0.6", linewidth=0.8, zorder=0)        # as much signal as noise
    panels[2].set_ylim(-16, 12)                # a cosine falls to -20 within its last step or two
    panels[1].legend(frameon=False, loc="lower right")
    return _finish(figure, out)


def read_log(log_csv):
    """Read a run's log.csv.

    Returns
    -------
    log : dict of str to (N,) float64 ndarray
        By column.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file and what is wrong with it.
    """
    path = Path(log_csv)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such log; a run writes one, RUN/log.csv")
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    missing = [name for name in ("step", "loss", "lr") if name not in header]
    if missing:
        raise ValueError(f"{path}: there is no column {missing[0]!r}")
    if not rows:
        raise ValueError(f"{path}: no step is logged yet")
    try:
        columns = np.array(rows, np.float64).T                        # (columns, N)
        return dict(zip(header, columns, strict=True))
    except ValueError:
        raise ValueError(f"{path}: not a table of numbers with {len(header)} columns") from None


def running_mean(y, window):
    """Average each entry with its neighbours; at the ends, with those that there are.

    Parameters
    ----------
    y : (N,) ndarray
    window : int
        Neighbours in all, from 1; cut to N.

    Returns
    -------
    (N,) ndarray

    Examples
    --------
    >>> running_mean(np.array([0.0, 3.0, 6.0, 9.0]), 3)
    array([1.5, 3. , 6. , 7.5])
    """
    box = np.ones(min(window, len(y)))
    return np.convolve(y, box, "same") / np.convolve(np.ones_like(y), box, "same")


# ---- figures ----


def _figure(rows, columns, size, **layout):
    """Make a figure that belongs to no window, and its panels without the upper right frame."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    ratios = {k: layout.pop(k) for k in ("height_ratios",) if k in layout}
    panels = figure.subplots(rows, columns, gridspec_kw=ratios, **layout)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
    return figure, panels


def _plain_ticks(panel):
    """Write a logarithmic axis in plain numbers: 0.05, not 5 x 10^-2."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _finish(figure, out):
    """Write the figure to `out`, if that is given; return it as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    if out is not None:
        figure.savefig(out)
    return Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB")
