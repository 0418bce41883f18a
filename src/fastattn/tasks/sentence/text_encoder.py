"""Base classes of `SparseEncoder` and `MultiVectorEncoder`, and of the properties of `CrossEncoder`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from fastattn.api.load_args import RunArgs
from fastattn.api.load_options import check_target
from fastattn.checks import check_flag, one_of
from fastattn.tasks.sentence.encoding import TASK_PROMPTS
from fastattn.tasks.sentence.load_text import SentenceLoadArgs, StackOptions, refuse_parts
from fastattn.tasks.sentence.names import cache_of, find_folder
from fastattn.tasks.sentence.prompts import (
    check_prompt_name,
    check_prompts,
    merged_prompts,
    resolve_prompt,
    with_prompt,
)
from fastattn.tasks.sentence.text_model import TextModel, TextTask, TextTruncation
from fastattn.tokenizer import Tokenizer, check_text, is_list_like
from fastattn.tokenizer.inputs import read_pairs
from fastattn.tokenizer.truncation import DO_NOT_TRUNCATE

if TYPE_CHECKING:
    from typing_extensions import Self

_JOIN = "join the texts into one"


class EncoderLoadArgs(SentenceLoadArgs, total=False):
    """The arguments of the constructors, as in `SentenceTransformer`."""

    modules: None
    prompts: Mapping[str, str] | None
    default_prompt_name: str | None
    cache_folder: str | Path | None
    trust_remote_code: bool
    model_kwargs: Mapping[str, Any] | None
    processor_kwargs: Mapping[str, Any] | None
    tokenizer_kwargs: Mapping[str, Any] | None
    config_kwargs: Mapping[str, Any] | None
    model_card_data: object
    backend: Literal["torch"]


def read_load_args(
    kind: type, name: str | Path, options: EncoderLoadArgs, organization: str
) -> tuple[Path, StackOptions, dict[str, str | None]]:
    """Return the folder of a model, how to load its modules, and the caller's prompts.

    kind: the class, for messages. organization: the owner of short names. Raises InputError, DTypeError, HubError,
    ModelNotFoundError.
    """
    unknown = {key: value for key, value in options.items() if key not in EncoderLoadArgs.__annotations__}
    refuse_parts(kind, unknown, options.get("modules"), options.get("backend", "torch"))
    given = options.get("prompts")
    prompts = check_prompts({} if given is None else given)
    run = {key: value for key, value in options.items() if key in RunArgs.__annotations__}
    processor = options.get("processor_kwargs")
    stack = StackOptions(
        run=cast(RunArgs, {"device": "cpu", **run}),
        trust_remote_code=check_flag("trust_remote_code", options.get("trust_remote_code", False)),
        model_kwargs=options.get("model_kwargs"),
        processor_kwargs=one_of("processor_kwargs", processor, "tokenizer_kwargs", options.get("tokenizer_kwargs")),
        config_kwargs=options.get("config_kwargs"),
    )
    path = find_folder(
        name,
        revision=options.get("revision"),
        cache_dir=cache_of(options.get("cache_folder"), options.get("cache_dir")),
        local_files_only=check_flag("local_files_only", options.get("local_files_only", False)),
        token=options.get("token"),
        organization=organization,
    )
    return path, stack, prompts


class TextModelBase:
    """The base of classes with one TextModel: its properties, its tokenizer, and closing."""

    _text: TextModel[Any]
    prompts: dict[str, str]

    def __copy__(self) -> Self:
        """Return another model with the same weights; closing one does not close the other."""
        found = object.__new__(type(self))
        own = {"_text": copy.copy(self._text), "prompts": dict(self.prompts)}
        found.__dict__.update(self.__dict__ | own)
        return found

    def __deepcopy__(self, _: object) -> Self:
        return self.__copy__()

    @property
    def model(self) -> Any:
        """The transformer."""
        return self._text.auto_model

    @property
    def device(self) -> str:
        """The device that the model runs on."""
        return str(self._text.auto_model.device)

    @property
    def dtype(self) -> str:
        """The storage type of the weights."""
        return str(self._text.auto_model.dtype)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of this model, not shared with others; its `model_max_length` is `max_seq_length`.

        Can be set, also to a tokenizer of transformers or tokenizers. Raises DTypeError.
        """
        return self._text.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._text.tokenizer = copy.copy(Tokenizer.from_object(tokenizer))

    @property
    def max_seq_length(self) -> int:
        """The maximum number of tokens of a text, including special tokens; longer texts are cut.

        Can be set to any value from the number of special tokens to the model's context, or to None for the context.
        """
        return self._text.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None:
        self._text.max_seq_length = length

    def get_max_seq_length(self) -> int:
        """Return `max_seq_length`."""
        return self.max_seq_length

    def eval(self) -> Self:
        """Return the model itself: it never trains."""
        return self

    def to(self, device: Any) -> Self:
        """Return the model itself if it has that device or dtype. Raises InputError for others."""
        check_target(device, self.device, self.dtype)
        return self

    def close(self) -> None:
        """Free the model's memory; any later use raises InputError."""
        self._text.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TextEncoder(TextModelBase):
    """A transformer with a tokenizer and prompts for tasks."""

    default_prompt_name: str | None

    def _set_prompts(
        self, given: Mapping[str, str | None], saved: Mapping[str, str | None], name: str | None, saved_name: str | None
    ) -> None:
        """Merge the caller's prompts with those of the folder; the caller's take precedence."""
        self.prompts = merged_prompts({"query": None, "document": None, **given}, saved)
        self.default_prompt_name = check_prompt_name(
            "default_prompt_name", saved_name if name is None else name, self.prompts
        )

    def count_tokens(self, inputs: object) -> list[int]:
        """Count the tokens of each text before it is cut, including special tokens and the default prompt.

        Raises DTypeError, InputError.
        """
        prefix = self._prefix(None, None)
        texts = with_prompt(prefix, read_pairs("inputs", inputs, _JOIN))
        return [len(ids) for ids, _ in self._text.encode(texts, TextTruncation(DO_NOT_TRUNCATE), None)]

    def _prefix(self, prompt: str | None, prompt_name: str | None) -> str:
        return resolve_prompt("encode", self.prompts, self.default_prompt_name, prompt, prompt_name)

    def _prompt_of(self, task: TextTask) -> str | None:
        """Return the name of the default prompt of a task, if there is one."""
        return next((name for name in TASK_PROMPTS[task] if name in self.prompts), None)

    @staticmethod
    def _texts(inputs: object) -> tuple[list[tuple[str, str | None]], bool]:
        """Return the texts and pairs, and whether the input is a single text."""
        if not is_list_like(inputs):
            return [(check_text(inputs, "inputs"), None)], True
        return list(read_pairs("inputs", inputs, _JOIN)), False

    def _of_task(self, task: TextTask, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of `encode` for a task: those given, and the task's default prompt."""
        given = {**options, "task": task}
        if options.get("prompt") is None and options.get("prompt_name") is None:
            given["prompt_name"] = self._prompt_of(task)
        return given
