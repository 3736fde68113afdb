"""Analyse moments: `python jobs/analyze.py TARGET [--what ...]`, also as a Ray job."""

import sys

from seal_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "analyze")
    main()
