"""Keys: what a permutation follows from, and a digest that tells a wrong one."""

import functools
import hashlib
import hmac

import numpy as np

from keras_dlopt import checks

# Of a passphrase, so that guessing is slow: about 16 MiB and a twentieth of a second.
_SCRYPT = {"n": 2**14, "r": 8, "p": 1, "salt": b"keras_dlopt.data.obfuscate"}
_SHORTEST_TEXT, _SHORTEST_BYTES = 8, 16


def secret(key: str | bytes) -> bytes:
    """32 bytes that follow from a key.

    Raises:
        ConfigError: for keys that are soon guessed, and anything that is no key.
    """
    if isinstance(key, str) and len(key) >= _SHORTEST_TEXT:
        return _stretched(key)
    if isinstance(key, bytes) and len(key) >= _SHORTEST_BYTES:
        return hashlib.sha256(key).digest()
    shown = type(key).__name__
    if isinstance(key, str | bytes):
        shown += f" of length {len(key)}"  # the key itself is nobody's business
    raise checks.refused(
        shown,
        name="key",
        wanted=f"a text of {_SHORTEST_TEXT} characters or more, or {_SHORTEST_BYTES} "
        "bytes or more",
        hint="Draw one with secrets.token_bytes(32), and keep it apart from the data.",
    )


@functools.lru_cache(maxsize=16)
def _stretched(key: str) -> bytes:
    return hashlib.scrypt(key.encode(), dklen=32, **_SCRYPT)  # type: ignore[arg-type]


def rng(secret: bytes, purpose: str) -> np.random.Generator:
    """The generator of one purpose."""
    drawn = hmac.digest(secret, purpose.encode(), "sha256")
    return np.random.default_rng(np.frombuffer(drawn, "uint32"))


def digest(secret: bytes, purpose: str) -> str:
    """16 hexadecimal digits that only this key gives; they do not lead back to it."""
    return hmac.digest(secret, f"digest {purpose}".encode(), "sha256").hex()[:16]
