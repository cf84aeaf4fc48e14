from .attention_entropy import attention_entropy as attention_entropy
from .attention_entropy import attention_entropy_bound as attention_entropy_bound
from .domain_accuracy import domain_accuracy as domain_accuracy
from .el2n import el2n_scores as el2n_scores
from .essential_sparsity import essential_sparsity as essential_sparsity
from .lr_sensitivity import lr_sensitivity as lr_sensitivity
from .paired import PairedDifference as PairedDifference
from .paired import paired_difference as paired_difference
