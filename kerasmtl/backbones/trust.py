"""Whose graphs may run: a model file brings foreign ones, and Keras' safe mode refuses them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import keras

from kerasmtl.backbones.portable import runs_already
from kerasmtl.embedded import EXTRACTORS, extractor_folder
from kerasmtl.modules.content import content_sha256

_TRUSTED: ContextVar[frozenset[str]] = ContextVar("kerasmtl_trusted", default=frozenset())


@contextmanager
def trusting(hashes: Iterable[str]) -> Iterator[None]:
    """Within, modules with these SHA-256 sums run even in safe mode."""
    token = _TRUSTED.set(_TRUSTED.get() | frozenset(hashes))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def refuse_in_safe_mode(handle: str, sha256: str) -> None:
    """Raise if Keras is loading a file in safe mode and nobody vouches for the module.

    Raises:
        ValueError: says how to trust the file knowingly.
    """
    if not _in_safe_mode() or sha256 in _TRUSTED.get() or _is_embedded(sha256):
        return
    if runs_already(sha256):  # Keras is in safe mode while it clones a nested model, too
        return
    raise ValueError(
        f"`safe_mode` is on, and this file runs the graph of a foreign SavedModel: {handle!r}, "
        f"SHA-256 {sha256}. A graph can read and write files. If you trust where the file comes "
        "from, call kerasmtl.load_model(path, safe_mode=False) or keras.models.load_model(path, "
        "safe_mode=False), or keras.config.enable_unsafe_deserialization() before; if you have "
        "the module yourself, kerasmtl.load_model(path, trust='its handle or sha256:…'). On the "
        "command line: --trust."
    )


def _is_embedded(sha256: str) -> bool:
    return any(content_sha256(extractor_folder(name)) == sha256 for name in EXTRACTORS)


def _in_safe_mode() -> bool:
    """Whether Keras is loading a file in safe mode: then, and only then, it refuses a lambda."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of every lambda
        harmless = keras.saving.serialize_keras_object(lambda: None)
        try:
            keras.saving.deserialize_keras_object(harmless, safe_mode=False)
        except ValueError:
            return True
    return False
