"""The metrics of an app, read by Prometheus's own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from ppio_agent.serving.metrics import METRICS_TYPE
from tests.serving.support import Http

__all__ = ["Scraped", "parse"]

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> Values:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Scraped:
    """The metrics of a server at one moment."""

    def __init__(self, http: Http, **headers: str) -> None:
        answer = http.get("/metrics", **headers)
        assert answer.status == 200
        assert answer.headers["content-type"] == METRICS_TYPE
        self.values = parse(answer.body.decode())

    def __call__(self, name: str, **labels: str) -> float:
        return self.values["ppio_agent_" + name, tuple(sorted(labels.items()))]
