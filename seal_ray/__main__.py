"""`python -m seal_ray`: the command line."""

from seal_ray.cli import main

main()
