from .ema_teacher import EMATeacher as EMATeacher
from .ghost_batch_norm import GhostBatchNorm1d as GhostBatchNorm1d
from .ghost_batch_norm import GhostBatchNorm2d as GhostBatchNorm2d
from .ghost_batch_norm import GhostBatchNorm3d as GhostBatchNorm3d
from .ghost_batch_norm import convert_ghost_batch_norm as convert_ghost_batch_norm
