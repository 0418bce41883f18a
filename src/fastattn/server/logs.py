"""Logs of the server: one JSON object per line on standard error. No line has a prompt, a text or a key."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
import uuid
from collections.abc import Mapping
from typing import Any

log = logging.getLogger("fastattn.server")
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


def request_id(given: str | None) -> str:
    """Return the id of a request: the client's if it is a short word, else a new one."""
    return given if given is not None and _ID.fullmatch(given) else uuid.uuid4().hex


def event(name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with its fields."""
    log.log(level, name, extra={"fields": fields})


def places_of(error: BaseException) -> list[str]:
    """Return the function and line of each frame of a traceback. A message could contain a text, so it is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames[-12:]]


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time, level, event, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **fields,
        }
        if record.name != log.name:
            line["logger"] = record.name
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = type(record.exc_info[1]).__name__
            line["places"] = places_of(record.exc_info[1])
        return json.dumps(line, ensure_ascii=True, default=str)


def configure(level: str) -> None:
    """Write the logs of fastattn, uvicorn and asyncio as JSON lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, lowest in (("fastattn", logging.NOTSET), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(max(lowest, getattr(logging, level.upper())))
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers[:] = [handler]
    logging.getLogger("py.warnings").propagate = False
