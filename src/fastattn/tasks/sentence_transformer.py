"""`SentenceTransformer`: sentence embeddings from the model folders of sentence-transformers."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.api.encoders import Encoder
from fastattn.api.load_args import HubArgs, RunArgs
from fastattn.api.load_options import check_target
from fastattn.checks import check_count, check_flag, check_keywords, check_path, check_str, one_of, quote
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.sentence.encoders import InputModule, Pairs, TextTask, TextTruncation, Transformer
from fastattn.tasks.sentence.encoding import EncodeMethods, EncodeOptions, to_tensors
from fastattn.tasks.sentence.features import SENTENCE, TOKENS, Features, Float, Module
from fastattn.tasks.sentence.folder import ModelSettings, read_folder
from fastattn.tasks.sentence.loading import read_processing_kwargs
from fastattn.tasks.sentence.modules import normalized
from fastattn.tasks.sentence.names import find_folder
from fastattn.tasks.sentence.pooling import Pooling
from fastattn.tasks.sentence.similarity import (
    Similarity,
    check_similarity,
    quantize_vectors,
    similarity,
    similarity_pairwise,
)
from fastattn.tasks.sentence.stack import StackOptions, load_stack
from fastattn.tokenizer import Tokenizer, check_text, check_texts, is_list_like
from fastattn.tokenizer.inputs import read_pairs
from fastattn.tokenizer.truncation import DO_NOT_TRUNCATE

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_log = logging.getLogger("fastattn")
_JOIN = "join the texts into one"  # the advice for a list that is not a pair


class SentenceLoadArgs(RunArgs, HubArgs, total=False):
    """How to load the transformer, as in `AutoModel.from_pretrained`, and where to look up a hub id."""


class SentenceTransformer(EncodeMethods):
    """A sentence embedding model, from a folder with modules.json or a plain encoder folder (with mean pooling).

    Texts longer than `max_seq_length` tokens are cut, as in sentence-transformers. `model[i]` is the i-th module.
    `close` or a `with` block frees the memory.
    """

    _similarity: Similarity | None

    def __init__(
        self,
        model_name_or_path: str | Path,
        *,
        modules: None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | Path | None = None,
        trust_remote_code: bool = False,
        use_auth_token: bool | str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        model_card_data: object = None,
        backend: Literal["torch"] = "torch",
        similarity_fn_name: Similarity | None = None,
        truncate_dim: int | None = None,
        **options: Unpack[SentenceLoadArgs],
    ) -> None:
        """Load a folder or a hub id; a name without an owner is a model of sentence-transformers.

        dtype, kv_dtype, device, threads: as in `AutoModel.from_pretrained`. prompts: added to those of the folder; they
        replace prompts with the same name. cache_folder or cache_dir, revision, local_files_only, token: for hub ids.
        model_kwargs, processor_kwargs (or tokenizer_kwargs), config_kwargs: "dtype", "model_max_length" and
        "truncation_side" are used; other keys are accepted if they change nothing. Code in a model folder never runs.
        Raises ConfigError, ModelFormatError, ModelNotFoundError, HubError, InputError, DTypeError.
        """
        _refuse_parts(options, modules, backend)
        self.similarity_fn_name = similarity_fn_name
        self.truncate_dim = truncate_dim
        given = _check_prompts({} if prompts is None else prompts)
        run = {name: value for name, value in options.items() if name in RunArgs.__annotations__}
        stack = StackOptions(
            run=cast(RunArgs, {"device": "cpu", **run}),
            trust_remote_code=check_flag("trust_remote_code", trust_remote_code),
            model_kwargs=model_kwargs,
            processor_kwargs=one_of("processor_kwargs", processor_kwargs, "tokenizer_kwargs", tokenizer_kwargs),
            config_kwargs=config_kwargs,
        )
        path = find_folder(
            model_name_or_path,
            revision=options.get("revision"),
            cache_dir=_cache(cache_folder, options.get("cache_dir")),
            local_files_only=check_flag("local_files_only", options.get("local_files_only", False)),
            token=one_of("token", options.get("token"), "use_auth_token", use_auth_token),
        )
        folder = read_folder(path)
        self._read(folder.settings, given, default_prompt_name)
        self._stack = load_stack(folder, stack)

    def _read(self, settings: ModelSettings, given: Mapping[str, str | None], default_prompt_name: str | None) -> None:
        """Merge the caller's settings with those of the folder; the caller's take precedence."""
        prompts: dict[str, str | None] = {"query": None, "document": None, **given}
        for key, saved in settings.prompts.items():
            if prompts.get(key) is None:
                prompts[key] = saved
        self.prompts = {key: text or "" for key, text in prompts.items()}
        name = settings.default_prompt_name if default_prompt_name is None else default_prompt_name
        self.default_prompt_name = None if name is None else check_str("default_prompt_name", name)
        if name is not None and name not in self.prompts:
            raise InputError(f"default_prompt_name: {_expected_prompt(self.prompts, name)}")
        if self._similarity is None:
            self._similarity = check_similarity(settings.similarity_fn_name)
        if self.truncate_dim is None:
            self.truncate_dim = settings.truncate_dim

    def __repr__(self) -> str:
        size, longest = self.get_embedding_dimension(), self.max_seq_length
        what = repr(self._first.auto_model if isinstance(self._first, Transformer) else self._first)
        return f"<SentenceTransformer of {what}, {size} numbers, {longest} tokens>"

    def __copy__(self) -> Self:
        """Return another model with the same weights; closing one does not close the other."""
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__ | {"_stack": copy.copy(self._stack), "prompts": dict(self.prompts)})
        return found

    # -- modules ------------------------------------------------------------------------------------------------

    @property
    def _first(self) -> InputModule:
        return self._stack.first

    def __len__(self) -> int:
        return len(self._stack)

    def __getitem__(self, index: int) -> InputModule | Module:
        return self._stack[index]

    def __iter__(self) -> Iterator[InputModule | Module]:
        return iter([self._stack[i] for i in range(len(self._stack))])

    def _first_module(self) -> InputModule:
        """The first module, under a name that other code commonly uses."""
        return self._first

    @property
    def model(self) -> Encoder:
        """The transformer. Raises InputError if the model has none (StaticEmbedding)."""
        if not isinstance(self._first, Transformer):
            raise InputError(
                "model: expected a model with a transformer, got a StaticEmbedding, which only averages token vectors"
            )
        return self._first.auto_model

    @property
    def device(self) -> str:
        """The device that the model runs on."""
        return self._first.auto_model.device if isinstance(self._first, Transformer) else "cpu"

    @property
    def dtype(self) -> str:
        """The storage type of the weights."""
        return self._first.auto_model.dtype if isinstance(self._first, Transformer) else "float32"

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of this model, not shared with others; its `model_max_length` is `max_seq_length`.

        Can be set, also to a tokenizer of transformers or tokenizers. The model gets a copy, which lowercases text if
        the folder sets do_lower_case. Raises DTypeError.
        """
        return self._first.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._first.tokenizer = copy.copy(Tokenizer.from_object(tokenizer))

    @property
    def max_seq_length(self) -> int | float:
        """The maximum number of tokens of a text, including special tokens; longer texts are cut.

        Infinite for a StaticEmbedding. Can be set to any value from the number of special tokens to the model's
        context, or to None for the context.
        """
        return self._first.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None:
        self._first.max_seq_length = length

    def get_max_seq_length(self) -> int | float:
        """Return `max_seq_length`."""
        return self.max_seq_length

    @property
    def truncate_dim(self) -> int | None:
        """The length that `encode` cuts vectors to; None for the full length."""
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, size: int | None) -> None:
        self._truncate_dim = None if size is None else check_count("truncate_dim", size, low=1)

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Use another `truncate_dim` inside a `with` block."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    def get_embedding_dimension(self) -> int:
        """Return the length of a vector from `encode`."""
        full = self._stack.width or self._first.get_embedding_dimension()
        return full if self.truncate_dim is None else min(full, self.truncate_dim)

    get_sentence_embedding_dimension = get_embedding_dimension

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """Set whether the first Pooling module includes the tokens of the prompt. Raises DTypeError."""
        flag = check_flag("include_prompt", include_prompt)
        for module in self._stack.later:
            if isinstance(module, Pooling):
                self._stack.replace(module, replace(module, include_prompt=flag))
                return

    def eval(self) -> Self:
        """Return the model itself: it never trains."""
        return self

    def to(self, device: Any) -> Self:
        """Return the model itself if it has that device or dtype. Raises InputError for others."""
        check_target(device, self.device, self.dtype)
        return self

    # -- texts to vectors ---------------------------------------------------------------------------------------

    def preprocess(
        self,
        inputs: object,
        prompt: str | None = None,
        *,
        task: TextTask | None = None,
        processing_kwargs: Mapping[str, Any] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Return the padded input arrays of the first module: token ids, masks and token types [n_texts, seq_len].

        inputs: a sequence of str and of pairs of str. A StaticEmbedding has input_ids [n_tokens] of all texts and the
        offset [n_texts] of the start of each. Raises DTypeError, InputError.
        """
        texts = read_pairs("inputs", inputs, _JOIN)
        prefix = "" if prompt is None else check_text(prompt, "prompt")
        truncation = read_processing_kwargs("processing_kwargs", processing_kwargs, self._truncation)
        return self._first.preprocess(_with_prompt(prefix, texts), truncation, task)

    def tokenize(self, texts: object) -> dict[str, NDArray[Any]]:
        """Call `preprocess` without a prompt."""
        return self.preprocess(texts)

    def count_tokens(self, sentences: object) -> list[int]:
        """Count the tokens of each text before `encode` cuts it, including special tokens and the default prompt.

        Raises DTypeError, InputError.
        """
        prefix = self._resolve_prompt(None, None)
        texts = _with_prompt(prefix, read_pairs("sentences", sentences, _JOIN))
        return [len(ids) for ids, _ in self._first.encode(texts, TextTruncation(DO_NOT_TRUNCATE), None)]

    def encode_with_cuts(
        self,
        sentences: Sequence[str],
        *,
        prompt_name: str | None = None,
        batch_size: int = 32,
        normalize_embeddings: bool = False,
    ) -> tuple[NDArray[np.float32], dict[int, int]]:
        """Call `encode` for a list of texts. Return [n_texts, d], and the remaining tokens of cut texts by index.

        Raises what `encode` raises.
        """
        cut: dict[int, int] = {}
        options = EncodeOptions(
            prompt_name=prompt_name, batch_size=batch_size, normalize_embeddings=normalize_embeddings, cut=cut
        )
        return self._encode(check_texts(sentences, "sentences"), options), cut

    def _encode(self, sentences: object, options: EncodeOptions) -> Any:
        single = not is_list_like(sentences)
        texts = [(check_text(sentences, "sentences"), None)] if single else read_pairs("sentences", sentences, _JOIN)
        self._check_output(options.output_value)
        rows = self._rows(texts, options)
        if options.output_value == "sentence_embedding":
            nothing = np.zeros((0, self._stack.width), np.float32)[:, : self._width(options)]
            full = np.stack(rows) if rows else nothing
            vectors = quantize_vectors(full, options.precision)
            listed = not (options.convert_to_numpy or options.convert_to_tensor)
            found: Any = vectors[0] if single else list(vectors) if listed else vectors
        else:
            if options.precision not in (None, "float32"):
                asked = f"output_value={options.output_value!r}"
                raise InputError(f'precision: expected "float32" with {asked}, got {options.precision!r}')
            found = rows[0] if single else rows
        return to_tensors(found) if options.convert_to_tensor else found

    def _rows(self, texts: Pairs, options: EncodeOptions) -> list[Any]:
        """Return the requested result of each text, in order. Texts of similar length share a step."""
        prefix = self._resolve_prompt(options.prompt, options.prompt_name)
        prompt_len = self._prompt_len(prefix)
        truncation = read_processing_kwargs("processing_kwargs", options.processing_kwargs, self._truncation)
        encoded = self._first.encode(_with_prompt(prefix, texts), truncation, options.task, options.cut)
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i][0]))
        rows: list[Any] = [None] * len(encoded)
        for start in _steps(len(order), options.batch_size, show=options.show_progress_bar):
            batch = order[start : start + options.batch_size]
            where = [f"sentences[{i}]" for i in batch]
            found = self._stack.run(
                [encoded[i] for i in batch], where, prompt_len=prompt_len, output=options.output_value
            )
            self._finish(found, options)
            for place, i in enumerate(batch):
                if options.output_value is None:
                    rows[i] = self._all_features(encoded[i], found, place)
                else:
                    rows[i] = _row(found, options.output_value, place)
        return rows

    def _width(self, options: EncodeOptions) -> int | None:
        return self.truncate_dim if options.truncate_dim is None else options.truncate_dim

    def _finish(self, features: Features, options: EncodeOptions) -> None:
        """Cut the vectors to truncate_dim, then normalize them."""
        width = self._width(options)
        if width is not None and SENTENCE in features.sentences:
            features.sentences[SENTENCE] = np.ascontiguousarray(features.sentences[SENTENCE][:, :width])
        if options.normalize_embeddings and options.output_value == "sentence_embedding":
            features.sentences[SENTENCE] = normalized(features.sentences[SENTENCE])

    def _all_features(self, encoded: Any, features: Features, place: int) -> dict[str, Any]:
        ids, type_ids = encoded
        found: dict[str, Any] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if self.tokenizer.options.type_ids:
            found["token_type_ids"] = type_ids
        for name in (*features.tokens, *features.sentences):
            found[name] = _row(features, name, place)
        return found

    def _check_output(self, output: str | None) -> None:
        """Reject an output that no module produces."""
        known = self._stack.known
        if output == SENTENCE and output not in known:
            raise InputError(
                "output_value: no module of this model computes a sentence embedding, as Pooling does; "
                'use output_value="token_embeddings"'
            )
        if output == TOKENS and known.get(TOKENS, ("sentences", 0))[0] != "tokens":
            raise InputError("output_value: this model has no token embeddings that depend on the text")

    @property
    def _truncation(self) -> TextTruncation:
        return self._first.truncation

    def _prompt_len(self, prefix: str) -> int:
        """Return the number of prompt tokens that a Pooling module excludes, without a special token at the end."""
        if not prefix or all(module.include_prompt for module in self._stack.later if isinstance(module, Pooling)):
            return 0
        ids, _ = self._first.encode([(prefix, None)], self._truncation, None)[0]
        closing = bool(len(ids)) and int(ids[-1]) in self.tokenizer.all_special_ids
        return len(ids) - int(closing)

    def _resolve_prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        """Return the text to put before each text: the prompt, the prompt with that name, or the default prompt."""
        if prompt is not None:
            if prompt_name is not None:
                _log.warning("encode: prompt is given, so prompt_name %s is ignored", quote(prompt_name))
            return prompt
        name = self.default_prompt_name if prompt_name is None else prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            which = "default_prompt_name" if prompt_name is None else "prompt_name"
            raise InputError(f"{which}: {_expected_prompt(self.prompts, name)}")
        return check_text(self.prompts[name], f"prompts[{quote(name)}]")

    # -- similarity ---------------------------------------------------------------------------------------------

    @property
    def similarity_fn_name(self) -> Similarity:
        """The similarity function: "cosine" unless the folder or the caller names another. Can be set."""
        return self._similarity or "cosine"

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: object) -> None:
        self._similarity = check_similarity(name)

    def similarity(self, a: object, b: object) -> Float:
        """Return scores [n_a, n_b] of vectors [n_a, d] and [n_b, d] with the model's similarity function.

        "euclidean" and "manhattan" are negative distances. Raises DTypeError, InputError.
        """
        return similarity(self.similarity_fn_name, a, b)

    def similarity_pairwise(self, a: object, b: object) -> Float:
        """Return scores [n] of vectors [n, d] and [n, d], row by row. Raises DTypeError, InputError."""
        return similarity_pairwise(self.similarity_fn_name, a, b)

    def close(self) -> None:
        """Free the model's memory; any later use raises InputError."""
        self._first.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _steps(n: int, size: int, *, show: bool | None) -> Any:
    """Return the start of each batch, with an optional progress bar on standard error."""
    starts = range(0, n, size)
    if not show:
        return starts
    from tqdm.auto import tqdm

    return tqdm(starts, desc="Batches")


def _with_prompt(prompt: str, texts: Pairs) -> Pairs:
    return [(prompt + first, second) for first, second in texts]


def _row(features: Features, name: str, place: int) -> NDArray[Any]:
    if name in features.sentences:
        return cast("NDArray[Any]", features.sentences[name][place])
    return np.asarray(features.tokens[name][place], np.float32)


def _refuse_parts(unknown: Mapping[str, object], modules: object, backend: object) -> None:
    """Reject unknown keywords and ways to build a model that this class does not support."""
    names = inspect.signature(SentenceTransformer).parameters
    check_keywords(unknown, (*SentenceLoadArgs.__annotations__, *names), "SentenceTransformer")
    if modules is not None:
        raise InputError(
            "modules: expected None, because a model is loaded from a folder; save the modules to a folder first"
        )
    if backend != "torch":
        raise InputError(f'backend: expected "torch", which changes nothing here, got {quote(backend)}')


def _expected_prompt(prompts: Mapping[str, str], name: object) -> str:
    return f"expected one of the prompts {quote(sorted(prompts))}, got {quote(name)}"


def _check_prompts(prompts: object) -> dict[str, str | None]:
    """Check a caller's prompts: names to texts; None is no text. Raises DTypeError, InputError."""
    if not isinstance(prompts, Mapping):
        raise DTypeError(f"prompts: expected a dictionary of names to texts, got {type(prompts).__name__}")
    for name, text in prompts.items():
        check_str("prompts: a name", name)
        if text is not None:
            check_text(text, f"prompts[{quote(name)}]")
    return dict(prompts)


def _cache(cache_folder: str | Path | None, cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder for downloaded models. An environment variable can set it, as in sentence-transformers."""
    found = one_of("cache_dir", cache_dir, "cache_folder", cache_folder) or os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    return check_path("cache_dir", found) if found else None
