from .ema import ema_decay as ema_decay
from .ema import ema_exponent_to_std as ema_exponent_to_std
from .ema import ema_std_to_exponent as ema_std_to_exponent
from .ema import ema_update_ as ema_update_
from .ema import posthoc_ema_coefficients as posthoc_ema_coefficients
from .ema import power_ema_decay as power_ema_decay
