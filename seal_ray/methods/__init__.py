"""Training methods, one small file each. To add one: write its file and list it here."""

from seal_ray.methods.ban import Ban
from seal_ray.methods.base import Method
from seal_ray.methods.dsd import Dsd
from seal_ray.methods.ke import Ke
from seal_ray.methods.llf import Llf
from seal_ray.methods.normal import Normal
from seal_ray.methods.sam import Sam
from seal_ray.methods.seal import Seal

METHODS: dict[str, type[Method]] = {method.name: method for method in (Normal, Seal, Llf, Sam, Ban, Dsd, Ke)}
"""Every method by the name that recipes use."""

__all__ = ["METHODS", "Method"]
