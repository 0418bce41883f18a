"""`SentenceTransformer`: sentence embeddings from sentence-transformers' model folders."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.hub import resolve
from fastattn.checks import check_count
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.generation.generate import need_tokenizer
from fastattn.graph.executor import Executor
from fastattn.graph.rewrites import optimise, with_pooling
from fastattn.jsonfile import read_json, read_json_object
from fastattn.models.auto import AutoModel
from fastattn.models.inputs import read_model_batch
from fastattn.tasks.finite import check_finite
from fastattn.tasks.pooling import POOL_OPS, Pooling, normalized
from fastattn.tokenizer import check_text, check_texts, is_list_like

if TYPE_CHECKING:
    from typing_extensions import Self

Vectors = NDArray[np.float32]
# The settings of the transformer: sentence-transformers reads the first of these that is there and not empty.
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


@dataclass(frozen=True, slots=True)
class _Folder:
    """What a model folder says, apart from the transformer itself."""

    transformer: Path
    pooling: Mapping[str, Any]
    pooling_path: str
    normalize: bool
    max_seq_length: int | None
    do_lower_case: bool
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    similarity: str


class SentenceTransformer:
    """A sentence embedding model: a folder with modules.json, or a plain encoder folder, which is pooled by mean.

    Texts longer than `max_seq_length` tokens are cut to it, as in sentence-transformers. `close` or a `with` block
    gives the memory back.
    """

    def __init__(
        self,
        model_name_or_path: str | Path,
        *,
        dtype: str | None = None,
        kv_dtype: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        truncate_dim: int | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | None = None,
    ) -> None:
        directory = resolve(
            model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        folder = _read_folder(directory)
        self.model = AutoModel.from_pretrained(
            folder.transformer, dtype=dtype, kv_dtype=kv_dtype, device=device, threads=threads
        )
        self.tokenizer = need_tokenizer(self.model, "SentenceTransformer")
        self._hidden_size = self.model.config.hidden_size
        self._pooling = Pooling.from_config(folder.pooling, where=folder.pooling_path, hidden_size=self._hidden_size)
        self._pooled = self._pooled_executor()
        self._normalize = folder.normalize
        self._lower = folder.do_lower_case
        self.prompts = dict(folder.prompts if prompts is None else prompts)
        self.default_prompt_name = default_prompt_name or folder.default_prompt_name
        self.truncate_dim = None if truncate_dim is None else check_count("truncate_dim", truncate_dim, low=1)
        self.similarity_fn_name = folder.similarity
        self._context = self.model.executor.program.max_positions
        longest = folder.max_seq_length or min(self._context, self.tokenizer.model_max_length or self._context)
        self.max_seq_length = min(longest, self._context)

    def __repr__(self) -> str:
        size = self.get_sentence_embedding_dimension()
        return f"<SentenceTransformer of {self.model!r}, {size} numbers, {self.max_seq_length} tokens>"

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text at most, special tokens included; what is longer is cut."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        self._max_seq_length = check_count("max_seq_length", length, low=1, high=self._context)

    def get_sentence_embedding_dimension(self) -> int:
        """Numbers in a vector."""
        full = self._hidden_size * len(self._pooling.modes)
        return full if self.truncate_dim is None else min(full, self.truncate_dim)

    get_embedding_dimension = get_sentence_embedding_dimension

    def encode(
        self,
        sentences: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding", "token_embeddings"] = "sentence_embedding",
        precision: Literal["float32"] = "float32",
        convert_to_numpy: bool = True,
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """Vectors of texts: float32 [n, d] for a list, array or Series of str, [d] for a str, in the order given.

        output_value="token_embeddings" gives a float32 [n_tokens, hidden_size] for each text, and
        convert_to_numpy=False a list of vectors. A prompt (or the named one of `prompts`) is put before each text.
        NonFiniteError: a number is NaN or infinite.
        """
        check_count("batch_size", batch_size, low=1)
        if output_value not in ("sentence_embedding", "token_embeddings"):
            raise InputError(f'output_value: expected "sentence_embedding" or "token_embeddings", got {output_value!r}')
        if precision != "float32":
            raise InputError(f'precision: expected "float32", got {precision!r}')
        width = self.truncate_dim if truncate_dim is None else check_count("truncate_dim", truncate_dim, low=1)
        prefix = self._prompt(prompt, prompt_name)
        single = not is_list_like(sentences)
        texts = [check_text(sentences, "sentences")] if single else check_texts(sentences, "sentences")
        tokens = output_value == "token_embeddings"
        rows = self._rows(texts, prefix, batch_size, tokens=tokens, progress=bool(show_progress_bar))
        if tokens:
            return rows[0] if single else rows
        vectors = np.stack(rows) if rows else np.zeros((0, self._hidden_size * len(self._pooling.modes)), np.float32)
        if self._normalize:
            vectors = normalized(vectors)
        if width is not None:
            vectors = np.ascontiguousarray(vectors[:, :width])
        if normalize_embeddings:
            vectors = normalized(vectors)
        if single:
            return vectors[0]
        return vectors if convert_to_numpy else list(vectors)

    def count_tokens(self, sentences: Any) -> list[int]:
        """Tokens of each text, special ones and the default prompt included, before `encode` cuts it."""
        prefix = self._prompt(None, None)
        texts = [prefix + text for text in check_texts(sentences, "sentences")]
        return [len(ids) for ids, _ in self._ids(texts, cut=False)]

    def encode_query(self, sentences: Any, *, batch_size: int = 32, normalize_embeddings: bool = False) -> Any:
        """`encode` with the prompt named "query", if there is one."""
        name = "query" if "query" in self.prompts else None
        return self.encode(
            sentences, prompt_name=name, batch_size=batch_size, normalize_embeddings=normalize_embeddings
        )

    def encode_document(self, sentences: Any, *, batch_size: int = 32, normalize_embeddings: bool = False) -> Any:
        """`encode` with the prompt named "document", "passage" or "corpus", if there is one."""
        name = next((name for name in ("document", "passage", "corpus") if name in self.prompts), None)
        return self.encode(
            sentences, prompt_name=name, batch_size=batch_size, normalize_embeddings=normalize_embeddings
        )

    def similarity(self, a: Any, b: Any) -> Vectors:
        """Scores [n_a, n_b] of vectors [n_a, d] and [n_b, d] by the model's function, cosine unless it names another.

        "euclidean" and "manhattan" are negative distances.
        """
        first, second = _rows_of(a, "a"), _rows_of(b, "b")
        if first.shape[1] != second.shape[1]:
            raise InputError(f"b: expected [n, {first.shape[-1]}], as a has, got {list(second.shape)}")
        if self.similarity_fn_name == "cosine":
            first, second = normalized(first), normalized(second)
        if self.similarity_fn_name in ("cosine", "dot"):
            return cast(Vectors, first @ second.T)
        order = 2 if self.similarity_fn_name == "euclidean" else 1
        scores = np.empty((len(first), len(second)), np.float32)
        for i, row in enumerate(first):
            scores[i] = -np.linalg.norm(second - row, ord=order, axis=1)
        return scores

    def close(self) -> None:
        """Give the model's memory back."""
        if self._pooled is not None:
            self._pooled.close()
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pooled_executor(self) -> Executor | None:
        """The model with the pooling as its last op, for a single mode that there is an op for."""
        kind = POOL_OPS.get(self._pooling.modes[0]) if len(self._pooling.modes) == 1 else None
        if kind is None or not self._pooling.include_prompt:
            return None
        return self.model.executor.with_program(optimise(with_pooling(self.model.traced, kind)))

    def _rows(
        self, texts: Sequence[str], prefix: str, batch_size: int, *, tokens: bool, progress: bool
    ) -> list[Vectors]:
        """A vector a text, or its token vectors. Texts of like length share a step, the result is in their order."""
        prompt_len = 0
        if prefix and not self._pooling.include_prompt:
            prompt_len = len(self._ids([prefix])[0][0]) - 1  # the closing special token is not part of the prompt
        encoded = self._ids([prefix + text for text in texts])
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i][0]))
        rows: list[Vectors | None] = [None] * len(encoded)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids, type_ids = [encoded[i][0] for i in batch], [encoded[i][1] for i in batch]
            found = self._run(ids, type_ids, prompt_len=prompt_len, tokens=tokens)
            for i, row in zip(batch, found, strict=True):
                check_finite(row, f"sentences[{i}]", "numbers")
                rows[i] = row.astype(np.float32)
            if progress:
                done = min(start + batch_size, len(order))
                print(f"\rencoded {done} of {len(order)}", end="", file=sys.stderr, flush=True)
        if progress:
            print(file=sys.stderr)
        return cast("list[Vectors]", rows)

    def _run(
        self, ids: list[NDArray[np.int32]], type_ids: list[NDArray[np.int32]], *, prompt_len: int, tokens: bool
    ) -> list[NDArray[Any]]:
        """One step: a vector a text, or its token vectors."""
        if self._pooled is None or tokens:
            types = self.model.types_of(self.tokenizer, type_ids)
            states = list(self.model(ids, token_type_ids=types).last_hidden_state)
            return states if tokens else [self._pooling(rows, prompt_len=prompt_len) for rows in states]
        batch = read_model_batch(self.model.config, ids, None, type_ids, explain=self.model.explain_id)
        vectors = self._pooled.run(batch.step())["embedding"] if batch.n_tokens else np.zeros((0, self._hidden_size))
        return list(batch.restore_sequences(cast("NDArray[Any]", vectors)))

    def _ids(self, texts: Sequence[str], *, cut: bool = True) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        if self._lower:
            texts = [text.lower() for text in texts]
        return self.tokenizer.encode_batch(texts, max_length=self.max_seq_length if cut else None)

    def _prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        if prompt is not None:
            return check_text(prompt, "prompt")
        name = prompt_name or self.default_prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(sorted(self.prompts)) or "none"
            raise InputError(f"prompt_name: expected one of the model's prompts ({known}), got {name!r}")
        return self.prompts[name]


def _rows_of(vectors: Any, name: str) -> Vectors:
    """Vectors [n, d], or one vector [d], as float32 [n, d]."""
    try:
        array = np.asarray(vectors)
    except ValueError:
        raise InputError(f"{name}: expected vectors of one length, got several lengths") from None
    if array.dtype.kind not in "fiu":
        raise DTypeError(f"{name}: expected vectors of numbers, got {type(vectors).__name__} of {array.dtype}")
    if array.ndim not in (1, 2):
        raise InputError(f"{name}: expected shape [n, d] or [d], got {list(array.shape)}")
    return cast(Vectors, np.atleast_2d(array.astype(np.float32)))


def _read_folder(directory: Path) -> _Folder:
    modules_path = directory / "modules.json"
    settings = read_json_object(directory / "config_sentence_transformers.json")
    transformer, pooling, pooling_path, normalize = directory, cast("Mapping[str, Any]", {}), str(directory), False
    if modules_path.is_file():
        seen: list[str] = []
        for kind, path in _modules(modules_path):
            if kind == "Transformer" and not seen:
                transformer = directory / path
            elif kind == "Pooling" and seen == ["Transformer"]:
                pooling_path = str(directory / path / "config.json")
                pooling = read_json_object(directory / path / "config.json")
            elif kind == "Normalize" and "Pooling" in seen:
                normalize = True
            else:
                raise ConfigError(f"{modules_path}: module {kind} after {seen or 'nothing'} is not supported")
            seen.append(kind)
        if "Pooling" not in seen:
            raise ConfigError(f"{modules_path}: expected a Transformer and a Pooling module, got {seen}")
    config = next(filter(None, (read_json_object(transformer / name) for name in TRANSFORMER_CONFIGS)), {})
    longest = config.get("max_seq_length")
    similarity = settings.get("similarity_fn_name") or "cosine"
    if similarity not in ("cosine", "dot", "euclidean", "manhattan"):
        raise ConfigError(f"{directory}: similarity_fn_name: {similarity!r} is not supported")
    prompts = settings.get("prompts") or {}
    return _Folder(
        transformer=transformer,
        pooling=pooling,
        pooling_path=pooling_path,
        normalize=normalize,
        max_seq_length=longest if isinstance(longest, int) and longest > 0 else None,
        do_lower_case=bool(config.get("do_lower_case", False)),
        prompts={str(k): v for k, v in prompts.items() if isinstance(v, str)} if isinstance(prompts, dict) else {},
        default_prompt_name=settings.get("default_prompt_name"),
        similarity=similarity,
    )


def _modules(path: Path) -> list[tuple[str, str]]:
    """(kind, folder) of each module, in order; a folder is one name inside the model's own."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: expected a list of modules, got {type(entries).__name__}")
    modules = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise ConfigError(f'{path}: expected objects with "type" and "path", got {entry!r}')
        folder = entry.get("path", "")
        if not isinstance(folder, str) or len(PurePosixPath(folder).parts) > 1 or folder in ("..", "/"):
            raise ConfigError(f"{path}: path: expected the name of a folder, got {folder!r}")
        modules.append((entry["type"].rsplit(".", 1)[-1], folder))
    return modules
