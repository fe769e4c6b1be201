"""The stand-in for a Parallax cluster inside a test.

with running_parallax(scale=0.01) as cluster:
    cluster.standin.will("node-dies")
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deploy.demo.parallax_like import ParallaxStandin
from tests.support.in_a_thread import in_a_thread


@dataclass(frozen=True)
class Cluster:
    """The stand-in and its URL, which has no path: targets of the parallax kind take it as it is, clients add `/v1`."""

    standin: ParallaxStandin
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def running_parallax(**options: Any) -> Iterator[Cluster]:
    """Serves until the end of the block. `options` are those of `ParallaxStandin`."""
    standin = ParallaxStandin(**options)
    with in_a_thread(standin, "parallax stand-in") as url:
        yield Cluster(standin, url)
