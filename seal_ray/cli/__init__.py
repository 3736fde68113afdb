"""The command line: parse, call, print."""

from seal_ray.cli.run import app, main

__all__ = ["app", "main"]
