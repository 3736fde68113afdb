"""Judge features by linear probes: `python jobs/transfer.py TARGET --to DATA [...]`, also as a Ray job."""

import sys

from seal_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "transfer")
    main()
