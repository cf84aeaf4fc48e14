from .checkpoint_io import AtomicCheckpointIO as AtomicCheckpointIO
from .checkpoint_io import DamagedCheckpointError as DamagedCheckpointError
from .csv_logger import CSVLogger as CSVLogger
from .lazy_checkpoint_io import LazyAsyncCheckpointIO as LazyAsyncCheckpointIO
from .wandb_logger import WandbLogger as WandbLogger
