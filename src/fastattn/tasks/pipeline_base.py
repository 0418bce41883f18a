"""What all pipelines share."""

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
    """A model with its tokenizer, called with texts.

    It copies, pickles and works in other processes as its model does: see `Model`. `predict` and `transform` are other
    names of a call, as scikit-learn has them.
    """

    task: ClassVar[str]
    model: ModelType
    tokenizer: Tokenizer
    __call__: Callable[..., Any]

    def __init__(self, model: ModelType, tokenizer: object = None, **defaults: Any) -> None:
        """defaults: arguments of a call that count where the call does not name them."""
        self.model = model
        self.tokenizer = need_tokenizer(model, self.task) if tokenizer is None else Tokenizer.from_object(tokenizer)
        self._defaults: Mapping[str, Any] = defaults

    @property
    def device(self) -> str:
        """Where the model runs."""
        return self.model.device

    @property
    def dtype(self) -> str:
        """How the model's weights are stored."""
        return self.model.dtype

    torch_dtype = dtype

    def predict(self, X: Any) -> Any:
        """The same as a call."""
        return self(X)

    def transform(self, X: Any) -> Any:
        """The same as a call."""
        return self(X)

    def close(self) -> None:
        """Free the model's memory, also that of a model that was passed in loaded."""
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.model!r}>"

    def _merged(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call on top of the pipeline's own; None leaves those as they are."""
        return {**self._defaults, **{name: value for name, value in options.items() if value is not None}}


def check_model(model: object, expected: type[ModelType]) -> ModelType:
    """A loaded model of the right kind. Raises DTypeError."""
    if isinstance(model, expected):
        return model
    hint = ""
    if type(model).__module__.startswith("transformers."):
        hint = "; pass the folder that its save_pretrained writes"
    raise DTypeError(
        f"model: expected a path, a hub id or a loaded {expected.__name__}, got {type(model).__name__}{hint}"
    )
