"""Train one run: `python jobs/train.py RUN.yaml [--set field=value ...]`, also as a Ray job."""

import sys

from seal_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
