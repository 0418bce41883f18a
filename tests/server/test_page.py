"""The page at /: one file that loads nothing from elsewhere, with a policy that lets only its script run."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from fastattn.server.routes import ROUTES
from tests.server.live import Live
from tests.server.test_limits import eventually


@pytest.fixture(scope="module")
def response(server: Live) -> httpx.Response:
    with server.client() as client:
        return client.get("/")


def test_the_policy_has_the_hashes_of_its_parts(response: httpx.Response) -> None:
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    for tag in ("script", "style"):
        [body] = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "connect-src 'self'" in policy
    assert "default-src 'none'" in policy


def test_it_loads_nothing_from_elsewhere(response: httpx.Response) -> None:
    text = response.text
    assert "//" not in re.sub(r"<!.*?>", "", text)
    assert re.findall(r"\b(?:src|href)=.*?>", text) == ['href="data:,">']  # no request for an icon
    assert not re.search(r"@import|url\(|innerHTML|\bon\w+=\"", text)
    assert set(re.findall(r'ask\("([^"]+)"', text)) <= set(ROUTES)


def test_every_field_has_a_label(response: httpx.Response) -> None:
    text = response.text.partition("<script>")[0]
    fields = re.findall(r"<(?:textarea|input|select)\b", text)
    labels = re.findall(r"<label>.*?<(?:textarea|input|select)\b.*?</label>", text, re.DOTALL)
    assert len(labels) == len(fields) > 8
    assert '<html lang="en">' in text
    assert "color-scheme: light dark" in text
    for section in re.findall(r'<section[^>]*aria-labelledby="([^"]+)"', text):
        assert f'<h2 id="{section}">' in text


def test_the_metrics_that_it_shows_exist(server: Live, response: httpx.Response) -> None:
    with server.client() as client:
        client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
        client.post("/v1/completions", json={"prompt": "a", "max_tokens": "x"})
        names = re.findall(r'sum\("([^"]+)"', response.text)
        assert len(names) == 11
        for name in names:
            pattern = re.compile(rf"^{name}[{{ ]", re.MULTILINE)
            eventually(lambda pattern=pattern: pattern.search(client.get("/metrics").text), name)


def test_its_script_is_valid(response: httpx.Response, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    (tmp_path / "page.js").write_text(response.text.partition("<script>")[2].partition("</script>")[0])
    subprocess.run([node, "--check", str(tmp_path / "page.js")], check=True, timeout=60)
