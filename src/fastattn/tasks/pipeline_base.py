"""The base class of all pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from fastattn.api.model import Model
from fastattn.errors import DTypeError
from fastattn.generation.prompts import need_tokenizer
from fastattn.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self

ModelType = TypeVar("ModelType", bound=Model)


class Pipeline(Generic[ModelType]):
    """A model and its tokenizer, called with texts.

    Like its model, it can be copied, pickled and sent to other processes: see `Model`. `predict` and `transform` are
    aliases of a call, for scikit-learn.
    """

    task: ClassVar[str]
    model: ModelType
    tokenizer: Tokenizer
    __call__: Callable[..., Any]

    def __init__(self, model: ModelType, tokenizer: object = None, **defaults: Any) -> None:
        """Store the defaults: arguments for calls that do not set them."""
        self.model = model
        self.tokenizer = need_tokenizer(model, self.task) if tokenizer is None else Tokenizer.from_object(tokenizer)
        self._defaults: Mapping[str, Any] = defaults

    @property
    def device(self) -> str:
        """The device that the model runs on."""
        return self.model.device

    @property
    def dtype(self) -> str:
        """The storage type of the model's weights."""
        return self.model.dtype

    torch_dtype = dtype

    def predict(self, X: Any) -> Any:
        """Call the pipeline."""
        return self(X)

    def transform(self, X: Any) -> Any:
        """Call the pipeline."""
        return self(X)

    def close(self) -> None:
        """Free the model's memory, even if the model was passed in already loaded."""
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.model!r}>"

    def _merged(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the pipeline's defaults, replaced by those arguments of a call that are not None."""
        return {**self._defaults, **_given(options)}

    def _given(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the same without defaults that are None, for pipelines in which None is never a value."""
        return _given(self._merged(options))


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def check_model(model: object, expected: type[ModelType]) -> ModelType:
    """Return the model if it is of the right kind. Raises DTypeError."""
    if isinstance(model, expected):
        return model
    hint = ""
    if type(model).__module__.startswith("transformers."):
        hint = "; pass the folder that its save_pretrained writes"
    raise DTypeError(
        f"model: expected a path, a hub id or a loaded {expected.__name__}, got {type(model).__name__}{hint}"
    )
