"""`python -m seal_ray`: the command line.

It is also what a job of a cluster runs, by whatever `python` its Ray was started with: what that one lacks is
said first, and by a Python that is too old as well.
"""

import sys
from importlib.util import find_spec

lacking = [name for name in ("pydantic", "ray", "torch", "typer") if find_spec(name) is None]
if sys.version_info < (3, 11):  # noqa: UP036 - whatever python a host has
    lacking.insert(0, "Python 3.11 or newer")
if lacking:
    sys.exit(
        f"error: {sys.executable} (Python {sys.version.split()[0]}) cannot run seal_ray, it lacks "
        f"{', '.join(lacking)}: use the Python of an environment that has seal-ray; on a cluster start Ray "
        "on every host from one that is activated, such as `. .venv/bin/activate && ray start ...`"
    )

from seal_ray.cli import main  # noqa: E402

main()
