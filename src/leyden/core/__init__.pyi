from .batch import Batch as Batch
from .batch import Terms as Terms
from .batch import require_keys as require_keys
from .network import Network as Network
from .network import Outputs as Outputs
