from .checkpoint_io import AtomicCheckpointIO as AtomicCheckpointIO
from .checkpoint_io import DamagedCheckpointError as DamagedCheckpointError
from .csv_logger import CSVLogger as CSVLogger
from .replace_file import replace_file as replace_file
from .wandb_logger import WandbLogger as WandbLogger
