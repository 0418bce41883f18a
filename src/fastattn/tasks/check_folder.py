"""Checks a model folder without loading the model: is it intact and safe, what would load, what is used or ignored?"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastattn.checkpoint import Checkpoint, TensorInfo
from fastattn.checkpoint.checkpoint import read_generation_config
from fastattn.checkpoint.digests import file_digest, known_digests
from fastattn.checkpoint.file_names import GENERATION_NAME
from fastattn.checkpoint.locate import find_model
from fastattn.checks import quote
from fastattn.errors import ConfigError, FastattnError
from fastattn.files import FileSet, SourceFile, recorded_files
from fastattn.generation.generation_config import APPLIED, read_defaults, unapplied
from fastattn.models.adapters import open_with_adapter
from fastattn.models.registry import BuiltModel, warn_of_unused
from fastattn.models.tasks import TASKS, Task
from fastattn.settings import Settings, recorded_settings
from fastattn.tasks.folder_files import FileEntry, list_files
from fastattn.tasks.main_task import trace_tasks
from fastattn.tasks.multi.folder import MODEL_TYPE as MULTI_VECTOR_TYPE
from fastattn.tasks.multi.folder import PYLATE_TYPE, read_multi_vector_folder
from fastattn.tasks.rerank.folder import is_cross_encoder, read_rerank_folder
from fastattn.tasks.rerank.scorers import check_last, check_scores
from fastattn.tasks.sentence.encoders import read_static_embedding
from fastattn.tasks.sentence.features import TOKENS, Widths
from fastattn.tasks.sentence.files import read_settings
from fastattn.tasks.sentence.folder import (
    FEATURES,
    MODEL2VEC,
    MODULES_NAME,
    SCORES,
    SETTINGS_NAME,
    ModelFolder,
    ModelSettings,
    ModuleEntry,
    check_no_adapter,
    read_folder,
    read_transformer_settings,
)
from fastattn.tasks.sentence.load_text import StackOptions
from fastattn.tasks.sentence.model2vec import read_model2vec
from fastattn.tasks.sentence.stack import read_module
from fastattn.tasks.sparse.splade import MODEL_TYPE as SPARSE_TYPE
from fastattn.tasks.sparse.splade import read_sparse_folder
from fastattn.tokenizer import has_tokenizer, load_tokenizer

SettingUse = Literal["used", "no effect", "ignored"]
_GENERATION_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ADDED_KEY = "generation_pad_token_id"  # `read_config` adds it
_MAX_NONFINITE = 20


@dataclass(frozen=True, slots=True)
class SettingEntry:
    """A setting of a file. use: "used", "no effect" (known, but it changes nothing here), or "ignored" (unknown)."""

    file: str
    key: str
    use: SettingUse


@dataclass(frozen=True, slots=True)
class LoadableTask:
    """A task that the folder has all weights for. pipeline: None if the task has no pipeline."""

    task: Task
    auto_class: str
    pipeline: str | None


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What the weights and config.json say.

    n_parameters: of the main task's model; tied weights count once. stored_dtypes: bytes of the tensors by their dtype
    in the files, in llama.cpp's names for a GGUF file; a folder of `fastattn quantize` has its dtype instead. context:
    the longest text in tokens.
    """

    model_type: str
    n_parameters: int
    stored_dtypes: Mapping[str, int]
    num_hidden_layers: int
    hidden_size: int
    vocab_size: int
    context: int


@dataclass(frozen=True, slots=True, repr=False)
class FolderReport:
    """The result of `check_folder`.

    problems: why the folder does not load, or gives wrong results; empty if it is fine. warnings: what fastattn would
    log while loading. tasks: the main one, which `architectures` of config.json names, comes first.
    sentence_transformer, cross_encoder, sparse_encoder, multi_vector_encoder: whether this class can load the folder.
    digests: names of the weight files whose SHA-256 was compared with a known one. tokenizer: its class and
    number of tokens.
    """

    path: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    tasks: tuple[LoadableTask, ...]
    sentence_transformer: bool
    cross_encoder: bool
    sparse_encoder: bool
    multi_vector_encoder: bool
    model: ModelSummary | None
    tokenizer: str | None
    digests: tuple[str, ...]
    files: tuple[FileEntry, ...]
    settings: tuple[SettingEntry, ...]

    @property
    def ok(self) -> bool:
        """Whether the folder loads and no problem was found."""
        return not self.problems

    def __repr__(self) -> str:
        return f"<FolderReport of {quote(self.path)}: {'ok' if self.ok else f'{len(self.problems)} problems'}>"


def check_folder(
    path_or_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> FolderReport:
    """Check a model folder, GGUF file or hub id: headers, settings, tokenizer, digests, and that weights are finite.

    Reads every float weight once and needs memory for one tensor at a time; the numbers of a folder of `fastattn
    quantize` are not checked. Nothing is executed. Problems are reported, not raised.
    revision, cache_dir, local_files_only, token: for hub ids.
    Raises ModelNotFoundError and HubError for a folder that does not exist, InputError and DTypeError for the
    arguments.
    """
    directory = find_model(
        path_or_id, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
    )
    check = _Check(directory)
    with recorded_settings() as settings, recorded_files() as files, _collected_warnings() as warnings:
        check.run()
    return FolderReport(
        path=os.fspath(path_or_id),
        problems=tuple(dict.fromkeys(check.problems)),
        warnings=tuple(dict.fromkeys(warnings)),
        tasks=check.tasks,
        sentence_transformer=check.sentence_transformer,
        cross_encoder=check.cross_encoder,
        sparse_encoder=check.sparse_encoder,
        multi_vector_encoder=check.multi_vector_encoder,
        model=check.model,
        tokenizer=check.tokenizer,
        digests=tuple(check.digests),
        files=list_files(directory, files),
        settings=(*_setting_entries(settings, directory), *check.generation),
    )


class _Check:
    """Collects the results of the checks of one folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.problems: list[str] = []
        self.tasks: tuple[LoadableTask, ...] = ()
        self.sentence_transformer = self.cross_encoder = False
        self.sparse_encoder = self.multi_vector_encoder = False
        self._reranks = False
        self.model: ModelSummary | None = None
        self.tokenizer: str | None = None
        self.digests: list[str] = []
        self.generation: tuple[SettingEntry, ...] = ()

    def run(self) -> None:
        if self.directory.is_file():  # GGUF
            self._tokenizer(self.directory)
            self._checkpoint(self.directory)
            return
        kind = self._kind()
        if kind == SPARSE_TYPE:
            self._sparse()
        elif kind in (MULTI_VECTOR_TYPE, PYLATE_TYPE):
            self._multi_vector()
        elif kind == MODEL2VEC:
            with self._problems():
                embedding, _ = read_model2vec(self.directory)
                self.tokenizer = f"tokenizers.Tokenizer, {len(embedding.tokenizer)} tokens"
                self.sentence_transformer = True
        else:
            self._sentence_or_plain()

    def _kind(self) -> object:
        """Return model_type of config_sentence_transformers.json, or "model2vec"; None for a plain transformer."""
        with self._problems():
            if not (self.directory / MODULES_NAME).exists():
                kind = read_settings(self.directory / "config.json").values.get("model_type")
                return kind if kind == MODEL2VEC else None
            return read_settings(self.directory / SETTINGS_NAME).values.get("model_type")
        return None

    def _sparse(self) -> None:
        with self._problems():
            folder = read_sparse_folder(self.directory)
            check_no_adapter(folder.path)
            self._tokenizer(folder.path)
            self._checkpoint(folder.path)
            self._need_tokenizer(folder.path)
            self.sparse_encoder = any(task.task == "masked-lm" for task in self.tasks)
            if not self.sparse_encoder:
                raise ConfigError(f"{folder.path}: expected the head of a masked language model, found none")

    def _multi_vector(self) -> None:
        with self._problems():
            folder = read_multi_vector_folder(self.directory, StackOptions(run={}))
            check_no_adapter(folder.path)
            self._tokenizer(folder.path)
            built = self._checkpoint(folder.path)
            self._need_tokenizer(folder.path)
            if built is not None:
                widths = Widths()
                widths.put(TOKENS, "tokens", built.config.hidden_size)
                for module in folder.modules:
                    module.check(widths)
                self.multi_vector_encoder = True

    def _sentence_or_plain(self) -> None:
        sentence = self._sentence_folder() if (self.directory / MODULES_NAME).exists() else None
        first = sentence.entries[0] if sentence is not None and sentence.entries else None
        inner = self.directory if first is None else first.folder
        self._tokenizer(inner)
        widths = Widths()
        if first is not None and first.kind == "StaticEmbedding":  # it has no config.json and no transformer
            with self._problems():
                read_static_embedding(inner).start(widths)
        else:
            built = self._checkpoint(inner)
            if built is not None:
                widths.put(TOKENS, "tokens", built.config.hidden_size)
        if sentence is not None and sentence.entries and widths.known:
            self._modules(sentence, widths)

    @contextmanager
    def _problems(self) -> Iterator[None]:
        """Record an error as a problem."""
        try:
            yield
        except (FastattnError, OSError) as error:
            self.problems.append(str(error))

    def _checkpoint(self, directory: Path) -> BuiltModel | None:
        with self._problems(), open_with_adapter(directory) as checkpoint:
            built = self._build(checkpoint)
            self._compare_digests(directory, checkpoint)
            if checkpoint.quantized is None:
                for bad in checkpoint.find_nonfinite()[:_MAX_NONFINITE]:
                    where = f"{quote(bad.tensor)[1:-1]}{list(bad.index)}"
                    self.problems.append(f"{directory}: {where} = {bad.value}, one of {bad.count} that are not finite")
            return built
        return None

    def _build(self, checkpoint: Checkpoint) -> BuiltModel | None:
        """Trace every task of the family; return the model of the main one."""
        traced = trace_tasks(checkpoint)
        if traced.problem:
            self.problems.append(traced.problem)
        self.tasks = tuple(LoadableTask(task, TASKS[task].auto_class, TASKS[task].pipeline) for task in traced.models)
        built = next(iter(traced.models.values()), None)
        if built is None:
            return None
        warn_of_unused(checkpoint.config, built, checkpoint.path)
        if built.task == "causal-lm":
            read_defaults(checkpoint.path, checkpoint.config)
            self.generation = _generation_entries(read_generation_config(checkpoint.path))
        self.model = _summary(checkpoint, built)
        return built

    def _compare_digests(self, directory: Path, checkpoint: Checkpoint) -> None:
        weights: list[SourceFile] = [checkpoint.files.open(path) for path in checkpoint.weight_files]
        with FileSet() as others:
            known = known_digests(directory.parent if directory.is_file() else directory, weights, others)
        for source in weights:
            expected = known.get(source.path.name)
            if expected is None:
                continue
            self.digests.append(source.path.name)
            found = file_digest(source)
            if found != expected.lower():
                self.problems.append(f"{source.path}: expected SHA-256 {expected.lower()}, got {found}")

    def _tokenizer(self, directory: Path) -> None:
        with self._problems():
            if not has_tokenizer(directory):
                return
            tokenizer = load_tokenizer(directory)
            self.tokenizer = f"{tokenizer.options.class_name or 'tokenizers.Tokenizer'}, {len(tokenizer)} tokens"

    def _sentence_folder(self) -> ModelFolder | None:
        with self._problems():
            self._reranks = is_cross_encoder(self.directory)
            if self._reranks:
                entries = read_rerank_folder(self.directory, trust_remote_code=False).entries
                return ModelFolder(self.directory, entries, ModelSettings({}))
            return read_folder(self.directory)
        return None

    def _modules(self, folder: ModelFolder, widths: Widths) -> None:
        """Read the settings and weights of the modules after the first one."""
        options = StackOptions(run={})
        with self._problems():
            first, *rest = folder.entries or ()
            if first.kind == "Transformer":
                check_no_adapter(first.folder)
                tasks = (FEATURES, SCORES) if self._reranks else (FEATURES,)
                if read_transformer_settings(first.folder, tasks).task is SCORES:
                    self._classifier(rest)
                    return
            for entry in rest:
                module = read_module(entry, options)
                try:
                    module.check(widths)
                except ConfigError as error:
                    raise ConfigError(f"{folder.path / MODULES_NAME}: {error}") from None
            self._need_tokenizer(first.folder)
            if self._reranks:
                check_scores(widths, folder.path / MODULES_NAME)
            self.cross_encoder, self.sentence_transformer = self._reranks, not self._reranks

    def _classifier(self, rest: Sequence[ModuleEntry]) -> None:
        """Check that a cross-encoder has a classification head, and no module after it."""
        check_last(rest, self.directory / MODULES_NAME)
        self._need_tokenizer(self.directory)
        self.cross_encoder = any(task.task == "sequence-classification" for task in self.tasks)
        if not self.cross_encoder:
            raise ConfigError(f"{self.directory}: expected the classification head of a cross-encoder, found none")

    def _need_tokenizer(self, where: Path) -> None:
        if self.tokenizer is None:
            raise ConfigError(f"{where}: expected a tokenizer in the model folder, found none that loads")


def _summary(checkpoint: Checkpoint, built: BuiltModel) -> ModelSummary:
    stored: dict[str, int] = dict(checkpoint.gguf_bytes)
    if checkpoint.quantized is None:
        for info in checkpoint.tensors.values():
            if isinstance(info, TensorInfo) and not checkpoint.gguf_bytes:
                stored[info.dtype] = stored.get(info.dtype, 0) + info.nbytes
    else:
        pieces = [piece for weight in checkpoint.quantized.weights.values() for piece in weight.pieces]
        stored[checkpoint.quantized.dtype] = sum(getattr(piece, "nbytes", 0) for piece in pieces)
    config = built.config
    return ModelSummary(
        model_type=config.model_type,
        n_parameters=sum(math.prod(weight.shape) for weight in built.traced.weights.values()),
        stored_dtypes=stored,
        num_hidden_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context=built.program.max_positions,
    )


def _generation_entries(options: Mapping[str, object]) -> tuple[SettingEntry, ...]:
    """Return the use of every option of generation_config.json."""
    ignored = unapplied(options)
    entries = []
    for key in sorted(key for key, value in options.items() if value is not None):
        used = key in _GENERATION_IDS or (key in APPLIED and key not in ignored)
        use: SettingUse = "used" if used else "ignored" if key in ignored else "no effect"
        entries.append(SettingEntry(GENERATION_NAME, key, use))
    return tuple(entries)


def _setting_entries(recorded: Sequence[Settings], directory: Path) -> tuple[SettingEntry, ...]:
    """Return the use of every setting of the files that were read to the end."""
    root = f"{os.path.abspath(directory)}{os.sep}"
    uses: dict[tuple[str, str], SettingUse] = {}
    complete = {settings.where for settings in recorded if settings.finished}
    for settings in recorded:
        if settings.where not in complete:
            continue
        where = settings.where.removeprefix(root).removeprefix(f"{directory}{os.sep}")
        where = re.sub(r"^config\.json of [^:]+", "config.json", where)
        unused = set(settings.unused())
        for key, value in settings.values.items():
            if value is None or key == _ADDED_KEY:
                continue
            file, _, part = where.partition(": ")  # part: of a file with several objects, such as "module 0"
            place = (file, f"{part}: {key}" if part else key)
            before = uses.get(place)
            if key in settings.read or before == "used":
                uses[place] = "used"
            elif settings.finished:
                uses[place] = "ignored" if key in unused else "no effect"
    return tuple(SettingEntry(*place, use) for place, use in sorted(uses.items()))


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect what this thread logs, instead of logging it."""
    log, thread, found = logging.getLogger("fastattn"), threading.get_ident(), list[str]()

    def collect(record: logging.LogRecord) -> bool:
        if record.thread != thread or record.levelno < logging.WARNING:
            return True
        found.append(record.getMessage())
        return False

    log.addFilter(collect)
    try:
        yield found
    finally:
        log.removeFilter(collect)
