from .ema_teacher import EMATeacher as EMATeacher
