from .consistency import consistency_sample as consistency_sample
from .gradient_ascent import gradient_ascent as gradient_ascent
from .pgd import pgd as pgd
