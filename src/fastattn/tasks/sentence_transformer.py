"""`SentenceTransformer`: sentence embeddings from the model folders of sentence-transformers."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.api.encoders import Encoder
from fastattn.api.load_args import RunArgs
from fastattn.api.load_options import check_target
from fastattn.checkpoint.folder_digest import FolderStamp
from fastattn.checks import check_count, check_flag, one_of
from fastattn.errors import InputError
from fastattn.files import recorded_files
from fastattn.tasks.search.quantization import Precision, quantize_embeddings, quantize_vectors
from fastattn.tasks.search.similarity import Similarity, check_similarity, pair_scores, scores
from fastattn.tasks.search.vectors import normalized
from fastattn.tasks.sentence.encoders import InputModule, Transformer
from fastattn.tasks.sentence.encoding import EncodeMethods, EncodeOptions, to_tensors
from fastattn.tasks.sentence.features import SENTENCE, TOKENS, Features, Float, Module, Rows
from fastattn.tasks.sentence.folder import ModelSettings, read_folder
from fastattn.tasks.sentence.load_text import SentenceLoadArgs, StackOptions, refuse_parts
from fastattn.tasks.sentence.loading import read_processing_kwargs
from fastattn.tasks.sentence.names import cache_of, find_folder
from fastattn.tasks.sentence.pooling import Pooling
from fastattn.tasks.sentence.prompts import (
    check_prompt_name,
    check_prompts,
    merged_prompts,
    resolve_prompt,
    with_prompt,
)
from fastattn.tasks.sentence.stack import load_stack
from fastattn.tasks.sentence.text_model import Encoded, Pairs, TextTask, TextTruncation, read_token_ids
from fastattn.tasks.sentence.windows import Part, Window, WindowEncoder, batches_by_length, stream
from fastattn.tokenizer import Tokenizer, check_text, check_texts, is_list_like
from fastattn.tokenizer.inputs import read_pairs
from fastattn.tokenizer.truncation import DO_NOT_TRUNCATE

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_log = logging.getLogger("fastattn")
_JOIN = "join the texts into one"  # the advice for a list that is not a pair


class SentenceTransformer(EncodeMethods):
    """A sentence embedding model, from a folder with modules.json, a folder of model2vec or a plain transformer.

    A plain transformer gets mean pooling, or if it is a causal language model, the last token. Texts longer than
    `max_seq_length` tokens are cut, as in sentence-transformers. `model[i]` is the i-th module.
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
        model_kwargs: "dtype" is used. processor_kwargs (or tokenizer_kwargs): the settings that
        `AutoTokenizer.from_pretrained` takes are used. Other keys, and config_kwargs, are accepted if they change
        nothing. Code in a model folder never runs.
        Raises ConfigError, ModelFormatError, ModelNotFoundError, HubError, InputError, DTypeError.
        """
        refuse_parts(SentenceTransformer, options, modules, backend)
        self.similarity_fn_name = similarity_fn_name
        self.truncate_dim = truncate_dim
        given = check_prompts({} if prompts is None else prompts)
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
            cache_dir=cache_of(cache_folder, options.get("cache_dir")),
            local_files_only=check_flag("local_files_only", options.get("local_files_only", False)),
            token=one_of("token", options.get("token"), "use_auth_token", use_auth_token),
        )
        with recorded_files() as files:
            folder = read_folder(path)
            self._read(folder.settings, given, default_prompt_name)
            self._stack = load_stack(folder, stack)
        self._stamp = FolderStamp.of(path, files)

    def _read(self, settings: ModelSettings, given: Mapping[str, str | None], default_prompt_name: str | None) -> None:
        """Merge the caller's settings with those of the folder; the caller's take precedence."""
        self.prompts = merged_prompts({"query": None, "document": None, **given}, settings.prompts)
        name = settings.default_prompt_name if default_prompt_name is None else default_prompt_name
        self.default_prompt_name = check_prompt_name("default_prompt_name", name, self.prompts)
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
        return self._first.preprocess(with_prompt(prefix, texts), truncation, task)

    def tokenize(self, texts: object) -> dict[str, NDArray[Any]]:
        """Call `preprocess` without a prompt."""
        return self.preprocess(texts)

    def count_tokens(self, sentences: object) -> list[int]:
        """Count the tokens of each text before `encode` cuts it, including special tokens and the default prompt.

        Raises DTypeError, InputError.
        """
        prefix = self._resolve_prompt(None, None)
        texts = with_prompt(prefix, read_pairs("sentences", sentences, _JOIN))
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
            prompt_name=prompt_name,
            batch_size=batch_size,
            show_progress_bar=False,
            normalize_embeddings=normalize_embeddings,
            cut=cut,
        )
        return self._encode(check_texts(sentences, "sentences"), options), cut

    def encode_ids(
        self,
        token_ids: Sequence[Sequence[int]],
        *,
        batch_size: int = 32,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> NDArray[np.float32]:
        """Return the vectors [n, d] of texts that are token ids already; no special token or prompt is added.

        Raises DTypeError, InputError for ids that the model does not have, ContextLengthError.
        """
        options = EncodeOptions(
            batch_size=batch_size,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            name="token_ids",
        )
        self._check_output(SENTENCE)
        limit = len(self.tokenizer)
        if isinstance(self._first, Transformer):
            limit = self._first.auto_model.config.vocab_size
        encoded = read_token_ids(token_ids, limit, self.max_seq_length, options.where)
        found = np.zeros((len(encoded), self._stack.width), np.float32)[:, : self._width(options)]
        for batch in batches_by_length(encoded, options.batch_size):
            vectors = self._run([encoded[i] for i in batch], batch, 0, options)
            found[batch] = vectors.sentences[SENTENCE]
        return found

    def _encode(self, sentences: object, options: EncodeOptions) -> Any:
        single = not is_list_like(sentences)
        texts = [(check_text(sentences, "sentences"), None)] if single else read_pairs("sentences", sentences, _JOIN)
        self._check_output(options.output_value)
        rows = self._rows(texts, options)
        if options.output_value == "sentence_embedding":
            nothing = np.zeros((0, self._stack.width), np.float32)[:, : self._width(options)]
            return self._packed(np.stack(rows) if rows else nothing, options, single=single)
        if options.precision not in (None, "float32"):
            if options.output_value is None:
                raise InputError(f'precision: expected "float32" with output_value=None, got {options.precision!r}')
            rows = quantize_embeddings(rows, cast(Precision, options.precision))
        found = rows[0] if single else rows
        return to_tensors(found) if options.convert_to_tensor else found

    @staticmethod
    def _packed(full: NDArray[np.float32], options: EncodeOptions, *, single: bool) -> Any:
        """Return vectors [n, d] in the requested precision and container; with `single`, the first one."""
        vectors = quantize_vectors(full, options.precision)
        listed = not (options.convert_to_numpy or options.convert_to_tensor)
        found: Any = vectors[0] if single else list(vectors) if listed else vectors
        return to_tensors(found) if options.convert_to_tensor else found

    def _rows(self, texts: Pairs, options: EncodeOptions) -> list[Any]:
        """Return the requested result of each text, in order. Texts of similar length share a step."""
        prefix = self._resolve_prompt(options.prompt, options.prompt_name)
        prompt_len = self._stack.prompt_len(prefix)
        tokens = self._tokens(prefix, options)
        rows: list[Any] = [None] * len(texts)
        for batch, encoded in tokens.batches(texts, options.batch_size, show=options.show_progress_bar):
            found = self._run(encoded, batch, prompt_len, options)
            for place, i in enumerate(batch):
                if options.output_value is None:
                    rows[i] = self._all_features(encoded[place], found, place)
                else:
                    rows[i] = _row(found, options.output_value, place)
        return rows

    def _tokens(self, prefix: str, options: EncodeOptions) -> WindowEncoder:
        """Return how the texts of a call are tokenized."""
        return WindowEncoder(
            module=self._first,
            truncation=read_processing_kwargs("processing_kwargs", options.processing_kwargs, self._truncation),
            task=options.task,
            prefix=prefix,
            where=options.where,
            cut=options.cut,
        )

    def _run(self, encoded: Encoded, batch: Sequence[int], prompt_len: int, options: EncodeOptions) -> Features:
        """Return the requested features of a batch. batch: the indices of its texts."""
        where = [options.where(i) for i in batch]
        found = self._stack.run(encoded, where, prompt_len=prompt_len, output=options.output_value)
        self._finish(found, options)
        return found

    def _stream(self, parts: Iterator[Part], options: EncodeOptions, *, ahead: bool) -> Iterator[tuple[int, Rows]]:
        """Yield vectors [n, d] of texts in order, with the index of the first one. See `windows.stream`."""
        self._check_output(SENTENCE)
        prefix = self._resolve_prompt(options.prompt, options.prompt_name)
        prompt_len = self._stack.prompt_len(prefix)

        def vectors_of(window: Window) -> Rows:
            found = np.zeros((len(window.encoded), self._stack.width), np.float32)[:, : self._width(options)]
            for batch in batches_by_length(window.encoded, options.batch_size):
                places = [window.first + i for i in batch]
                encoded = [window.encoded[i] for i in batch]
                found[batch] = self._run(encoded, places, prompt_len, options).sentences[SENTENCE]
            return found

        return stream(parts, self._tokens(prefix, options), vectors_of, ahead=ahead)

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

    def _resolve_prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        """Return the text to put before each text: the prompt, the prompt with that name, or the default prompt."""
        return resolve_prompt("encode", self.prompts, self.default_prompt_name, prompt, prompt_name)

    # -- similarity ---------------------------------------------------------------------------------------------

    @property
    def similarity_fn_name(self) -> Similarity:
        """The similarity function: "cosine" unless the folder or the caller names another. Can be set."""
        return self._similarity or "cosine"

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: object) -> None:
        self._similarity = check_similarity(name)

    def similarity(self, embeddings1: object, embeddings2: object) -> Float:
        """Return scores [n_1, n_2] of vectors [n_1, d] and [n_2, d] with the model's similarity function.

        "euclidean" and "manhattan" are negative distances. A score depends only on its two vectors. Raises DTypeError,
        InputError.
        """
        return scores(self.similarity_fn_name, embeddings1, embeddings2, ("embeddings1", "embeddings2"))

    def similarity_pairwise(self, embeddings1: object, embeddings2: object) -> Float:
        """Return scores [n] of vectors [n, d] and [n, d], row by row. Raises DTypeError, InputError."""
        return pair_scores(self.similarity_fn_name, embeddings1, embeddings2, ("embeddings1", "embeddings2"))

    def close(self) -> None:
        """Free the model's memory; any later use raises InputError."""
        self._first.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _row(features: Features, name: str, place: int) -> NDArray[Any]:
    if name in features.sentences:
        return cast("NDArray[Any]", features.sentences[name][place])
    return np.asarray(features.tokens[name][place], np.float32)
