"""The pipelines "text2text-generation", "summarization" and "translation": models of an encoder and a decoder.

transformers 5 has no such pipelines any more; names and shapes are those of transformers 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.api.seq2seq_lm import Seq2SeqLM
from fastattn.checks import check_flag, check_str, quote
from fastattn.errors import InputError
from fastattn.generation.generate import seeds_of
from fastattn.generation.generate_args import GenerationArgs
from fastattn.generation.generation_config import with_defaults
from fastattn.generation.keywords import with_generation_config
from fastattn.generation.option_rules import check_unseen
from fastattn.generation.options import GenerationOptions, read_options
from fastattn.generation.prompts import encode_prompt
from fastattn.jsonfile import read_json
from fastattn.tasks.pipeline_base import Pipeline
from fastattn.tasks.pipeline_inputs import Encoding, Many, check_fits, read_encoding, read_limits, read_texts
from fastattn.tasks.pipeline_steps import Job, Part, StepLimits, run_job
from fastattn.tokenizer import Tokenizer
from fastattn.tokenizer.call import TruncationArg

if TYPE_CHECKING:
    from typing_extensions import Unpack

Ids = NDArray[np.int32]
Record = dict[str, Any]


class Text2TextArgs(GenerationArgs, total=False):
    """Arguments of a call.

    return_tensors: return ids instead of texts. truncation: cut texts that are longer than the model's limit. src_lang,
    tgt_lang: the languages of a translation, for models with tokens of languages (mBART, M2M100, NLLB). prefix: written
    before each text; None: that of the task in config.json. batch_size, max_batch_tokens, show_progress_bar: as in
    `BatchArgs`. stop_sequence: another name for stop_strings. return_type: use return_tensors.
    """

    num_return_sequences: int | None
    return_tensors: bool | None
    return_text: bool | None
    return_type: None
    stop_sequence: str | list[str] | None
    clean_up_tokenization_spaces: bool | None
    truncation: TruncationArg
    src_lang: str | None
    tgt_lang: str | None
    prefix: str | None
    batch_size: int | None
    max_batch_tokens: int | None
    num_workers: int | None
    show_progress_bar: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The checked arguments of a call. generate: those for `generate`. languages: of the source and the target."""

    options: GenerationOptions
    generate: Mapping[str, Any]
    limits: StepLimits
    encoding: Encoding
    tensors: bool
    clean_up_tokenization_spaces: bool | None
    prefix: str
    languages: tuple[str | None, str | None]


class Text2TextGenerationPipeline(Pipeline[Seq2SeqLM]):
    """Writes a text from another one. task_name: the task whose settings in config.json are the defaults."""

    task: ClassVar[str] = "text2text-generation"
    key: ClassVar[str] = "generated"

    def __init__(
        self,
        model: Seq2SeqLM,
        tokenizer: object = None,
        *,
        task_name: str | None = None,
        **defaults: Unpack[Text2TextArgs],
    ) -> None:
        super().__init__(model, tokenizer, **defaults)
        self._task_name = task_name or self.task
        self._settings = _settings_of(model, self._task_name)
        self._read({})

    @overload
    def __call__(self, inputs: str, **options: Unpack[Text2TextArgs]) -> list[Record]: ...
    @overload
    def __call__(self, inputs: Many, **options: Unpack[Text2TextArgs]) -> list[Any]: ...
    @overload
    def __call__(self, inputs: Iterator[Any], **options: Unpack[Text2TextArgs]) -> Iterator[Any]: ...
    @overload
    def __call__(self, inputs: object, **options: Unpack[Text2TextArgs]) -> list[Any] | Iterator[Any]: ...
    def __call__(self, inputs: Any, **options: Unpack[Text2TextArgs]) -> Any:
        """Return [{"generated_text": ...}] for a str: one record per returned sequence.

        A sequence of str returns one record per text, or a list of lists if num_return_sequences > 1. An iterator
        returns an iterator. The keys are generated_text, summary_text or translation_text, and with return_tensors=True
        generated_token_ids and so on. Defaults are the settings of the task in config.json (`task_specific_params`),
        then those of generation_config.json. Raises DTypeError, InputError, ContextLengthError, NonFiniteError.
        """
        call, source = self._read(options), read_texts(inputs, "inputs")
        job = _Job(self.model, self.tokenizer, call, self.key, source.total, lazy=source.lazy)
        found: Any = run_job(job, source, call.limits)
        if source.single:
            return found[0]
        if call.options.num_return_sequences > 1:
            return found
        return [records[0] for records in found] if isinstance(found, list) else (records[0] for records in found)

    def _read(self, given: Mapping[str, Any]) -> _Call:
        """Check the arguments of a call."""
        merged = self._given(given)
        tensors, text = merged.pop("return_tensors", None), merged.pop("return_text", None)
        tensors = tensors is not None and check_flag("return_tensors", tensors)
        if text is not None and check_flag("return_text", text) is tensors:
            raise InputError("return_text: expected the opposite of return_tensors, got the same; leave it out")
        if merged.pop("return_type", None) is not None:
            raise InputError("return_type: expected None, got a value; use return_tensors")
        stop = merged.pop("stop_sequence", None)
        if stop is not None:
            if merged.get("stop_strings") is not None:
                raise InputError("stop_sequence: expected None, because stop_strings means the same, got both")
            merged["stop_strings"] = stop
        clean = merged.pop("clean_up_tokenization_spaces", None)
        of_task, settings = _languages_of(self._task_name), dict(self._settings)
        prefix = merged.pop("prefix", None)
        prefix = settings.pop("prefix", None) or "" if prefix is None else check_str("prefix", prefix)
        languages = []
        for name, default in zip(("src_lang", "tgt_lang"), of_task, strict=True):
            language = merged.pop(name, None)
            languages.append(default if language is None else check_str(name, language))
        length = merged.pop("max_length", None)
        encoding = read_encoding(merged)
        if length is not None:
            merged["max_length"] = length
        limits = read_limits(merged)
        own = {**settings, **with_generation_config(merged)}
        if "max_new_tokens" in own and "max_length" not in merged:
            own.pop("max_length", None)
        check_unseen(own, ("top_logprobs", "output_scores", "output_logits"), "in a pipeline", "use model.generate")
        chosen = with_defaults(own, self.model.generation_config)
        return _Call(
            options=read_options(chosen, self.task, also=Text2TextArgs.__annotations__),
            generate=own,
            limits=limits,
            encoding=encoding,
            tensors=tensors,
            clean_up_tokenization_spaces=None if clean is None else check_flag("clean_up_tokenization_spaces", clean),
            prefix=prefix,
            languages=(languages[0], languages[1]) if languages != list(of_task) else self._known(of_task),
        )

    def _known(self, languages: tuple[str | None, str | None]) -> tuple[str | None, str | None]:
        """Return the languages in the name of the task, if the tokenizer has tokens for them."""
        known = all(name is None or _language_id(self.tokenizer, name) is not None for name in languages)
        return languages if known else (None, None)


class SummarizationPipeline(Text2TextGenerationPipeline):
    """Summarizes texts."""

    task: ClassVar[str] = "summarization"
    key: ClassVar[str] = "summary"


class TranslationPipeline(Text2TextGenerationPipeline):
    """Translates texts."""

    task: ClassVar[str] = "translation"
    key: ClassVar[str] = "translation"


class _Job(Job[str, "list[Record]", "list[Record]"]):
    """The texts that follow from each text."""

    ahead: ClassVar[bool] = False  # generation takes much longer than tokenizing

    def __init__(
        self, model: Seq2SeqLM, tokenizer: Tokenizer, call: _Call, key: str, total: int | None, *, lazy: bool
    ) -> None:
        self._model, self._tokenizer, self._call, self._key = model, tokenizer, call, key
        if lazy and not isinstance(call.options.seed, int | None):
            raise InputError("seed: expected one int for an iterator, got several; pass a list of texts")
        self._seeds = None if lazy else seeds_of(call.options, total or 0)
        self._source = None if call.languages[0] is None else _need_language(tokenizer, "src_lang", call.languages[0])
        self._generate = dict(call.generate)
        if call.languages[1] is not None:
            target = _need_language(tokenizer, "tgt_lang", call.languages[1])
            self._generate["forced_bos_token_id"] = target

    def encode(self, index: int, item: str, name: str) -> list[Part]:
        call, n_texts = self._call, self._call.options.n_requests
        cut: dict[str, Any] = {}
        limit = call.encoding.limit(self._tokenizer, self._model.encoder.program.max_positions)
        if limit is not None:
            cut = {"truncation": call.encoding.strategy, "max_length": limit}
        ids = encode_prompt(self._tokenizer, call.prefix + item, name, **cut)
        if self._source is not None:
            plain = encode_prompt(self._tokenizer, call.prefix + item, name, add_special_tokens=False)
            ids = _in_language(ids, plain, self._source)
        check_fits(self._model, self._tokenizer, ids, name)
        if self._seeds is None:
            seeds = call.options.seeds(n_texts, first=index * n_texts)
        else:
            seeds = self._seeds[index * n_texts : (index + 1) * n_texts]
        return [Part(name, ids, ids, seeds)]

    def forward(self, parts: Sequence[Part]) -> Iterable[tuple[int, Any]]:
        options = {**self._generate, "seed": [seed for part in parts for seed in part.detail]}
        mask = [np.ones(len(part.ids), np.int64) for part in parts]
        found = self._model.generate([part.ids for part in parts], attention_mask=mask, **options)
        n = len(found) // len(parts)
        return ((i, found[i * n : (i + 1) * n]) for i in range(len(parts)))

    def reduce(self, part: Part, output: Any) -> list[Record]:
        if self._call.tensors:
            return [{f"{self._key}_token_ids": ids.tolist()} for ids in output]
        clean = self._call.clean_up_tokenization_spaces
        options: dict[str, Any] = {} if clean is None else {"clean_up_tokenization_spaces": clean}
        decode = self._tokenizer.decode
        return [{f"{self._key}_text": decode(ids, skip_special_tokens=True, **options)} for ids in output]

    def finish(self, item: str, reduced: list[list[Record]]) -> list[Record]:
        return reduced[0]


def _settings_of(model: Seq2SeqLM, task: str) -> dict[str, Any]:
    """Return the settings of a task in config.json: options of generation, and the prefix of texts."""
    path = model.path / "config.json"
    config = read_json(path) if path.is_file() else {}
    tasks = config.get("task_specific_params") if isinstance(config, dict) else None
    found = tasks.get(task) if isinstance(tasks, dict) else None
    return {name: value for name, value in found.items() if value is not None} if isinstance(found, dict) else {}


def _languages_of(task: str) -> tuple[str | None, str | None]:
    """Return the languages of "translation_XX_to_YY"; None without them."""
    words = task.split("_")
    return (words[1], words[3]) if len(words) == 4 and words[0] == "translation" else (None, None)


def _language_id(tokenizer: Tokenizer, language: str) -> int | None:
    """Return the id of the token of a language: "deu_Latn", or "de" as in M2M100; None if there is none."""
    for token in (language, f"__{language}__"):
        found = tokenizer.get_vocab().get(token)
        if found is not None:
            return int(found)
    return None


def _need_language(tokenizer: Tokenizer, name: str, language: str) -> int:
    found = _language_id(tokenizer, language)
    if found is None:
        raise InputError(f"{name}: expected a language that the tokenizer has a token for, got {quote(language)}")
    return found


def _in_language(ids: Ids, plain: Ids, language: int) -> Ids:
    """Replace the token of the source language, which is at the beginning, or at the end as in mBART-25."""
    n = len(plain)
    if len(ids) == n + 2 and (ids[1:-1] == plain).all():
        return np.concatenate([[language], ids[1:]]).astype(np.int32)
    if len(ids) == n + 2 and (ids[:-2] == plain).all():
        return np.concatenate([ids[:-1], [language]]).astype(np.int32)
    raise InputError(
        "src_lang: expected a tokenizer that adds a token of the language and an end to each text, and no truncation, "
        "got another one; leave it out"
    )
