"""The base of models that generate tokens: their engine, and the defaults of `generate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastattn.api.model import Model
from fastattn.api.reload import Origin, Shared
from fastattn.checks import quote
from fastattn.errors import InputError
from fastattn.generation.engine import Engine
from fastattn.generation.page_plan import IDLE_BYTES, default_limit_bytes
from fastattn.graph.executor import Executor
from fastattn.graph.kinds import LoraAdapter
from fastattn.models.registry import BuiltModel


class GeneratingModel(Model):
    """A model whose calls of `generate` share one engine."""

    def __init__(
        self,
        directory: Path,
        built: BuiltModel,
        executor: Executor,
        *,
        origin: Origin | None = None,
        shared: Shared | None = None,
    ) -> None:
        super().__init__(directory, built, executor, origin=origin, shared=shared)
        self._engines: dict[int, Engine] = {}  # one, from the first call on

    @property
    def engine(self) -> Engine:
        """The engine that runs the `generate` and `stream` calls of all threads and tasks."""
        engine = self._engines.get(0)
        if engine is None:  # no lock, as in Model: of two threads, the first one's engine is used
            limit, idle = None if self._origin is None else self._origin.options.kv_cache_bytes, IDLE_BYTES
            if limit is not None:
                idle = limit
            elif self.device == "cpu":
                limit = default_limit_bytes()
            engine = self._engines.setdefault(0, Engine(self.executor, kv_bytes=limit, idle_bytes=idle))
        return engine

    def find_adapter(self, name: str) -> LoraAdapter:
        """Return a loaded adapter; a model without `load_adapter` has none. Raises InputError."""
        raise InputError(f"adapter_name: expected None for a {type(self).__name__}, got {quote(name)}")

    def close(self) -> None:
        """Free the memory; any later use raises InputError. Copies stay open."""
        super().close()
        for engine in self._engines.values():
            engine.close()

    @property
    def pad_token_id(self) -> int | None:
        """The token that `generate` uses for padding."""
        return self.config.generation_pad_token_id

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """The options in generation_config.json, or else in config.json: the defaults of `generate` and `stream`."""
        return MappingProxyType(dict(self._origin.generation)) if self._origin is not None else {}
