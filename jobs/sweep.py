"""Train a sweep: `python jobs/sweep.py SWEEP.yaml [--set field=value ...]`, also as a Ray job."""

import sys

from seal_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "sweep")
    main()
