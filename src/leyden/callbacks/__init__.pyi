from .ema import EMA as EMA
from .exact_resume import ExactResume as ExactResume
from .last_checkpoint import LastCheckpoint as LastCheckpoint
from .progress_bar import ProgressBar as ProgressBar
