"""Rules as a user would write them, and ones that are wrong."""


def soft_clip(x, softness: float = 1.0):
    """1 / (1 + softness (log rho)^2)"""
    return 1 / (1 + softness * x.log_ratio.square())


def cubed(x, scale: float):
    """scale rho^3"""
    return scale * x.ratio**3


def pull(x, strength: float = 0.5):
    """strength log rho"""
    return strength * x.log_ratio.square() / 2, strength * x.log_ratio


def of_another_shape(x):
    return x.log_ratio.sum()


def not_finite(x):
    return x.log_ratio / 0


def raising(x):
    raise KeyError("threshold")


def with_anything(x, **others):
    return x.ratio
