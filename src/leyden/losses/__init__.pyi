from .elr import ELRLoss as ELRLoss
from .elr import elr_loss as elr_loss
from .elr import elr_update as elr_update
from .reduction import reduce_loss as reduce_loss
from .saf import TrajectoryLoss as TrajectoryLoss
from .saf import trajectory_loss as trajectory_loss
from .z_loss import ZLoss as ZLoss
from .z_loss import z_loss as z_loss
