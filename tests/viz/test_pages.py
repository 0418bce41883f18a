"""Pages are single files that load nothing, show any text as text, and can be read without scripts and by everybody."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ElementTree
import zlib
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.tasks.demo import demo_model
from fastattn.viz import Picture
from fastattn.viz.drawing import DARK, LIGHT, clip, columns, stylesheet
from fastattn.viz.maps import gamma, png, small
from fastattn.viz.pieces import read_pieces, visible

ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></svg></table><iframe src=//example.org>",
    "--><!-- ]]> &lt;b&gt; &#60;i&#62;",
    "javascript:alert(1) {{7*7}} ${7*7} \u202e\u0000\x1b[0m",
)
VOID = {"img", "input", "meta"}
LEAST = 4.5  # WCAG 2.2, contrast (minimum), level AA


class Page(HTMLParser):
    """The tags, attributes and text of a page; every tag must be closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def lm() -> Any:
    return fa.AutoModelForCausalLM.from_pretrained(demo_model("text-generation"))


@pytest.fixture(scope="module")
def st() -> Any:
    return fa.SentenceTransformer(demo_model("text-classification"))


DRAW: dict[str, Callable[[Any, Any, str], Picture]] = {
    "attention": lambda lm, st, text: fa.viz.attention(lm, [text, text]),
    "attention-bert": lambda lm, st, text: fa.viz.attention(st, text, layers=0, heads=1),
    "next_tokens": lambda lm, st, text: fa.viz.next_tokens(lm, text),
    "surprisal": lambda lm, st, text: fa.viz.surprisal(lm, text),
    "tokens": lambda lm, st, text: fa.viz.tokens(lm, text),
    "embeddings": lambda lm, st, text: fa.viz.embeddings(st, [text, "a", text], labels=[text, "<b>", "&"]),
    "look": lambda lm, st, text: fa.viz.look(lm, text),
}


@pytest.fixture(scope="module", params=list(DRAW))
def draw(request: pytest.FixtureRequest, lm: Any, st: Any) -> Callable[[str], Picture]:
    return lambda text: DRAW[request.param](lm, st, text)


def check(picture: Picture) -> Page:
    """Check that a page and its image are well formed and can neither load nor run anything; return the page."""
    page = Page(picture.html)
    assert [name for name, _ in page.tags].count("script") == 1
    assert not page.all("iframe") + page.all("link") + page.all("form") + page.all("a") + page.all("base")
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "srcdoc"]
        for name in ("src", "href", "xlink:href", "data-map"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,")
        assert "url(" not in (attributes.get("style") or "")
    assert "@import" not in picture.html
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", picture.html + picture.svg)
    image = ElementTree.fromstring(picture.svg)
    assert not [part for part in image.iter() if part.tag.rpartition("}")[2] in ("script", "foreignObject", "a")]
    for part in image.iter():
        assert not [name for name in part.attrib if name.startswith("on")]
        assert (part.attrib.get("href") or "data:").startswith("data:")
    return page


@pytest.mark.parametrize("text", ATTACKS)
def test_text_stays_text(draw: Callable[[str], Picture], text: str) -> None:
    picture = draw(text)
    page = check(picture)
    assert {"img", "script"} >= {tag for tag in ("img", "script", "b", "i") if page.all(tag)} - {"b", "i"}
    assert all(attributes.get("class") == "map" for attributes in page.all("img"))
    frame = Page(picture._repr_html_())
    assert [tag for tag, _ in frame.tags] == ["iframe"]
    assert frame.tags[0][1]["sandbox"] == "allow-scripts"
    assert frame.tags[0][1]["srcdoc"] == picture.html


def test_tokens_of_a_vocabulary_are_text(lm: Any) -> None:
    tokenizer = fa.AutoTokenizer.from_pretrained(lm.path)
    tokenizer.add_tokens(list(ATTACKS[:5]))
    picture = fa.viz.tokens(tokenizer, "".join(ATTACKS[:5]))
    page = check(picture)
    for attack in ATTACKS[:5]:
        assert attack in picture.data["tokens"]
        assert attack in page.text
        assert attack in "".join(ElementTree.fromstring(picture.svg).itertext())


def test_names_of_models_are_text(tmp_path: Path, lm: Any) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.symlink_to(lm.path)
    with fa.AutoModelForCausalLM.from_pretrained(folder) as model:
        assert "<img src=x" in check(fa.viz.surprisal(model, "one two")).text


def test_every_part_has_a_name_and_works_without_scripts(draw: Callable[[str], Picture]) -> None:
    page = check(draw("The old man looked at the sea"))
    assert dict(page.tags)["html"] == {"lang": "en"}
    assert len(page.all("h1")) == 1
    assert len(page.all("h2")) == len(page.all("section")) > 0
    for svg in page.all("svg"):
        assert svg["role"] in ("img", "group")
    assert len(page.all("title")) >= 1 + len(page.all("svg"))
    for image in page.all("img"):
        assert len(image["alt"] or "") > 20
    for box in page.all("input"):
        assert box.get("aria-label") or box["name"].endswith("-way")  # these are inside a label with text
    assert len(page.all("table")) == len(page.all("caption"))
    for head in page.all("th"):
        assert head["scope"] in ("row", "col")
    for part in page.tags:
        if part[1].get("tabindex") == "0" and part[0] == "div":
            assert part[1]["role"] == "region"
            assert part[1]["aria-label"]
    # Only the controls that need scripts are hidden without them.
    assert [tag for tag, attributes in page.tags if "hidden" in attributes] == ["fieldset"] * len(page.all("fieldset"))
    for word in ("man", "looked", "sea"):
        assert word in page.text


def test_the_policy_allows_only_the_script_of_the_page(draw: Callable[[str], Picture]) -> None:
    import base64
    import hashlib

    picture = draw("one two")
    (script,) = re.findall(r"<script>(.*?)</script>", picture.html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for a in Page(picture.html).all("meta") if "http-equiv" in a]
    assert policy == (f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'")


def test_pictures_are_deterministic(draw: Callable[[str], Picture]) -> None:
    first, second = draw("The old man"), draw("The old man")
    assert first.html == second.html
    assert first.svg == second.svg


def test_files(tmp_path: Path, lm: Any) -> None:
    picture = fa.viz.tokens(lm, "naïve 日本 \U0001f600")
    for name in ("a.html", "b.HTM", "c.svg"):
        picture.save(tmp_path / name)
        content = picture.svg if name == "c.svg" else picture.html
        assert (tmp_path / name).read_text(encoding="utf-8") == content
    assert repr(picture) == "<Picture 'Tokens of a text'; save(FILE.html) or save(FILE.svg) writes it>"
    with pytest.raises(OSError, match="No such file"):
        picture.save(tmp_path / "none" / "a.svg")


def test_a_page_of_512_tokens_is_small_and_quick(st: Any) -> None:
    rng = np.random.default_rng(0)
    maps = rng.dirichlet(np.full(512, 0.05), (12, 512)).astype(np.float32)
    assert sum(len(png(one, gamma(512))) for one in maps) < 12 * 512 * 512 * 4 / 3


# -- colors -----------------------------------------------------------------------------------------------------------


def luminance(color: np.ndarray[Any, Any]) -> float:
    """Return the relative luminance of WCAG 2.2."""
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def rgb(color: str) -> np.ndarray[Any, Any]:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def contrast(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_has_enough_contrast(colors: dict[str, str]) -> None:
    table = {name: rgb(color) for name, color in colors.items()}
    for ground in ("bg", "panel"):
        for text in ("fg", "quiet", "accent"):
            assert contrast(table[text], table[ground]) >= LEAST
        for share in np.linspace(0, 1, 101):  # every strength of shading
            assert contrast(table["fg"], share * table["heat"] + (1 - share) * table[ground]) >= LEAST
    for i in range(5):
        assert contrast(table["fg"], table[f"k{i}"]) >= LEAST


def test_the_style_follows_the_mode_of_the_reader(lm: Any) -> None:
    page = fa.viz.tokens(lm, "a").html
    assert page.count("@media (prefers-color-scheme: dark)") == 2
    assert "@media (prefers-color-scheme: dark)" in stylesheet()
    for rules in (LIGHT, DARK):
        assert all(f"--{name}: {color};" in page for name, color in rules.items())


# -- parts ------------------------------------------------------------------------------------------------------------


def pixels(uri: str) -> np.ndarray[Any, Any]:
    """Decode a map: the alpha of every pixel."""
    data = b64decode(uri.partition(",")[2])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    parts, at = {}, 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert zlib.crc32(name + body) == int.from_bytes(data[at + 8 + size : at + 12 + size], "big")
        parts[name], at = body, at + 12 + size
    width, height = (int.from_bytes(parts[b"IHDR"][i : i + 4], "big") for i in (0, 4))
    assert parts[b"tRNS"] == bytes(range(256))
    lines = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:]


@pytest.mark.parametrize("n", [1, 2, 11, 130])
def test_the_image_of_a_map_has_its_probabilities(n: int, rng: np.random.Generator) -> None:
    probabilities = rng.dirichlet(np.ones(n), n).astype(np.float32)
    power = gamma(n)
    levels = pixels(png(probabilities, power))
    assert (
        np.abs(levels / 255 - probabilities.astype(np.float64) ** power) <= 0.5 / 255 + np.finfo(np.float32).eps
    ).all()
    thumb = small(probabilities)
    assert max(thumb.shape) <= 128
    assert thumb.max() == probabilities.max()
    assert n > 128 or (thumb == probabilities).all()


@pytest.mark.parametrize("n", [2, 11, 40, 512, 4096])
def test_even_attention_is_visible(n: int) -> None:
    assert 0 < gamma(n) <= 0.5
    assert (1 / n) ** gamma(n) >= 0.15 - 1e-12


@pytest.mark.parametrize(
    ("text", "shown"),
    [(" ", "␣"), ("  ", "␣␣"), ("a\n", "a↵"), ("\t", "⇥"), ("\x00", "␀"), ("\x1b[", "␛["), ("\u202e", "⟨202E⟩"),
     ("\ufffe", "⟨FFFE⟩"), ("é日", "é日"), ("\x85", "⟨0085⟩"), ("", "")],
)  # fmt: skip
def test_control_characters_are_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_pieces_know_where_words_start(lm: Any, st: Any) -> None:
    text = "An unbelievable naïve 日"
    gpt2 = read_pieces(lm.tokenizer, lm.tokenizer.encode(text))
    assert "".join(" " * p.starts_word + p.text for p in gpt2[:4]).split()[0] == "An"
    assert any("\\x" in piece.text for piece in gpt2)  # parts of a character are shown as bytes
    bert = read_pieces(st.tokenizer, st.tokenizer.encode(text.removesuffix(" 日")))
    assert [piece.special for piece in bert] == [True, *[False] * (len(bert) - 2), True]
    assert all(piece.starts_word != piece.text.startswith("##") for piece in bert)


def test_widths_of_letters() -> None:
    assert columns("ab日e\u0301") == 5
    assert clip("abcdef", 4) == "abc…"
    assert clip("日本語", 4) == "日…"
    assert html.unescape(clip("abcd", 4)) == "abcd"
