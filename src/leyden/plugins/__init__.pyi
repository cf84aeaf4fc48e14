from .checkpoint_io import AtomicCheckpointIO as AtomicCheckpointIO
from .checkpoint_io import DamagedCheckpointError as DamagedCheckpointError
from .checkpoint_io import read_checkpoint as read_checkpoint
from .csv_logger import CSVLogger as CSVLogger
from .fsdp2 import FSDP2Strategy as FSDP2Strategy
from .lazy_checkpoint_io import LazyAsyncCheckpointIO as LazyAsyncCheckpointIO
from .wandb_logger import WandbLogger as WandbLogger
