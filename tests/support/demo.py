"""The demonstration's configuration on free ports, in front of stand-ins on free ports: for examples of the manual."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from deploy.demo.tool_like import tool_standin
from tests.support.in_a_thread import in_a_thread
from tests.support.parallax import running_parallax
from tests.support.process import ROOT, Gateway, serving
from tests.support.standins import ANTHROPIC_KEY, OPENAI_KEY, running_standins


@contextmanager
def demonstration(folder: Path) -> Iterator[Gateway]:
    examples = ROOT / "config" / "examples"
    config = yaml.safe_load((examples / "demo.yaml").read_text(encoding="utf-8"))
    config["listen"]["port"] = config["admin"]["listen"]["port"] = 0
    config["policy"]["paths"] = [str((examples / path).resolve()) for path in config["policy"]["paths"]]
    (crm,) = config["tools"]
    with (
        running_standins() as standins,
        running_parallax(scale=0.01) as cluster,
        in_a_thread(tool_standin(crm["key"]), "tool stand-in") as tickets,
    ):
        crm.update(url=tickets, openapi=str(examples / crm["openapi"]))
        (openai, anthropic, parallax) = config["targets"]
        parallax.update(url=cluster.url)
        openai.update(url=f"{standins.openai_url}/v1", key=OPENAI_KEY)
        anthropic.update(url=standins.anthropic_url, key=ANTHROPIC_KEY)
        with serving(config, folder) as gateway:
            yield gateway
