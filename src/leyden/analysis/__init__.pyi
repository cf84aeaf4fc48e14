from .paired import PairedDifference as PairedDifference
from .paired import paired_difference as paired_difference
