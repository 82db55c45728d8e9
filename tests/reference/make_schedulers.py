"""Make tests/reference/schedulers.npz: walks of diffusers' schedulers on a stand-in network.

Run in an environment with torch and diffusers (written with 2.13.0 and 0.42.1)::

    python tests/reference/make_schedulers.py

The cases come from tests/scheduler_walks.py.  Per case the file holds the scheduler's sigmas,
timesteps, samples and noise, concatenated; ``faults`` names the cases in which it raises.
"""
import json
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from scheduler_walks import CASES, Walk, walk

FILE = Path(__file__).parent / "schedulers.npz"


def main():
    """Write the file."""
    import diffusers
    import torch

    warnings.simplefilter("ignore")
    walks = {case.name(): walk(case) for case in CASES}
    faults = {name: found for name, found in walks.items() if isinstance(found, str)}
    kept = {name: found for name, found in walks.items() if not isinstance(found, str)}
    arrays = {field: np.concatenate([getattr(found, field).ravel() for found in kept.values()])
              for field in Walk._fields}
    sizes = [[getattr(found, field).size for field in Walk._fields] for found in kept.values()]
    np.savez_compressed(FILE, **arrays, sizes=np.array(sizes), names=json.dumps(list(kept)),
                        faults=json.dumps(faults),
                        versions=json.dumps([torch.__version__, diffusers.__version__]))
    print(f"{FILE.name}: {len(kept)} walks, {len(faults)} faults, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
