from .curation import Curation as Curation
from .prune_and_combine import PruneAndCombine as PruneAndCombine
