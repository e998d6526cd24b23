"""Write the prostate phantoms without the `iopfl` command: `python generate.py DIR`."""

import argparse
from pathlib import Path

from iopfl.datasets import write_phantoms

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="to be made; may exist, if empty")
    parser.add_argument("--cases", type=int, default=10, help="cases per site (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same volumes (default: 0)")
    arguments = parser.parse_args()
    print(write_phantoms(arguments.folder, cases=arguments.cases, seed=arguments.seed))
