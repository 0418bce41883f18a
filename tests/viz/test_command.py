"""fastattn look writes one page with the pictures that a model supports."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

import fastattn as fa
from fastattn.cli.main import main
from fastattn.tasks.demo import demo_model
from fastattn.viz.inputs import load_any


def test_a_language_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["look", "Once upon a time", "-o", str(page), "--layers", "0,3", "--heads", "1", "--top-k", "2"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"{page}: 5 tokens; tokens, surprisal, next_tokens, attention\n"
    with fa.AutoModelForCausalLM.from_pretrained(demo_model("text-generation")) as model:
        picture = fa.viz.look(model, "Once upon a time", layers=[0, 3], heads=[1], top_k=2)
    assert page.read_text(encoding="utf-8") == picture.html
    assert picture.data["next_tokens"]["top_ids"].shape == (5, 5, 2)
    assert picture.data["attention"]["layers"] == [0, 3]


def test_an_encoder_and_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"two\nlines")))
    folder = demo_model("text-classification")
    assert main(["look", "-m", str(folder), "-", "-o", str(tmp_path / "a.svg"), "--dtype", "int8"]) == 0
    assert capsys.readouterr().err.endswith("; tokens, attention\n")
    with fa.AutoModel.from_pretrained(folder, dtype="int8") as model:
        assert (tmp_path / "a.svg").read_text(encoding="utf-8") == fa.viz.look(model, "two\nlines").svg


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["x", "-o", "FOLDER/none/a.html"], 1, "--output: expected an existing folder"),
        (["x", "-o", "FOLDER/a.html", "--layers", "4"], 1, "layers[0]: expected 0 to 3, got 4"),
        (["", "-o", "FOLDER/a.html"], 1, "text: expected a text of at least one token"),
        (["x", "-o", "FOLDER/a.pdf"], 2, "expected FILE.html or FILE.svg"),
        (["x", "-o", "FOLDER/a.html", "--heads", "a"], 2, "argument --heads: expected an integer, got 'a'"),
        (["x", "-o", "FOLDER/a.html", "--heads", "-1"], 2, "argument --heads"),
        (["x"], 2, "-o/--output"),
    ],
)
def test_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    given = [word.replace("FOLDER", str(tmp_path)) for word in words]
    try:
        found = main(["look", *given])
    except SystemExit as error:
        found = int(error.code or 0)
    assert found == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_classifier_of_a_family_with_language_models_is_not_a_language_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo_model("text-generation"), folder)
    config = json.loads((folder / "config.json").read_text())
    for named, kind in (
        (["GPT2ForSequenceClassification"], "Encoder"),
        (["GPT2LMHeadModel"], "CausalLM"),
        (["GPT2Model"], "CausalLM"),
        (None, "CausalLM"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, "architectures": named}))
        with load_any(folder) as model:
            assert type(model).__name__ == kind
