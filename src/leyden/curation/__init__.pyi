from .curation import Curation as Curation
from .datm import DATM as DATM
from .gais import GAIS as GAIS
from .prune_and_combine import PruneAndCombine as PruneAndCombine
