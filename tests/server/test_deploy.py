"""The files in deploy/ are valid, and their settings exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fastattn.cli.arguments import build_parser
from fastattn.server.routes import ROUTES
from fastattn.server.settings import read_settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def documents(name: str) -> list[Any]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def test_the_settings_file() -> None:
    options = read_settings({}, {}, config=str(DEPLOY / "serve.toml"))
    assert [model.name for model in options.models] == ["gpt2", "all-MiniLM-L6-v2"]


def test_compose() -> None:
    [service] = documents("compose.yaml")[0]["services"].values()
    options = read_settings({}, {}, config=str(DEPLOY / "serve.toml"))
    assert int(service["stop_grace_period"].removesuffix("s")) > options.drain_timeout_s
    build_parser()[1]["serve"].parse_args(service["command"])


def test_kubernetes() -> None:
    found = {document["kind"]: document for document in documents("kubernetes.yaml")}
    assert set(found) == {"Deployment", "Service", "PodDisruptionBudget"}
    pod = found["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    build_parser()[1]["serve"].parse_args(container["args"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in ROUTES
    options = read_settings({}, {}, config=str(DEPLOY / "serve.toml"))
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > options.drain_timeout_s + pause
    assert pod["enableServiceLinks"] is False


def test_the_image() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    variables = dict(re.findall(r"(FASTATTN_SERVE_\w+)=(\S+)", text))
    assert read_settings({}, variables).host == "0.0.0.0"
    assert 'ENTRYPOINT ["fastattn", "serve"]' in text
    assert re.search(r"127\.0\.0\.1:8000(/\w+)", text)[1] in ROUTES  # type: ignore[index]


def test_keys_are_not_sent_to_the_builder() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    found = documents("compose.yaml")[0]
    outside = [secret["file"] for secret in found["secrets"].values()]
    outside += [volume.partition(":")[0] for volume in found["services"]["fastattn"]["volumes"] if "../" in volume]
    assert outside
    assert {path.removeprefix("../") for path in outside} <= set(ignored)
