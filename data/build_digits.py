"""Write digits.npz: the 8 x 8 handwritten digits that scikit-learn carries.

    pip install scikit-learn
    python data/build_digits.py [--out data/digits.npz]

``images`` is (1797, 8, 8) uint8 with values 0..16, ``labels`` (1797,) uint8; nothing is lost.
"""
import argparse
import sys
from pathlib import Path

import numpy as np


def main():
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "digits.npz")
    options = parser.parse_args()
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        print("build_digits: error: scikit-learn is missing: pip install scikit-learn",
              file=sys.stderr)
        return 2
    digits = load_digits()
    np.savez_compressed(options.out, images=digits.images.astype(np.uint8),
                        labels=digits.target.astype(np.uint8))
    print(f"{options.out}: {len(digits.target)} pictures, {options.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
