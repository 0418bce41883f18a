"""The page at / in Chromium: every form, with the keyboard, names for screen readers, contrast, and errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.browser import CHROMIUM, Page, browser
from tests.server.live import Live

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

# For each text color of the page, the lowest contrast ratio with its background (WCAG 2.2).
CONTRAST = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const paint = (colors) => {
    canvas.fillStyle = dark ? "#121212" : "#fff";
    canvas.fillRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const shows = own || ["INPUT", "TEXTAREA"].includes(one.tagName);
    if (!shows || !one.checkVisibility() || one.tagName === "SCRIPT") continue;
    const below = [];
    for (let at = one; at; at = at.parentElement) below.unshift(getComputedStyle(at).backgroundColor);
    const [a, b] = [paint([...below, getComputedStyle(one).color]), paint(below)];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.tagName + " " + one.className]);
  }
  return found.sort((a, b) => a[0] - b[0])[0];
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, server: Live) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        found.go(server.url)
        found.wait("!document.querySelector('main').hidden && document.querySelectorAll('#metrics tr').length")
        yield found
        assert found.problems == []


def output(page: Page, form: str, word: str) -> str:
    """Wait until the output of a form has a word; return it."""
    place = f"document.querySelector('#{form} output').innerText"
    return str(page.wait(f"{place}.includes('{word}') && {place}"))


def test_a_text_with_the_keyboard_alone(page: Page) -> None:
    page.eval("document.activeElement.blur()")
    page.eval("document.querySelector('#generate form').elements.max_tokens.value = 12")
    seen = []
    while "Start" not in seen:
        page.press("Tab")
        assert page.eval("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        seen.append(
            page.eval(
                "(document.activeElement.labels || [])[0]?.firstChild.data.trim() || document.activeElement.innerText"
            )
        )
        assert len(seen) < 10
    assert seen == ["API key, if the server needs one", "Text", "Model", "New tokens", "Temperature", "Seed", "Start"]
    page.press("Enter")
    assert output(page, "generate", "ended").startswith("The text ended after 12 tokens")
    page.press("Tab")
    page.press("ArrowRight")
    page.press("Enter")
    one = page.eval("document.activeElement.getAttribute('aria-label')")
    assert one == page.eval("document.querySelectorAll('.token')[1].getAttribute('aria-label')")
    assert page.eval("document.querySelectorAll('[aria-selected=true]').length") == 1
    word, _, probability = one.rpartition(", ")
    assert f"{word} had a probability of {probability}" in page.eval("document.querySelector('#others').innerText")
    assert page.eval("document.querySelectorAll('#others tr').length") == 5
    page.press("Tab")
    assert page.eval("document.activeElement.name") == "first"  # the tokens are one tab stop


def test_the_text_is_that_of_the_server(page: Page, server: Live) -> None:
    with server.client() as client:
        body = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0.8, "seed": 1}
        expected = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert page.eval("[...document.querySelectorAll('.token')].map((one) => one.textContent).join('')") == expected


def test_start_becomes_stop(page: Page) -> None:
    page.eval("document.querySelector('#generate form').elements.max_tokens.value = 200")
    page.eval("document.querySelector('#generate button').click()")
    page.wait("document.querySelector('#generate button').innerText === 'Stop'")
    page.eval("document.querySelector('#generate button').click()")
    assert output(page, "generate", "Stopped") == "Stopped."
    page.wait("document.querySelector('#generate button').innerText === 'Start'")


def test_compare_and_classify(page: Page) -> None:
    page.eval("document.querySelector('#embed button').click()")
    assert output(page, "embed", "0.8046").startswith("Cosine similarity 0.8046")
    page.eval("document.querySelector('#classify button').click()")
    assert output(page, "classify", "NEGATIVE").split() == ["POSITIVE", "99.8", "%", "NEGATIVE", "0.2", "%"]


def test_attention_in_a_frame_without_rights(page: Page) -> None:
    page.eval("document.querySelector('#attention form').elements.text.value = 'the <b>old</b> house'")
    page.eval("document.querySelector('#attention button').click()")
    output(page, "attention", "below")
    assert page.eval("document.querySelector('iframe').sandbox.value") == "allow-scripts"
    assert page.eval("document.querySelector('iframe').contentDocument") is None
    text = page.eval("document.querySelector('iframe').srcdoc")
    assert "&lt;" in text
    assert "<b>old" not in text
    # Its script runs, and another head changes the text.
    page.eval_in_frame("document.querySelectorAll('.heads input')[5].click()")
    page.eval_in_frame("new Promise((resolve) => setTimeout(resolve, 500))")
    assert page.eval_in_frame("document.querySelector('.where').innerText") == "layer 1, head 1"
    assert page.eval_in_frame("getComputedStyle(document.body).marginTop") == "0px"  # and its style
    assert page.eval_in_frame("document.querySelector('[role=option]').style.length") == 1


def test_names_for_screen_readers(page: Page) -> None:
    names = page.names()
    for role, name in [
        ("region", "Continue a text"),
        ("textbox", "First text"),
        ("spinbutton", "New tokens"),
        ("button", "Compare"),
        ("listbox", "New text"),
        ("table", "Server"),
        ("Iframe", "Picture of attention"),
    ]:
        assert (role, name) in names
    unnamed = [
        role for role, name in names if role in ("button", "textbox", "spinbutton", "combobox", "option") and not name
    ]
    assert unnamed == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_narrow_screens(page: Page, scheme: str) -> None:
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.send("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=False)
    ratio, place = page.eval(CONTRAST)
    assert ratio >= 4.5, place
    assert page.eval("document.documentElement.scrollWidth") <= 360
    assert page.eval("document.getAnimations().length") == 0


def test_errors_are_shown(page: Page) -> None:
    page.eval("document.querySelector('#generate form').elements.max_tokens.value = 100000")
    page.eval("document.querySelector('#generate button').click()")
    assert "expected at most 256 tokens" in output(page, "generate", "expected")
    assert page.eval("document.querySelector('#generate output').className") == "error"
    status = page.problems.pop()
    assert "400" in status
    page.send("Network.enable")
    page.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
    page.eval("document.querySelector('#classify button').click()")
    assert output(page, "classify", "answer") == "the server does not answer"
    page.wait("document.querySelector('#offline').innerText.includes('does not answer')")
    page.send("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.wait("!document.querySelector('#offline').innerText")
    assert all("ERR_INTERNET_DISCONNECTED" in problem for problem in page.problems)
    page.problems.clear()
