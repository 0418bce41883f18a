"""Classes for `ray.data.Dataset.map_batches`, and a Ray Serve application. Needs the extra `ray`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

try:
    import ray
except ModuleNotFoundError as error:
    raise ImportError('fastattn.ray: expected the package ray, found none; run pip install "fastattn[ray]"') from error

from fastattn.errors import InputError
from fastattn.tasks.columns import ClassifyTexts, EmbedTexts, GenerateTexts, TextWork, open_work
from fastattn.tasks.parts import to_arrays, to_arrow, write_part

if TYPE_CHECKING:
    from fastattn.server.exchange import Receive, Send
    from fastattn.server.options import ServeOptions

__all__ = ["ClassifyUDF", "EmbedUDF", "GenerateUDF", "serve_app", "write_part"]

_Batch = TypeVar("_Batch")


class _TextUDF:
    """A class for `map_batches`: each actor loads the model once, with as many threads as it has CPUs.

    column: the column of texts. options: those of `work`. The result is the batch with the columns of the work and
    `error`, in the same order. With batch_format="numpy" (a dict of arrays), a failed text has NaN as its vector or
    score and "" as its label or generated text, and the error of the others is "". With batch_format="pyarrow" (a
    Table), these are nulls. Raises what the work raises, and InputError for a missing column.
    """

    work: ClassVar[type[TextWork]]

    def __init__(self, column: str = "text", **options: Any) -> None:
        work = self.work(**options)
        self._work = work if work.threads is not None else replace(work, threads=_assigned_cpus())
        self._column = column
        open_work(self._work)

    def __call__(self, batch: _Batch) -> _Batch:
        names = list(batch) if isinstance(batch, Mapping) else getattr(batch, "column_names", None)
        if names is None:
            raise InputError(f"batch_format: expected 'numpy' or 'pyarrow', got a {type(batch).__name__}")
        if self._column not in names:
            raise InputError(f"column: expected one of {', '.join(names)}, got {self._column!r:.80}")
        table: Any = batch
        if isinstance(batch, Mapping):
            found = to_arrays(self._work(table[self._column]), self._work)
            return cast("_Batch", {**batch, **found})
        for name, array in to_arrow(self._work(table[self._column].to_pylist()), self._work).items():
            table = table.drop_columns([name]) if name in table.column_names else table
            table = table.append_column(name, array)
        return cast("_Batch", table)


class EmbedUDF(_TextUDF):
    """Adds the column `embedding` to batches. Options: those of `EmbedTexts`."""

    work = EmbedTexts


class ClassifyUDF(_TextUDF):
    """Adds the columns `label` and `score` to batches. Options: those of `ClassifyTexts`."""

    work = ClassifyTexts


class GenerateUDF(_TextUDF):
    """Adds the column `generated_text` to batches. Options: those of `GenerateTexts`."""

    work = GenerateTexts


def _assigned_cpus() -> int | None:
    """Return the CPUs of this actor, at least 1; None outside of Ray's workers."""
    if not ray.is_initialized():
        return None
    found = ray.get_runtime_context().get_assigned_resources().get("CPU")
    return None if found is None else max(1, int(found))


def serve_app(
    *models: str | Mapping[str, Any],
    load: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    **deployment: Any,
) -> Any:
    """Return a Ray Serve application with the routes of `fastattn serve`. Pass it to `ray.serve.run`.

    models: "DIR" or "NAME=DIR" with folders or hub ids that every node can read, or tables of the settings file, such
    as {"path": DIR, "name": NAME, "kind": "embed"}; without any, the two demo models. load: loading options, such as
    {"dtype": "int8"}; threads is the replica's `num_cpus` if it is not set. settings: other settings of the server.
    deployment: options of `ray.serve.deployment`, such as autoscaling_config, num_replicas, max_ongoing_requests or
    ray_actor_options. API keys come from FASTATTN_SERVE_API_KEY in the environment of the replicas, or from the setting
    api_key_file. Without keys, only requests for loopback names and `allowed_hosts` are answered. The model itself
    batches requests, so `serve.batch` is not needed. Raises ConfigError, InputError, DTypeError.
    """
    from ray import serve

    from fastattn.server.options import ModelSpec, ServeOptions
    from fastattn.server.settings import parse_model

    specs = tuple(parse_model(model) if isinstance(model, str) else ModelSpec(**model) for model in models)
    options = ServeOptions(**{**(settings or {}), "models": specs})
    loading = dict(load or {})

    def build() -> _Replica:
        return _Replica(options, loading)

    class FastattnServer:
        """Answers requests with the application that a replica builds."""

    ingress: Any = serve.ingress(build)(FastattnServer)
    return serve.deployment(**{"name": "fastattn", **deployment})(ingress).bind()


class _Replica:
    """The ASGI application of a replica: the server's, below the route prefix of the Serve application."""

    def __init__(self, options: ServeOptions, load: Mapping[str, Any]) -> None:
        from fastattn.server.app import App
        from fastattn.server.models import load_models
        from fastattn.server.settings import check_exposure, read_keys

        keys = read_keys(options, os.environ)
        check_exposure(options, keys)
        loading = {**load, "threads": load.get("threads") or _assigned_cpus()}
        self._app = App(
            options, load_models(options.models, loading, options.adapters), keys, version=version("fastattn")
        )

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, or the messages of Ray Serve about the start and the end of the replica."""
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self._app.drain(self._app.options.drain_timeout_s)
            self._app.close()
            await send({"type": "lifespan.shutdown.complete"})
            return
        prefix = scope.get("root_path", "").rstrip("/")
        if prefix and scope["path"].startswith(f"{prefix}/"):
            scope = {**scope, "path": scope["path"][len(prefix) :]}
        await self._app.asgi(scope, receive, send)
