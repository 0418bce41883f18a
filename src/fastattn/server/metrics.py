"""Metrics of the server, in the format of Prometheus. No label has a value that a client chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

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
        self.new_tokens = Counter("fastattn_new_tokens", "Tokens that models generated", ["model"], registry=own)
        self.running = Gauge("fastattn_requests_running", "Requests that a model works on", ["kind"], registry=own)
        self.waiting = Gauge("fastattn_requests_waiting", "Requests that wait for a place", ["kind"], registry=own)
        Gauge("fastattn_build_info", "Version of fastattn", ["version"], registry=own).labels(version).set(1)

    def watch(self, kind: str, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Show the numbers of a queue."""
        self.running.labels(kind).set_function(running)
        self.waiting.labels(kind).set_function(waiting)

    def watch_pages(self, stats: Mapping[str, Callable[[], KvStats]]) -> None:
        """Show the pages of keys and values of each language model."""
        self.registry.register(_Pages(stats))

    def page(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self.registry)


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
