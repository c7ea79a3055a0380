"""Random numbers by counter: the n-th number of a stream is a hash of (stream, n), computed for all rows at once.

Each sample has a stream of its own, so what it draws does not depend on which samples share its batch, when it
joined, or what was sampled before. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
"""

import hashlib

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def stream_keys(samples: int, *identity: object) -> Tensor:
    """Keys int64 [samples] of the streams of one request, given what identifies the request."""
    digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).digest()
    return _mix(int.from_bytes(digest, "little", signed=True) + _GOLDEN * torch.arange(1, samples + 1))


def uniform(keys: Tensor, counters: Tensor) -> Tensor:
    """Number `counters[i]` of stream `keys[i]`, uniform on [0, 1), float64 (float32 where the device has no other)."""
    bits = _mix(keys + _GOLDEN * (counters + 1))
    if keys.device.type == "mps":
        return _shift(bits, 41).float() * 2.0**-23
    return _shift(bits, 12).double() * 2.0**-52


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right; torch's own carries the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)
