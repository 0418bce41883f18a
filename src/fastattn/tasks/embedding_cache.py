"""`EmbeddingCache`: stores sentence embeddings in a file, so each text is computed once."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.folder_digest import FolderStamp, digest_of
from fastattn.checks import check_count, check_keywords, check_path
from fastattn.errors import CacheError, DTypeError
from fastattn.files import FileIdentity
from fastattn.tasks.cache.keys import settings_key, text_key, tokenizer_digest
from fastattn.tasks.cache.store import Store
from fastattn.tasks.search.quantization import Precision
from fastattn.tasks.sentence.encoding import EncodeOptions
from fastattn.tasks.sentence.features import SENTENCE, Features, Rows
from fastattn.tasks.sentence.loading import read_processing_kwargs
from fastattn.tasks.sentence.text_model import Pairs, TextTask
from fastattn.tasks.sentence_transformer import SentenceTransformer
from fastattn.tokenizer import Tokenizer, check_text, is_list_like
from fastattn.tokenizer.inputs import read_pairs

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_CHUNK = 1024  # texts that are computed before they are stored
_MIN_BYTES = 1 << 18


class CachedEncodeArgs(TypedDict, total=False):
    """The arguments of `SentenceTransformer.encode` that the cache accepts."""

    prompt_name: str | None
    prompt: str | None
    batch_size: int
    show_progress_bar: bool | None
    precision: Precision | None
    convert_to_numpy: bool
    convert_to_tensor: bool
    normalize_embeddings: bool
    truncate_dim: int | None
    task: Literal["query", "document"] | None
    processing_kwargs: Mapping[str, Any] | None


class EmbeddingCache:
    """A file with sentence embeddings. `encode` computes only the texts that it does not contain.

    The vectors are those of `SentenceTransformer.encode`, bit for bit. A stored vector is used if the text with its
    prompt, the files of the model, the tokenizer, the dtype, the device, the limits of the length and the version of
    fastattn are the same. The vectors are stored before they are cut and normalized: one entry serves every
    `truncate_dim`, `normalize_embeddings` and `precision`. The file contains no texts, only their SHA-256.

    Several threads and processes can use one file. misses: the texts that this object computed; hits: all other
    texts, including repeated texts of one call.
    """

    def __init__(self, path: str | Path, *, max_bytes: int | None = None) -> None:
        """Open or create the SQLite file. max_bytes: delete the least recently used vectors to stay below this size.

        The minimum is 262,144. SQLite needs up to a few more megabytes for two temporary files in the same folder,
        whose names end with -wal and -shm. Raises CacheError for a damaged file and for a file of another program;
        DTypeError, InputError.
        """
        limit = None if max_bytes is None else check_count("max_bytes", max_bytes, low=_MIN_BYTES, high=2**62)
        self._store = Store(check_path("path", path), limit)
        self.hits = self.misses = 0
        self._digests: dict[FolderStamp, str] = {}
        self._tokenizers: list[tuple[Tokenizer, str]] = []

    @property
    def path(self) -> Path:
        """The file."""
        return self._store.path

    @property
    def max_bytes(self) -> int | None:
        """The limit of the size; None: no limit."""
        return self._store.max_bytes

    def __repr__(self) -> str:
        return f"<EmbeddingCache {str(self.path)!r}, {len(self)} vectors>"

    def __len__(self) -> int:
        return len(self._store)

    def size_bytes(self) -> int:
        """Return the number of bytes of the file that are in use. Raises CacheError."""
        return self._store.size_bytes()

    def clear(self) -> None:
        """Delete all vectors. Raises CacheError."""
        self._store.clear()

    def close(self) -> None:
        """Close the file; any later use raises CacheError."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., EmbeddingCache], tuple[Path, int | None]]:
        return _reopened, (self.path, self.max_bytes)

    # -- encoding -----------------------------------------------------------------------------------------------

    def encode(self, model: SentenceTransformer, sentences: object, **options: Unpack[CachedEncodeArgs]) -> Any:
        """Return what `model.encode(sentences, **options)` returns, with vectors from the file where it has them.

        New vectors are stored after each 1,024 texts. If the file cannot be written, for example because the disk is
        full, the vectors are returned and a warning is logged. Raises what `SentenceTransformer.encode` raises,
        CacheError for a damaged file, and ModelFormatError if the model's files changed since it was loaded.
        """
        check_keywords(options, tuple(CachedEncodeArgs.__annotations__), "encode")
        return self._encode(model, sentences, EncodeOptions(**options))

    def encode_query(self, model: SentenceTransformer, sentences: object, **options: Unpack[CachedEncodeArgs]) -> Any:
        """Return what `model.encode_query(sentences, **options)` returns. Raises what `encode` raises."""
        return self._encode_for("query", model, sentences, options)

    def encode_document(
        self, model: SentenceTransformer, sentences: object, **options: Unpack[CachedEncodeArgs]
    ) -> Any:
        """Return what `model.encode_document(sentences, **options)` returns. Raises what `encode` raises."""
        return self._encode_for("document", model, sentences, options)

    def _encode_for(self, task: TextTask, model: object, sentences: object, given: CachedEncodeArgs) -> Any:
        check_keywords(given, [name for name in CachedEncodeArgs.__annotations__ if name != "task"], f"encode_{task}")
        options = replace(EncodeOptions(**given), task=task)
        if options.prompt_name is None and options.prompt is None:
            options = replace(options, prompt_name=_checked(model)._prompt_of(task))
        return self._encode(_checked(model), sentences, options)

    def _encode(self, model: SentenceTransformer, sentences: object, options: EncodeOptions) -> Any:
        _checked(model)._check_output(SENTENCE)
        single = not is_list_like(sentences)
        if single:
            texts: Pairs = [(check_text(sentences, "sentences"), None)]
        else:
            texts = read_pairs("sentences", sentences, "join the texts into one")
        full = self._full_vectors(model, texts, options)
        features = Features([], sentences={SENTENCE: full})
        model._finish(features, options)
        return model._packed(features.sentences[SENTENCE], options, single=single)

    def _full_vectors(self, model: SentenceTransformer, texts: Pairs, options: EncodeOptions) -> Rows:
        """Return the vectors [n, width] before they are cut and normalized."""
        prefix = model._resolve_prompt(options.prompt, options.prompt_name)
        shared = self._shared_key(model, prefix, options)
        keys = [text_key(shared, prefix + first, second) for first, second in texts]
        places: dict[bytes, list[int]] = {}
        for i, key in enumerate(keys):
            places.setdefault(key, []).append(i)
        width = model._stack.width
        found = np.empty((len(texts), width), np.float32)
        stored: list[bytes] = []
        for start in range(0, len(places), _CHUNK):
            part = list(places)[start : start + _CHUNK]
            known = self._store.get(part)
            for key, data in known.items():
                found[places[key]] = self._vector(data, width)
            stored += known
            self._compute([key for key in part if key not in known], places, model, texts, options, found)
        computed = len(places) - len(stored)
        self.hits, self.misses = self.hits + len(texts) - computed, self.misses + computed
        self._store.touch(stored)
        return found

    def _compute(
        self,
        new: Sequence[bytes],
        places: Mapping[bytes, Sequence[int]],
        model: SentenceTransformer,
        texts: Pairs,
        options: EncodeOptions,
        found: Rows,
    ) -> None:
        """Compute the texts of some keys, write the vectors to `found` and to the file."""
        if not new:
            return
        first = [places[key][0] for key in new]
        whole = replace(options, normalize_embeddings=False, truncate_dim=found.shape[1], places=first)
        rows = model._rows([texts[i] for i in first], whole)
        for key, row in zip(new, rows, strict=True):
            found[places[key]] = row
        self._store.put({key: np.asarray(row, "<f4").tobytes() for key, row in zip(new, rows, strict=True)})

    def _vector(self, data: bytes, width: int) -> NDArray[np.float32]:
        if len(data) != 4 * width:
            raise CacheError(f"{self.path}: expected a vector of {4 * width} bytes, got {len(data)}; delete the file")
        return np.frombuffer(data, "<f4").astype(np.float32)

    # -- keys ---------------------------------------------------------------------------------------------------

    def _shared_key(self, model: SentenceTransformer, prefix: str, options: EncodeOptions) -> bytes:
        stack = model._stack
        return settings_key(
            self._model_digest(model._stamp),
            self._tokenizer_digest(model.tokenizer),
            device=model.device,
            dtype=model.dtype,
            max_seq_length=model.max_seq_length,
            modules=tuple(repr(module) for module in stack.later),
            truncation=read_processing_kwargs("processing_kwargs", options.processing_kwargs, stack.first.truncation),
            task=options.task,
            prompt_len=stack.prompt_len(prefix),
        )

    def _model_digest(self, stamp: FolderStamp) -> str:
        found = self._digests.get(stamp)
        if found is None:
            found = self._digests[stamp] = stamp.digest(self._file_digest)
        return found

    def _file_digest(self, path: Path, identity: FileIdentity) -> str:
        """Return the SHA-256 of a file. The cache stores it, so a later process need not read large weights."""
        name = json.dumps([str(path), *astuple(identity)])
        found = self._store.digest(name)
        if found is None:
            found = digest_of(path, identity)
            self._store.put_digest(name, found)
        return found

    def _tokenizer_digest(self, tokenizer: Tokenizer) -> str:
        """Return the digest of a tokenizer, computed again only after a change."""
        for known, digest in self._tokenizers:
            if known._state is tokenizer._state:
                return digest
        found = tokenizer_digest(tokenizer)
        self._tokenizers = [(copy.copy(tokenizer), found), *self._tokenizers[:7]]
        return found


def _reopened(path: Path, max_bytes: int | None) -> EmbeddingCache:
    return EmbeddingCache(path, max_bytes=max_bytes)


def _checked(model: object) -> SentenceTransformer:
    if not isinstance(model, SentenceTransformer):
        raise DTypeError(f"model: expected a SentenceTransformer, got {type(model).__name__}")
    return model
