from .curation import Curation as Curation
from .datm import DATM as DATM
from .prune_and_combine import PruneAndCombine as PruneAndCombine
