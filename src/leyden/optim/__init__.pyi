from .warmup_cosine import WarmupCosine as WarmupCosine
