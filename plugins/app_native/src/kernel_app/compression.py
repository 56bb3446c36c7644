"""Compression of message bodies and results, with a bound on what decompression may produce.

MIME types and aliases of wire-protocol §8. A body compressed as "gzip" is a zlib stream, not a gzip file. brotli and,
before Python 3.14, zstd need the packages that kombu uses for them: `pip install brotli`, `pip install backports.zstd`.
"""

from __future__ import annotations

import sys
from typing import Any

from .exceptions import ConfigError, DecodeError

GZIP, BZIP2, LZMA = "application/x-gzip", "application/x-bz2", "application/x-lzma"
BROTLI, ZSTD = "application/x-brotli", "application/zstd"

_ALIASES = {
    "gzip": GZIP,
    "zlib": GZIP,
    "bzip2": BZIP2,
    "bzip": BZIP2,
    "lzma": LZMA,
    "xz": LZMA,
    "brotli": BROTLI,
    "zstd": ZSTD,
    "zstandard": ZSTD,
}
_MIMES = frozenset(_ALIASES.values())

LZMA_MEMORY = 128 * 1024 * 1024
"""Bytes of dictionary an LZMA or Zstandard stream may ask for; their strongest presets need 65 MiB."""

RESULT_MARK = b"\0celery-compressed\0"
"""Opens a compressed result: the mark, the MIME type, NUL, the body (wire-protocol §8)."""


def mime_type(name: str) -> str:
    """The MIME type for an alias or a MIME type.

    :raises ConfigError: an unknown name.
    """
    mime = _ALIASES.get(name, name)
    if mime not in _MIMES:
        raise ConfigError(f"there is no compression {name!r} (known: {', '.join(sorted(_ALIASES))})")
    return mime


def compress(body: bytes, mime: str) -> bytes:
    """:raises ConfigError: the package for this compression is not installed."""
    if mime == GZIP:
        import zlib

        return zlib.compress(body)
    if mime == BZIP2:
        import bz2

        return bz2.compress(body)
    if mime == LZMA:
        import lzma

        return lzma.compress(body)
    if mime == BROTLI:
        compressed: bytes = _package("brotli", "brotli").compress(body)
    else:
        compressed = _zstd().compress(body)
    return compressed


def decompress(body: bytes, mime: str, limit: int) -> bytes:
    """Decompress, producing at most `limit` bytes.

    :raises DecodeError: unknown compression or its package is not installed, broken data, or more than `limit` bytes.
    """
    mime = _ALIASES.get(mime, mime)
    if mime not in _MIMES:
        raise DecodeError("the compression is not known")
    try:
        text = _bounded(body, mime, limit + 1)
    except (DecodeError, MemoryError):
        raise
    except ConfigError as missing:  # whoever sent this chose the compression: it is no mistake of the reader
        raise DecodeError(str(missing)) from None
    except Exception as error:  # each library has error classes of its own
        raise DecodeError(f"cannot be decompressed as {mime}: {type(error).__name__}") from error
    if len(text) > limit:
        raise DecodeError(f"larger than {limit} bytes when decompressed")
    return text


def _bounded(body: bytes, mime: str, most: int) -> bytes:
    if mime == BROTLI:
        # Without a bound on its output one call could produce gigabytes: older packages have none and are refused.
        stream = _package("brotli", "brotli").Decompressor()
        try:
            text: bytes = stream.process(body, output_buffer_limit=most)
        except TypeError:
            raise DecodeError("the installed brotli package cannot bound its output: needs brotli 1.2") from None
        if len(text) < most and not stream.is_finished():
            raise DecodeError("the compressed data ends early")
        return text
    decompressor: Any
    if mime == GZIP:
        import zlib

        decompressor = zlib.decompressobj()
    elif mime == BZIP2:
        import bz2

        decompressor = bz2.BZ2Decompressor()
    elif mime == ZSTD:
        zstd = _zstd()
        options = {zstd.DecompressionParameter.window_log_max: LZMA_MEMORY.bit_length() - 1}
        decompressor = zstd.ZstdDecompressor(options=options)
    else:
        import lzma

        decompressor = lzma.LZMADecompressor(memlimit=LZMA_MEMORY)
    text = decompressor.decompress(body, most)
    if len(text) < most and not decompressor.eof:
        raise DecodeError("the compressed data ends early")
    return text


def unwrap_result(payload: bytes, limit: int) -> bytes:
    """A stored result without its compression; one that is not compressed comes back as it is.

    :raises DecodeError: see `decompress`.
    """
    if not payload.startswith(RESULT_MARK):
        return payload
    mime, found, body = payload[len(RESULT_MARK) :].partition(b"\0")
    if not found:
        raise DecodeError("a compressed result without its type")
    return decompress(body, mime.decode("latin-1"), limit)


def wrap_result(payload: bytes, mime: str) -> bytes:
    """The inverse of `unwrap_result`."""
    return b"".join((RESULT_MARK, mime.encode(), b"\0", compress(payload, mime)))


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        return _package("compression.zstd", "")
    return _package("backports.zstd", "backports.zstd")


def _package(module: str, distribution: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(f"this compression needs a package: pip install {distribution}") from None
