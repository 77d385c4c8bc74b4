"""What a policy server counts, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# From a small policy on a robot's CPU to a large one on a busy machine.
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)


class ServerMetrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.clients = Gauge("vla_clients", "Connected clients", registry=registry)
        self.turned_away = Counter(
            "vla_turned_away", "Connections refused", ["reason"], registry=registry
        )
        self.requests = Counter("vla_requests", "Answered requests", ["outcome"], registry=registry)
        self.inference = Histogram(
            "vla_inference_seconds", "Decisions", buckets=_SECONDS, registry=registry
        )
        self.request = Histogram(
            "vla_request_seconds",
            "From a request's arrival until its reply was sent",
            buckets=_SECONDS,
            registry=registry,
        )
        self._registry = registry

    def text(self) -> str:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry).decode()
