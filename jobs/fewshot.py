"""Judge features by few-shot episodes: `python jobs/fewshot.py TARGET --on DATA [...]`, also as a Ray job."""

import sys

from seal_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "fewshot")
    main()
