"""`CrossEncoder`: scores pairs of texts and ranks documents, with the model folders of sentence-transformers."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

import numpy as np

from fastattn.api.encoders import Encoder, SequenceClassifier
from fastattn.api.load_args import RunArgs
from fastattn.checks import check_count, check_flag, check_neutral, check_number, one_of, quote
from fastattn.errors import DTypeError, InputError
from fastattn.models.labels import MAX_LABELS
from fastattn.tasks.finite import check_finite
from fastattn.tasks.rerank.activations import Activation, read_activation
from fastattn.tasks.rerank.folder import RerankFolder, read_rerank_folder
from fastattn.tasks.rerank.inputs import read_pair_inputs, read_query
from fastattn.tasks.rerank.options import OLD_KEYWORDS, OLD_RANK_KEYWORDS, PredictOptions
from fastattn.tasks.rerank.scorers import load_scorer
from fastattn.tasks.search.vectors import Rows
from fastattn.tasks.sentence.encoding import check_place, to_tensors
from fastattn.tasks.sentence.load_text import SentenceLoadArgs, StackOptions, refuse_parts
from fastattn.tasks.sentence.loading import read_processing_kwargs
from fastattn.tasks.sentence.names import cache_of, find_folder
from fastattn.tasks.sentence.prompts import (
    check_prompt_name,
    check_prompts,
    merged_prompts,
    resolve_prompt,
    with_prompt,
)
from fastattn.tasks.sentence.text_encoder import TextModelBase
from fastattn.tasks.sentence.text_model import Pairs, TextTruncation
from fastattn.tasks.sentence.windows import Part, Window, WindowEncoder, batches_by_length, stream
from fastattn.tasks.softmax import softmax
from fastattn.tokenizer.truncation import DO_NOT_TRUNCATE

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

ORGANIZATION = "cross-encoder"  # the owner of short names on the hub
_log = logging.getLogger("fastattn")


class OldArgs(TypedDict, total=False):
    """Older names of arguments.

    model_name means model_name_or_path, automodel_args means model_kwargs, tokenizer_kwargs and tokenizer_args mean
    processor_kwargs, config_args means config_kwargs, and default_activation_function means activation_fn.
    classifier_dropout changes nothing.
    """

    model_name: str | Path | None
    automodel_args: Mapping[str, Any] | None
    tokenizer_kwargs: Mapping[str, Any] | None
    tokenizer_args: Mapping[str, Any] | None
    config_args: Mapping[str, Any] | None
    default_activation_function: object
    classifier_dropout: float | None


class CrossEncoderLoadArgs(SentenceLoadArgs, OldArgs, total=False):
    """More keyword arguments of `CrossEncoder`: those for loading, and older names."""


class _Ranked(TypedDict):
    corpus_id: int
    score: float


class Ranked(_Ranked, total=False):
    """A document of `rank`: its place in the list of documents, its score, and its text if requested."""

    text: str


class CrossEncoder(TextModelBase):
    """A model that reads two texts together and scores them: a reranker, or a classifier of pairs.

    It is loaded from a folder with a classification head, or with a modules.json of sentence-transformers. Pairs longer
    than `max_seq_length` tokens are cut, as in sentence-transformers. A score depends only on its own pair, bit for
    bit. `close` or a `with` block frees the memory.
    """

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        modules: None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | Path | None = None,
        trust_remote_code: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        model_card_data: object = None,
        backend: Literal["torch"] = "torch",
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: object = None,
        keep_in_fp32_modules: list[str] | None = None,
        **options: Unpack[CrossEncoderLoadArgs],
    ) -> None:
        """Load a folder or a hub id; a name without an owner gets the owner "cross-encoder".

        num_labels: None is the number in config.json, or 1 if the model is not a classifier. max_length: the maximum
        number of tokens of a pair. activation_fn: applied to the logits: the name of a class of torch.nn ("Sigmoid"), a
        torch module, or a function that gets the logits of one pair, an array [1, num_labels], and returns its scores.
        None uses the folder's function; without one, a sigmoid for one label and no function for several.
        prompts, model_kwargs, processor_kwargs, cache_folder, dtype, device, threads and the others: as in
        `SentenceTransformer`. config_kwargs: "num_labels" is used. keep_in_fp32_modules: changes nothing with float32.
        Raises ConfigError, ModelFormatError, ModelNotFoundError, HubError, InputError, DTypeError.
        """
        refuse_parts(CrossEncoder, options, modules, backend, CrossEncoderLoadArgs)
        check_flag("trust_remote_code", trust_remote_code)
        old: dict[str, Any] = {name: options.get(name) for name in OldArgs.__annotations__}
        name = "default_activation_function"
        function = one_of("activation_fn", activation_fn, name, old[name])
        given = None if function is None else read_activation("activation_fn", function)
        texts = check_prompts({} if prompts is None else prompts)
        _check_dropout("classifier_dropout", old["classifier_dropout"])
        kwargs = one_of("config_kwargs", config_kwargs, "config_args", old["config_args"])
        count, config = _num_labels(num_labels, kwargs)
        processor = one_of("processor_kwargs", processor_kwargs, "tokenizer_kwargs", old["tokenizer_kwargs"])
        run = {name: value for name, value in options.items() if name in RunArgs.__annotations__}
        stack = StackOptions(
            run=cast(RunArgs, {"device": "cpu", **run}),
            trust_remote_code=trust_remote_code,
            model_kwargs=one_of("model_kwargs", model_kwargs, "automodel_args", old["automodel_args"]),
            processor_kwargs=one_of("processor_kwargs", processor, "tokenizer_args", old["tokenizer_args"]),
            config_kwargs=config,
        )
        source = one_of("model_name_or_path", model_name_or_path, "model_name", old["model_name"])
        folder = read_rerank_folder(_find(source, cache_folder, options), trust_remote_code=trust_remote_code)
        self.prompts = merged_prompts(texts, folder.prompts)
        chosen = folder.default_prompt_name if default_prompt_name is None else default_prompt_name
        self.default_prompt_name = check_prompt_name("default_prompt_name", chosen, self.prompts)
        self._scorer = load_scorer(folder, stack, count)
        try:
            self._finish(folder, max_length, given, keep_in_fp32_modules)
        except BaseException:
            self.close()
            raise

    def _finish(
        self, folder: RerankFolder, max_length: int | None, activation: Activation | None, fp32_modules: object
    ) -> None:
        """Apply the caller's settings to the loaded model."""
        self._text = self._scorer.text
        if max_length is not None:
            text = self._text
            text.max_seq_length = check_count("max_length", max_length, low=max(1, text.n_special), high=text.context)
        default = Activation("Sigmoid" if self.num_labels == 1 else "Identity")
        self._activation = activation or folder.activation or default
        _check_fp32(fp32_modules, folder.fp32_modules, self.dtype)

    def __repr__(self) -> str:
        return f"<CrossEncoder of {self.model!r}, {self.num_labels} labels, {self.max_seq_length} tokens>"

    def __copy__(self) -> Self:
        """Return another model with the same weights; closing one does not close the other."""
        found, scorer = object.__new__(type(self)), copy.copy(self._scorer)
        own = {"_scorer": scorer, "_text": scorer.text, "prompts": dict(self.prompts)}
        found.__dict__.update(self.__dict__ | own)
        return found

    # -- properties -------------------------------------------------------------------------------------------------

    @property
    def model(self) -> SequenceClassifier | Encoder:
        """The model: with the classification head, or the encoder before other modules."""
        return cast("SequenceClassifier | Encoder", self._text.auto_model)

    @property
    def num_labels(self) -> int:
        """The number of scores of a pair."""
        return self._scorer.num_labels

    max_length = TextModelBase.max_seq_length

    @property
    def activation_fn(self) -> Activation:
        """The function that turns logits into scores. Can be set as in the constructor."""
        return self._activation

    @activation_fn.setter
    def activation_fn(self, function: object) -> None:
        self._activation = read_activation("activation_fn", function)

    default_activation_function = activation_fn

    # -- scores -------------------------------------------------------------------------------------------------------

    def predict(
        self,
        inputs: object = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: object = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: object = None,
        pool: None = None,
        chunk_size: int | None = None,
        *,
        sentences: object = None,
        activation_fct: object = None,
        processing_kwargs: Mapping[str, Any] | None = None,
        **old: Any,
    ) -> Any:
        """Return the scores of pairs, in order: float32 [n], or [n, num_labels] for several labels.

        inputs (or sentences): a pair of texts, or a sequence or an iterator of pairs, or an array [n, 2]. One pair
        returns one score, or [num_labels]. prompt, or the entry prompt_name of `prompts`: put before the first text of
        each pair. activation_fn (or activation_fct): for this call. apply_softmax: apply a softmax over several
        labels to the scores. convert_to_numpy=False: return a list. convert_to_tensor: return a torch tensor; torch
        must be imported. batch_size: the maximum number of pairs in one step; pairs of similar length share one. It
        changes no score. show_progress_bar, processing_kwargs, device, pool, chunk_size: as in
        `SentenceTransformer.encode`. Raises DTypeError, InputError, and NonFiniteError if a score is NaN or infinite.
        """
        check_neutral(old, OLD_KEYWORDS, "predict", _PREDICT_NAMES)
        options = PredictOptions(
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            activation_fn=one_of("activation_fn", activation_fn, "activation_fct", activation_fct),
            apply_softmax=apply_softmax,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            processing_kwargs=processing_kwargs,
        )
        check_place(self.device, device, pool, chunk_size)
        name = "inputs" if sentences is None else "sentences"
        pairs, single = read_pair_inputs(name, one_of("inputs", inputs, "sentences", sentences))
        scores = self._scores(pairs, options, [name] if single else [f"{name}[{i}]" for i in range(len(pairs))])
        found: Any = scores[:, 0] if self.num_labels == 1 else scores
        if single:
            found = found[0]
        if options.convert_to_tensor:
            return to_tensors(np.asarray(found))
        return found if options.convert_to_numpy or single else list(found)

    def predict_with_cuts(self, inputs: object, *, batch_size: int = 32) -> tuple[Rows, dict[int, int]]:
        """Call `predict` for a sequence of pairs. Return the scores and the cuts.

        The scores are float32 [n_pairs, num_labels]; the cuts are the remaining tokens of cut pairs, by index. Raises
        what `predict` raises.
        """
        pairs, single = read_pair_inputs("inputs", inputs)
        cut: dict[int, int] = {}
        where = ["inputs"] if single else [f"inputs[{i}]" for i in range(len(pairs))]
        return self._scores(pairs, PredictOptions(batch_size=batch_size, show_progress_bar=False, cut=cut), where), cut

    def rank(
        self,
        query: str,
        documents: object,
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: object = None,
        device: object = None,
        pool: None = None,
        chunk_size: int | None = None,
        *,
        activation_fct: object = None,
        **old: Any,
    ) -> list[Ranked]:
        """Return the documents for a query, the highest score first: [{"corpus_id", "score"}, ...].

        Equal scores are ordered by corpus_id. top_k: the number of results, None for all. return_documents: add
        "text". The others: as in `predict`. Raises DTypeError, NonFiniteError, and InputError, also for a model with
        several labels.
        """
        check_neutral(old, OLD_RANK_KEYWORDS, "rank", _RANK_NAMES)
        if self.num_labels != 1:
            raise InputError(f"rank: expected a model with one label, got {self.num_labels}; call predict with pairs")
        options = PredictOptions(
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            activation_fn=one_of("activation_fn", activation_fn, "activation_fct", activation_fct),
        )
        check_place(self.device, device, pool, chunk_size)
        count = None if top_k is None else check_count("top_k", top_k)
        with_text = check_flag("return_documents", return_documents)
        pairs, texts = read_query(query, documents)
        scores = self._scores(pairs, options, [f"documents[{i}]" for i in range(len(pairs))])[:, 0]
        found: list[Ranked] = []
        for i in np.argsort(-scores, kind="stable")[:count].tolist():
            entry: Ranked = {"corpus_id": i, "score": float(scores[i])}
            found.append({**entry, "text": texts[i]} if with_text else entry)
        return found

    def count_tokens(self, inputs: object) -> list[int]:
        """Count the tokens of each pair before `predict` cuts it, including special tokens and the default prompt.

        Raises DTypeError, InputError.
        """
        pairs, _ = read_pair_inputs("inputs", inputs)
        texts = with_prompt(self._prefix(None, None), pairs)
        return [len(ids) for ids, _ in self._scorer.text.encode(texts, TextTruncation(DO_NOT_TRUNCATE), None)]

    def _stream(
        self, parts: Iterator[Part], *, batch_size: int, where: Callable[[int], str], ahead: bool
    ) -> Iterator[tuple[int, Rows]]:
        """Yield logits [n, num_labels] of pairs in order, with the index of the first one. See `windows.stream`.

        where: returns the name of a pair in messages.
        """
        prefix = self._prefix(None, None)
        text = self._scorer.text

        def logits_of(window: Window) -> Rows:
            found = np.zeros((len(window.encoded), self.num_labels), np.float32)
            for batch in batches_by_length(window.encoded, batch_size):
                names = [where(window.first + i) for i in batch]
                found[batch] = self._scorer.logits([window.encoded[i] for i in batch], names, prefix)
            for i, row in enumerate(found, window.first):
                check_finite(row, where(i), "scores")
            return found

        tokens = WindowEncoder(module=text, truncation=text.truncation, task=None, prefix=prefix, where=where)
        return stream(parts, tokens, logits_of, ahead=ahead)

    def _prefix(self, prompt: str | None, prompt_name: str | None) -> str:
        return resolve_prompt("predict", self.prompts, self.default_prompt_name, prompt, prompt_name)

    def _scores(self, pairs: Pairs, options: PredictOptions, where: list[str]) -> Rows:
        """Return the scores of checked pairs, [n, num_labels]. where: their names in messages."""
        prefix = self._prefix(options.prompt, options.prompt_name)
        text = self._scorer.text
        truncation = read_processing_kwargs("processing_kwargs", options.processing_kwargs, text.truncation)
        tokens = WindowEncoder(
            module=text, truncation=truncation, task=None, prefix=prefix, where=where.__getitem__, cut=options.cut
        )
        logits = np.zeros((len(pairs), self.num_labels), np.float32)
        for batch, encoded in tokens.batches(pairs, options.batch_size, show=options.show_progress_bar):
            logits[batch] = self._scorer.logits(encoded, [where[i] for i in batch], prefix)
        scores = (options.activation_fn or self._activation)(logits)
        if options.apply_softmax and self.num_labels > 1:
            scores = softmax(scores).astype(np.float32)
        for row, name in zip(scores, where, strict=True):
            check_finite(row, name, "scores")
        return scores


def _find(source: str | Path, cache_folder: str | Path | None, options: CrossEncoderLoadArgs) -> Path:
    """Return the local folder of a model."""
    return find_folder(
        source,
        revision=options.get("revision"),
        cache_dir=cache_of(cache_folder, options.get("cache_dir")),
        local_files_only=check_flag("local_files_only", options.get("local_files_only", False)),
        token=options.get("token"),
        organization=ORGANIZATION,
    )


def _names_of(method: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(method).parameters)[1:-1]  # without self and old


_PREDICT_NAMES, _RANK_NAMES = _names_of(CrossEncoder.predict), _names_of(CrossEncoder.rank)


def _num_labels(given: int | None, config_kwargs: object) -> tuple[int | None, object]:
    """Return the number of labels from the argument or from config_kwargs, and the rest of config_kwargs."""
    rest = dict(config_kwargs) if isinstance(config_kwargs, Mapping) else config_kwargs
    if isinstance(rest, dict):
        inside = rest.pop("num_labels", None)
        if None not in (given, inside) and given != inside:
            raise InputError(f"num_labels: expected one value, got {quote(given)} and {quote(inside)} in config_kwargs")
        given = inside if given is None else given
        _check_dropout("config_kwargs: classifier_dropout", rest.pop("classifier_dropout", None))
    return (None if given is None else check_count("num_labels", given, low=1, high=MAX_LABELS)), rest


def _check_dropout(name: str, value: object) -> None:
    """Check a setting that matters only for training."""
    if value is not None:
        check_number(name, value, low=0, high=1)


def _check_fp32(given: object, saved: tuple[str, ...], dtype: str) -> None:
    """Check keep_in_fp32_modules: with float32 weights, everything is computed in float32."""
    if given is not None and not (isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given)):
        raise DTypeError(f"keep_in_fp32_modules: expected a list of names, got {type(given).__name__}")
    if dtype == "float32":
        return
    if given:
        raise InputError(f"keep_in_fp32_modules: expected [] with dtype={dtype!r}, got {quote(given)}; use float32")
    if given is None and saved:
        _log.warning("keep_in_fp32_modules of the folder is not used: %s is stored in %s", quote(list(saved)), dtype)
