"""Errors that a client gets: their status, and their shape in OpenAI's API and in that of Text Embeddings Inference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastattn.errors import (
    ConfigError,
    ContextLengthError,
    DTypeError,
    FastattnError,
    InputError,
    NonFiniteError,
    OutOfMemory,
)

Shape = Literal["openai", "tei"]
_NAME = re.compile(r"([A-Za-z_]+)[\[\].\w ]*:")
_OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_TEI_TYPES = {429: "overloaded", 503: "unhealthy", 424: "backend", 500: "backend", 504: "backend"}
# What clients call the options that an error of the library may name.
_FIELDS = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
    "stop_strings": "stop",
    "json_schema": "response_format",
}


@dataclass(eq=False)
class Problem(Exception):
    """An error with a status. param: the field of the request that it is about. code: a short word for programs."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, shape: Shape) -> dict[str, Any]:
        """Return the body of the response."""
        if shape == "tei":
            return {"error": self.message, "error_type": _TEI_TYPES.get(self.status, "validation")}
        kind = _OPENAI_TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ClientGone(Exception):
    """The client closed its connection."""


def problem_of(error: BaseException) -> Problem:
    """Return what the client is told about an error of the library. For other errors, it is told only the kind."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ContextLengthError):
        return Problem(400, str(error), _param_of(error), "context_length_exceeded")
    if isinstance(error, (InputError, DTypeError)):
        return Problem(400, _renamed(str(error)), _param_of(error), "invalid_value")
    if isinstance(error, ConfigError):
        return Problem(400, str(error), None, "unsupported_by_model")
    if isinstance(error, OutOfMemory) and str(error).startswith("kv_cache_bytes"):
        return Problem(400, "the text is longer than the memory for keys and values of this server", None, "too_large")
    if isinstance(error, MemoryError):
        return Problem(503, "the server has too little memory for this request", None, "out_of_memory")
    if isinstance(error, NonFiniteError):
        return Problem(500, "the model computed numbers that are not finite", None, "not_finite")
    kind = type(error).__name__ if isinstance(error, FastattnError) else "internal error"
    return Problem(500, f"the request failed: {kind}", None, "internal_error")


def unprocessable(problem: Problem) -> Problem:
    """Return a problem with the status that Text Embeddings Inference has for it."""
    if problem.code == "context_length_exceeded":
        status = 413
    elif problem.status == 400 and problem.code in ("invalid_value", "unknown_field", "unsupported_by_model"):
        status = 422
    elif problem.status == 500 and problem.code == "not_finite":
        status = 424
    else:
        return problem
    return Problem(status, problem.message, problem.param, problem.code, problem.headers)


def _param_of(error: Exception) -> str | None:
    found = _NAME.match(str(error))
    return None if found is None else _FIELDS.get(found[1], found[1])


def _renamed(message: str) -> str:
    found = _NAME.match(message)
    if found is None or found[1] not in _FIELDS:
        return message
    return _FIELDS[found[1]] + message[found.end(1) :]
