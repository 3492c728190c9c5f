"""Reproducible draws: numbers in [0, 1) from the hash of an id, the same on every machine."""

from __future__ import annotations

import hashlib


def hash_fraction(data: bytes, *, digest_size: int = 6, salt: bytes = b"") -> float:
    """Return an evenly distributed number in [0, 1) that depends on `data` and `salt` alone.

    Args:
        data: the key of the draw, such as an id.
        digest_size: bytes of the BLAKE2b digest. Stored splits and draws depend on it: never change it for a caller.
        salt: separates the draws of different callers, and of different seeds; at most 16 bytes.
    """
    digest = hashlib.blake2b(data, digest_size=digest_size, salt=salt).digest()
    return int.from_bytes(digest) / (1 << 8 * digest_size)


def family_fraction(family: int, *, digest_size: int = 6, salt: bytes = b"") -> float:
    """Return the `hash_fraction` of a family's number, a signed 64-bit integer.

    The number itself is the smallest digest of the family's products, so it is not evenly distributed.
    """
    return hash_fraction(family.to_bytes(8, signed=True), digest_size=digest_size, salt=salt)
