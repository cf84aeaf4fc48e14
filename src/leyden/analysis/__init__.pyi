from .attention_entropy import attention_entropy as attention_entropy
from .attention_entropy import attention_entropy_bound as attention_entropy_bound
from .paired import PairedDifference as PairedDifference
from .paired import paired_difference as paired_difference
