"""The options ``--device`` and ``--precision`` of every command that runs a network."""
import sys
from argparse import BooleanOptionalAction

from tinydiff.backends import device
from tinydiff.backends.precision import PRECISIONS, check, use_precision


def add_options(parser, lower):
    """Give an argument parser the two options.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    lower : str
        What makes the command need less memory, for the message when it runs out.
    """
    parser.add_argument("--device", choices=device.DEVICES, default="auto",
                        help="where it runs; auto: on a GPU if there is one (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32",
                        help="what a GPU's tensor cores multiply (default: %(default)s)")
    parser.add_argument("--graph", action=BooleanOptionalAction, default=True,
                        help="on a GPU: launch each step of the network as one CUDA graph (the "
                             "default there)")
    parser.set_defaults(lower=lower)


def start(args):
    """Settle where a command runs, and in which precision; `announce` says so where it surprises.

    Parameters
    ----------
    args : argparse.Namespace
        Its `device` and `precision`.

    Returns
    -------
    device : {"cpu", "cuda"}

    Raises
    ------
    ValueError
        If what was asked for cannot be had.
    """
    where, why = device.choose(args.device)
    check(args.precision, where)
    use_precision(args.precision)
    args.surprise = why and f"running on the CPU: {why}"
    return where


def announce(args):
    """Say once, on stderr, where the command runs if that could be a surprise.

    To be called when the work has begun: an error is then a single line.
    """
    if args.surprise:
        print(args.surprise, file=sys.stderr)
        args.surprise = None


def memory_fault(fault, args):
    """Return the line that says what to lower, or None if `fault` is not that memory ran out."""
    lower = getattr(args, "lower", "the number of pictures")
    if isinstance(fault, MemoryError) or "cudaErrorMemoryAllocation" in str(fault):
        return device.out_of_memory(fault, lower)
    return None
