"""Training methods, one small file each, in the order in which they are listed. To add one: write its file,
with the decorator `method`, and import it here; or keep it in a file of your own, named by `plugins:`.
"""

# isort: off
from seal_ray.methods.base import LEARN as LEARN
from seal_ray.methods.base import METHODS as METHODS
from seal_ray.methods.base import Method as Method
from seal_ray.methods.base import learn as learn
from seal_ray.methods.base import method as method
from seal_ray.methods.normal import Normal as Normal
from seal_ray.methods.seal import Seal as Seal
from seal_ray.methods.llf import Llf as Llf
from seal_ray.methods.sam import SharpnessAware as SharpnessAware
from seal_ray.methods.asam import AdaptiveSharpnessAware as AdaptiveSharpnessAware
from seal_ray.methods.gsam import SurrogateGap as SurrogateGap
from seal_ray.methods.ban import Ban as Ban
from seal_ray.methods.dsd import Dsd as Dsd
from seal_ray.methods.ke import Ke as Ke
from seal_ray.methods.rifle import Rifle as Rifle
from seal_ray.methods.zap import Zap as Zap
from seal_ray.methods.shrink_perturb import ShrinkPerturb as ShrinkPerturb
from seal_ray.methods.layerwise import Layerwise as Layerwise
from seal_ray.methods.dnr import Dnr as Dnr
from seal_ray.methods.swr import Swr as Swr
from seal_ray.methods.redo import Redo as Redo
from seal_ray.methods.dash import Dash as Dash
from seal_ray.methods.cold import Cold as Cold
