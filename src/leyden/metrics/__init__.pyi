from .bits_per_byte import BitsPerByte as BitsPerByte
