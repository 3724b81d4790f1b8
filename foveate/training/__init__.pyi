from .cache import FeatureCache as FeatureCache
from .loop import Fit as Fit
from .loop import fit as fit
from .metrics import Diverged as Diverged
from .metrics import Evaluation as Evaluation
from .metrics import evaluate as evaluate
from .recipe import Recipe as Recipe
