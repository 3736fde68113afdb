"""Training methods, one small file each, in the order in which they are listed. To add one: write its file,
with the decorator `method`, and import it here; or keep it in a file of your own, named by `plugins:`.
"""

# isort: off
from seal_ray.methods.base import LEARN, METHODS, Method, learn, method
from seal_ray.methods.normal import Normal
from seal_ray.methods.seal import Seal
from seal_ray.methods.llf import Llf
from seal_ray.methods.sam import SharpnessAware
from seal_ray.methods.ban import Ban
from seal_ray.methods.dsd import Dsd
from seal_ray.methods.ke import Ke

__all__ = [
    "LEARN",
    "METHODS",
    "Ban",
    "Dsd",
    "Ke",
    "Llf",
    "Method",
    "Normal",
    "Seal",
    "SharpnessAware",
    "learn",
    "method",
]
