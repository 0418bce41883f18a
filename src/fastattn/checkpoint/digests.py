"""Compares the SHA-256 of weight files with expected digests."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastattn.checks import quote
from fastattn.errors import DTypeError, InputError
from fastattn.files import FileSet, SourceFile, malformed, read_at
from fastattn.jsonfile import CONFIG_LIMITS, read_bounded

SUMS_NAME = "SHA256SUMS"
_READ_BYTES = 16 << 20
_DIGEST = re.compile("[0-9a-fA-F]{64}")


def check_verify(verify: object) -> Mapping[str, str] | None:
    """Return the digests of a `verify` argument, or None for "sha256". Raises DTypeError, InputError."""
    if isinstance(verify, str):
        if verify != "sha256":
            raise InputError(f'verify: expected None, "sha256" or digests by file name, got {quote(verify)}')
        return None
    if not isinstance(verify, Mapping):
        raise DTypeError(
            f'verify: expected None, "sha256" or digests by file name, got {type(verify).__name__} {quote(verify)}'
        )
    for name, digest in verify.items():
        if not isinstance(name, str) or not isinstance(digest, str):
            raise DTypeError(f"verify: expected a mapping of str to str, got {quote(name)}: {quote(digest)}")
        if not _DIGEST.fullmatch(digest):
            raise InputError(f"verify[{quote(name)}]: expected 64 hexadecimal digits, got {quote(digest)}")
    return verify


def verify_files(
    directory: Path, sources: Iterable[SourceFile], given: Mapping[str, str] | None, files: FileSet
) -> None:
    """Compare each file with its digest: the given one, else from SHA256SUMS or from its blob's name in a hub cache.

    Raises ModelFormatError (code "sha256" or "sha256_unknown"), OSError.
    """
    listed = list(sources)
    known = known_digests(directory, listed, files) if given is None else given
    for source in sorted(listed, key=lambda source: source.path):
        path, expected = source.path, known.get(source.path.name)
        if expected is None:
            where = SUMS_NAME if given is None else "the digests"
            raise malformed(path, "sha256_unknown", f"verify: expected its SHA-256 in {where}, found none")
        found = file_digest(source)
        if found != expected.lower():
            raise malformed(path, "sha256", f"expected SHA-256 {expected.lower()}, got {found}")


def file_digest(source: SourceFile) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with source.opened() as descriptor:
        for offset in range(0, source.size, _READ_BYTES):
            digest.update(read_at(descriptor, _READ_BYTES, offset))
    return digest.hexdigest()


def known_digests(directory: Path, sources: Iterable[SourceFile], files: FileSet) -> dict[str, str]:
    """Read digests from SHA256SUMS (sha256sum's format), else from the names of the blobs in a Hugging Face cache."""
    blobs = {source.path.name: os.path.basename(os.path.realpath(source.path)) for source in sources}
    digests = {name: blob for name, blob in blobs.items() if re.fullmatch("[0-9a-f]{64}", blob)}
    try:
        data = read_bounded(files.open(directory / SUMS_NAME), CONFIG_LIMITS.n_bytes)
    except FileNotFoundError:
        return digests
    for line in data.decode("utf-8", "replace").splitlines():
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if match:
            digests[match[2]] = match[1]
    return digests
