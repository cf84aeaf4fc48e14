from .pgd import pgd as pgd
