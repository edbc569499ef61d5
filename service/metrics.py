"""/metrics: what the job store adds up to, read from the database when it is scraped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.store import Store
from taumerge.schemas import JobKind, JobState

__all__ = ["exposition"]


def exposition(store: Store) -> bytes:
    """The metrics in Prometheus' text format. The database counts, so every replica answers the same."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_JobCollector(store))
    return generate_latest(registry)


class _JobCollector(Collector):
    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        counts = self._store.count_jobs()
        jobs = GaugeMetricFamily("taumerge_jobs", "Jobs by kind and state.", labels=["kind", "state"])
        for kind in get_args(JobKind):
            for state in get_args(JobState):
                jobs.add_metric([kind, state], counts.get((kind, state), 0))
        yield jobs
        queued = sum(count for (_, state), count in counts.items() if state == "queued")
        yield GaugeMetricFamily("taumerge_queue_depth", "Jobs that wait for a runner.", value=queued)

        totals = self._store.totals()
        for name, family in _families().items():
            for (counted, label), value in sorted(totals.items()):
                if counted == name:
                    family.add_metric([label] if label else [], value)
            yield family


def _families() -> dict[str, CounterMetricFamily | GaugeMetricFamily]:
    """What ``Store.totals`` counts, under the names that it uses."""
    return {
        "bytes": CounterMetricFamily("taumerge_merge_bytes", "Tensor bytes of merges.", labels=["direction"]),
        "seconds": CounterMetricFamily("taumerge_merge_seconds", "Wall time of merges.", labels=["phase"]),
        "retries": CounterMetricFamily(
            "taumerge_retries", "Attempts after a job's first, which lost its process.", labels=["kind"]
        ),
        "lease_losses": CounterMetricFamily(
            "taumerge_lease_losses", "Jobs taken from a runner that gave no sign of life."
        ),
        "resident_bytes": GaugeMetricFamily(
            "taumerge_resident_bytes", "Bytes of checkpoints that the shard workers keep, as last seen."
        ),
    }
