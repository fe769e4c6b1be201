"""The stage of the stock-client journeys, set once for all of them, and cleared before each test."""

from collections.abc import Iterator

import pytest

from tests.journeys.stock_clients import SILENCE_SECONDS, stage
from tests.support.process import Gateway
from tests.support.standins import Standins, running_standins


@pytest.fixture(scope="package")
def stage_standins() -> Iterator[Standins]:
    with running_standins(slow=SILENCE_SECONDS) as standins:
        yield standins


@pytest.fixture(scope="package")
def stage_gateway(stage_standins: Standins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with stage(stage_standins, tmp_path_factory.mktemp("stage")) as gateway:
        yield gateway


@pytest.fixture
def standins(stage_standins: Standins) -> Standins:
    """The stand-ins behind `gateway`, with no request remembered."""
    stage_standins.forget()
    return stage_standins


@pytest.fixture
def gateway(stage_gateway: Gateway, standins: Standins) -> Gateway:
    """A real gateway process in front of the stand-ins."""
    return stage_gateway
