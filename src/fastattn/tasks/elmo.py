"""`ElmoEmbedder`: contextual word vectors of ELMo, with the methods of allennlp."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastattn.api.load_args import RunArgs
from fastattn.api.load_options import read_options as read_load_options
from fastattn.api.loading import check_device, load_executor
from fastattn.checkpoint.checkpoint import read_object
from fastattn.checkpoint.hdf5 import Hdf5File
from fastattn.checks import check_count, check_flag, check_number, check_path, quote
from fastattn.errors import DTypeError, InputError, ModelNotFoundError
from fastattn.graph.executor import Executor
from fastattn.models.elmo import ElmoConfig, boundaries, characters_of, read_options, sentence_program, word_program
from fastattn.models.ragged_step import ragged_step

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_WORDS_AT_ONCE = 128  # limits the memory for the convolutions
Vectors = NDArray[np.float32]


class ElmoEmbedder:
    """Embeds tokenized sentences with all layers of ELMo (Peters et al. 2018). The names are those of allennlp 0.9.

    config: the options of the model. The vectors of a sentence are the same in every batch, bit for bit, because the
    LSTMs start each sentence with a state of zeros. allennlp starts with the state that the previous batch left.
    """

    def __init__(
        self, options_file: str | Path, weight_file: str | Path | None = None, **options: Unpack[RunArgs]
    ) -> None:
        """Load a model.

        options_file: options.json, or a folder with one file that ends with options.json and one that ends with
        weights.hdf5. weight_file: the weights; None: those of the folder. options: dtype, device and threads as in
        `AutoModel.from_pretrained`. Needs h5py (`pip install "fastattn[elmo]"`).

        Raises ModelNotFoundError, ConfigError, ModelFormatError, InputError, DTypeError.
        """
        load, _ = read_load_options(dict(options))
        if load.share_weights:
            raise InputError("share_weights: expected False for ELMo, got True")
        if load.kv_dtype is not None:
            raise InputError(f"kv_dtype: expected None, because ELMo has no attention, got {quote(load.kv_dtype)}")
        check_device(load)
        given = check_path("options_file", options_file)
        found = _only(given, "options.json") if given.is_dir() else given
        if weight_file is None and not given.is_dir():
            raise InputError("weight_file: expected the path of the weights, or a folder as options_file, got None")
        weights = _only(given, "weights.hdf5") if weight_file is None else check_path("weight_file", weight_file)
        values = read_object(found, None)
        if values is None:
            raise ModelNotFoundError(f"{found}: expected the options of ELMo, found no file")
        self.config: ElmoConfig = read_options(values, str(found))
        run: dict[str, Any] = {"dtype": load.dtype or "float32", "device": load.device, "threads": load.threads}
        with Hdf5File(weights) as file:
            traced = word_program(self.config, file), sentence_program(self.config, file)
            self._words, self._sentences = (load_executor(made.program, made.sources, **run) for made in traced)

    def embed_sentence(self, sentence: Sequence[str]) -> Vectors:
        """Return all layers of a tokenized sentence, [n_layers + 1, n_tokens, 2 * projection_dim]."""
        return self.embed_batch([sentence])[0]

    def embed_batch(self, batch: Sequence[Sequence[str]]) -> list[Vectors]:
        """Return all layers of each tokenized sentence; see `embed_sentence`. Raises InputError, DTypeError."""
        sentences = [_checked(sentence, i) for i, sentence in enumerate(batch)]
        config = self.config
        empty: Vectors = np.zeros((config.n_layers + 1, 0, 2 * config.projection_dim), np.float32)
        full = [sentence for sentence in sentences if sentence]
        if not full:
            return [empty for _ in sentences]
        ends = tuple(tuple(characters) for characters in boundaries(config))
        spelled = [[ends[0], *(tuple(characters_of(word, config)) for word in sentence), ends[1]] for sentence in full]
        vectors = self._embed_words(list(dict.fromkeys(word for words in spelled for word in words)))
        rows = np.stack([vectors[word] for words in spelled for word in words])
        step = ragged_step([len(words) for words in spelled], features=(rows,))
        found = self._sentences.run(step)
        layers = np.stack([np.asarray(found[f"layers.{i}"], np.float32) for i in range(config.n_layers + 1)])
        parts = iter(np.split(layers, step.cu_seqlens[1:-1], axis=1))
        return [next(parts)[:, 1:-1].copy() if sentence else empty for sentence in sentences]

    def embed_sentences(self, sentences: Iterable[Sequence[str]], batch_size: int = 64) -> Iterator[Vectors]:
        """Yield all layers of each tokenized sentence, computed in batches."""
        check_count("batch_size", batch_size, low=1)
        given = iter(sentences)
        while batch := list(islice(given, batch_size)):
            yield from self.embed_batch(batch)

    def scalar_mix(
        self, layers: Vectors, scalar_parameters: Sequence[float], gamma: float = 1.0, do_layer_norm: bool = False
    ) -> Vectors:
        """Return gamma times the weighted sum of the layers of one sentence, [n_tokens, 2 * projection_dim].

        scalar_parameters: one number per layer; their softmax gives the weights. do_layer_norm: first normalize each
        layer with its mean and variance over the sentence. Raises InputError, DTypeError.
        """
        check_flag("do_layer_norm", do_layer_norm)
        check_number("gamma", gamma)
        n, width = self.config.n_layers + 1, 2 * self.config.projection_dim
        if not isinstance(layers, np.ndarray) or layers.dtype != np.float32:
            raise DTypeError(f"layers: expected a float32 array of one sentence, got {quote(layers)}")
        if layers.ndim != 3 or layers.shape[0] != n or layers.shape[2] != width:
            raise InputError(f"layers: expected [{n}, n_tokens, {width}], got {list(layers.shape)}")
        if len(scalar_parameters) != n:
            raise InputError(f"scalar_parameters: expected {n} numbers, got {len(scalar_parameters)}")
        scalars = np.array([check_number("scalar_parameters", value) for value in scalar_parameters], np.float64)
        terms = np.exp(scalars - scalars.max())
        values = layers.astype(np.float64)
        if do_layer_norm and values.size:
            mean, variance = values.mean(axis=(1, 2), keepdims=True), values.var(axis=(1, 2), keepdims=True)
            values = (values - mean) / np.sqrt(variance + 1e-12)
        mixed = gamma * np.einsum("l,ltd->td", terms / terms.sum(), values)
        result: Vectors = mixed.astype(np.float32)
        return result

    def close(self) -> None:
        """Free the memory of the model."""
        for executor in self._executors():
            executor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _executors(self) -> tuple[Executor, Executor]:
        return self._words, self._sentences

    def _embed_words(self, words: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], NDArray[np.floating[Any]]]:
        """Return the output of the character CNN for each word."""
        vectors: dict[tuple[int, ...], NDArray[np.floating[Any]]] = {}
        for begin in range(0, len(words), _WORDS_AT_ONCE):
            part = words[begin : begin + _WORDS_AT_ONCE]
            ids = np.array([character for word in part for character in word], np.int32)
            rows = np.asarray(self._words.run(ragged_step([len(word) for word in part], ids=ids))["words"], np.float32)
            vectors.update(zip(part, rows, strict=True))
        return vectors


def _checked(sentence: Any, index: int) -> list[str]:
    """Return the tokens of a sentence. Raises DTypeError."""
    if isinstance(sentence, str | bytes) or not isinstance(sentence, Iterable):
        raise DTypeError(f"batch[{index}]: expected a list of tokens, got {quote(sentence)}")
    tokens = list(sentence)
    for i, token in enumerate(tokens):
        if not isinstance(token, str):
            raise DTypeError(f"batch[{index}][{i}]: expected a str, got {quote(token)}")
    return tokens


def _only(folder: Path, ending: str) -> Path:
    """Return the file of a folder with this ending. Raises ModelNotFoundError, InputError for several."""
    found = sorted(path for path in folder.iterdir() if path.name.endswith(ending))
    if not found:
        raise ModelNotFoundError(f"{folder}: expected a file *{ending}, found none")
    if len(found) > 1:
        raise InputError(f"{folder}: expected one file *{ending}, got {found[0].name} and {found[1].name}")
    return found[0]
