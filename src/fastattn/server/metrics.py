"""Metrics of the server, in the format of Prometheus. No label has a value that a client chooses."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from fastattn.generation.page_plan import KvStats

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """The metrics of one server."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        ProcessCollector(registry=own)
        self.requests = Counter("fastattn_requests", "Requests, by route and status", ["route", "status"], registry=own)
        self.errors = Counter(
            "fastattn_errors", "Requests that failed, by route and reason", ["route", "reason"], registry=own
        )
        self.seconds = Histogram(
            "fastattn_request_seconds", "Time until a response ended", ["route"], buckets=_SECONDS, registry=own
        )
        self.first_token_seconds = Histogram(
            "fastattn_first_token_seconds",
            "Time until the first piece of a stream",
            ["model"],
            buckets=_SECONDS,
            registry=own,
        )
        self.prompt_tokens = Counter("fastattn_prompt_tokens", "Tokens that models read", ["model"], registry=own)
        self.new_tokens = NewTokens()
        own.register(self.new_tokens)
        self.running = Gauge("fastattn_requests_running", "Requests that a model works on", ["kind"], registry=own)
        self.waiting = Gauge("fastattn_requests_waiting", "Requests that wait for a place", ["kind"], registry=own)
        self.limit = Gauge("fastattn_requests_limit", "Requests that may run at a time", ["kind"], registry=own)
        Gauge("fastattn_build_info", "Version of fastattn", ["version"], registry=own).labels(version).set(1)

    def watch(self, kind: str, running: Callable[[], int], waiting: Callable[[], int], limit: int) -> None:
        """Show the numbers of a queue. limit: of running requests."""
        self.limit.labels(kind).set(limit)
        self.running.labels(kind).set_function(running)
        self.waiting.labels(kind).set_function(waiting)

    def watch_pages(self, stats: Mapping[str, Callable[[], KvStats]]) -> None:
        """Show the pages of keys and values, and the new tokens, of each language model."""
        self.new_tokens.add(stats)
        self.registry.register(_Pages(stats))

    def page(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self.registry)


class NewTokens:
    """Counts the tokens of texts as they are generated, not when they end. Only for one event loop."""

    def __init__(self) -> None:
        self._ended: Counts[str] = Counts()
        self._running: dict[object, tuple[str, Callable[[], int]]] = {}
        self._shown: dict[str, int] = {}

    def add(self, models: Iterable[str]) -> None:
        """Show models that have generated nothing."""
        self._shown |= dict.fromkeys(models, 0)

    @contextmanager
    def growing(self, model: str, n_new: Callable[[], int]) -> Iterator[None]:
        """Count the tokens of a request during the block. n_new: how many it has so far."""
        key = object()
        self._running[key] = (model, n_new)
        try:
            yield
        finally:
            del self._running[key]
            self._ended[model] += n_new()

    def describe(self) -> list[Metric]:
        """Let the registry learn the name when it collects."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return the numbers. They never decrease, although a text may lose tokens of a stop string."""
        found = self._ended.copy()
        for model, n_new in self._running.values():
            found[model] += n_new()
        family = CounterMetricFamily("fastattn_new_tokens", "Tokens that models generated", labels=["model"])
        for model in self._shown:
            self._shown[model] = max(self._shown[model], found[model])
            family.add_metric([model], self._shown[model])
        yield family


class _Pages:
    def __init__(self, stats: Mapping[str, Callable[[], KvStats]]) -> None:
        self._stats = stats

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        families = {
            "in_use": GaugeMetricFamily("fastattn_kv_pages_in_use", "Pages of running texts", labels=["model"]),
            "idle": GaugeMetricFamily("fastattn_kv_pages_idle", "Pages kept for later texts", labels=["model"]),
            "limit": GaugeMetricFamily("fastattn_kv_pages_limit", "Pages that may exist", labels=["model"]),
        }
        for model, read in self._stats.items():
            stats = read()
            for name, family in families.items():
                value = getattr(stats, name)
                if value is not None:
                    family.add_metric([model], value)
        yield from families.values()
