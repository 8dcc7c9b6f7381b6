"""`python -m gancore` is `gan`."""

import sys

if not sys.flags.safe_path:
    sys.path[:] = sys.path[1:]  # the current folder, whose random.py would be Python's

from gancore.cli import main

if __name__ == "__main__":
    main()
