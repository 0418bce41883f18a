"""The numbers of the pictures equal those of transformers in float64, and have the bits of a call of the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.errors import ConfigError, ContextLengthError, DTypeError, InputError, NonFiniteError
from fastattn.graph.rewrites import with_lens
from fastattn.viz import compute
from fastattn.viz.attention_view import MAX_SHOWN
from tests.reference.bounds import assert_close

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch

from tests.reference import hf
from tests.viz import folders

pytestmark = pytest.mark.torch

TEXT = "the quick brown fox, and the lazy dog"


def load(folder: Path, **options: Any) -> Any:
    kind = fa.AutoModelForCausalLM if "gpt2" in folder.name else fa.AutoModel
    return kind.from_pretrained(folder, **options)


@pytest.fixture(scope="module", params=list(folders.MODELS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    return folders.write("gpt2", tmp_path / "gpt2")


def test_maps_equal_those_of_transformers(family: str, tmp_path: Path, device: str) -> None:
    theirs = folders.make(family)
    with load(folders.write(family, tmp_path / family, theirs), device=device) as model:
        data = fa.viz.attention(model, TEXT, layers=[0, 2], heads=[2, 0]).data
        expected = hf.call(theirs, [data["ids"].tolist()]).attentions
        assert data["attentions"].shape == (2, 2, len(data["ids"]), len(data["ids"]))
        for a, layer in enumerate((0, 2)):
            for b, head in enumerate((2, 0)):
                reference = hf.array(expected[layer])[0, head]
                assert_close(data["attentions"][a, b], reference, model.traced, longest=len(data["ids"]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_maps_have_the_bits_of_a_call(family: str, dtype: str, tmp_path: Path) -> None:
    with load(folders.write(family, tmp_path / family), threads=2, dtype=dtype) as model:
        data = fa.viz.attention(model, TEXT).data
        for layer, whole in enumerate(model(data["ids"], output_attentions=True).attentions):
            assert (data["attentions"][layer] == whole).all()
        assert data["layers"] == [0, 1, 2]
        assert data["heads"] == [0, 1, 2]
        several = fa.viz.attention(model, ["fox", TEXT], heads=1).data
        assert (several["attentions"][1] == data["attentions"][:, [1]]).all()
        assert several["tokens"][1] == data["tokens"]


def test_only_the_chosen_maps_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(folders.write("bert", tmp_path)) as model:
        sizes = []
        run = compute._run

        def count(*args: Any) -> dict[str, Any]:
            found = run(*args)
            sizes.append(sum(part.size for parts in found.values() for part in parts))
            return found

        monkeypatch.setattr(compute, "_run", count)
        n = len(fa.viz.attention(model, TEXT, layers=[2, 0], heads=[1, 2]).data["ids"])
        assert sizes == [2 * n**2] * 2  # one run per layer, of two of the three heads


def test_token_types_count(tmp_path: Path) -> None:
    theirs = folders.make("bert")
    with load(folders.write("bert", tmp_path, theirs)) as model:
        data = fa.viz.attention(model, "the fox", "the dog", layers=2).data
        types = model.tokenizer("the fox", "the dog")["token_type_ids"]
        assert any(types)
        expected = hf.call(theirs, [data["ids"].tolist()], token_type_ids=[types]).attentions[2]
        assert_close(data["attentions"][0], hf.array(expected)[0], model.traced, longest=len(types))


def lens_of(theirs: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    """Return the logits [states, n_tokens, vocab_size] of every hidden state."""
    states = hf.call(theirs, [ids]).hidden_states
    with torch.no_grad():
        early = [theirs.lm_head(theirs.transformer.ln_f(state)) for state in states[:-1]]
        return np.stack([hf.array(logits)[0] for logits in (*early, theirs.lm_head(states[-1]))])


def test_the_lens_applies_the_last_norm_and_the_head_to_every_layer(tmp_path: Path, device: str) -> None:
    theirs = folders.make("gpt2")
    with load(folders.write("gpt2", tmp_path / "gpt2", theirs), device=device) as model:
        ids = np.array(model.tokenizer.encode(TEXT), np.int32)
        expected = lens_of(theirs, ids.tolist())
        parts = [states for _, states in compute.token_logits(model, ids, lens=True)]
        for i, reference in enumerate(expected):
            found = np.concatenate([states[i] for states in parts])
            assert_close(found, reference, model.traced, longest=len(ids))
        data = fa.viz.next_tokens(model, TEXT, top_k=4).data
    exact = np.exp(expected - expected.max(-1, keepdims=True))
    exact /= exact.sum(-1, keepdims=True)
    order = np.argsort(-expected, axis=-1, kind="stable")[..., :4]
    assert (data["top_ids"] == order).all()
    limit = 2 * np.abs(expected).max() * 2.0**-12  # a relative change of exp(x) by twice the error of x
    np.testing.assert_allclose(data["top_probabilities"], np.take_along_axis(exact, order, -1), rtol=limit)
    assert data["states"] == ["embeddings", "layer 1", "layer 2", "layer 3"]
    assert data["top_tokens"][0][0] == model.tokenizer.convert_ids_to_tokens(data["top_ids"][0, 0].tolist())


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_lens_has_the_same_bits_in_parts(gpt2: Path, dtype: str) -> None:
    with load(gpt2, dtype=dtype, threads=2) as model:
        ids = np.array(model.tokenizer.encode(TEXT), np.int32)
        for lens in (True, False):
            whole = [states for _, states in compute.token_logits(model, ids, lens=lens)]
            assert len(whole) == 1
            for size in (1, 5 * 4 * 280):
                parts = list(compute.token_logits(model, ids, lens=lens, max_floats=size))
                assert len(parts) > 1
                assert [at for at, _ in parts] == list(np.cumsum([0, *(len(s[0]) for _, s in parts[:-1])]))
                for i, state in enumerate(whole[0]):
                    assert (np.concatenate([states[i] for _, states in parts]) == state).all()
            assert (whole[0][-1] == model(ids).logits).all()


def test_equal_logits_are_in_the_order_of_their_ids() -> None:
    from fastattn.viz.lens_view import _best

    ids, probabilities = _best(np.array([[1.0, 3.0, 3.0, 2.0, 3.0]], np.float32), 2)
    assert ids.tolist() == [[1, 2]]
    assert probabilities[0, 0] == probabilities[0, 1]


def test_surprisal_is_the_negative_log2_of_the_probability(tmp_path: Path) -> None:
    theirs = folders.make("gpt2")
    with load(folders.write("gpt2", tmp_path / "gpt2", theirs)) as model:
        data = fa.viz.surprisal(model, TEXT).data
        ids = data["ids"].tolist()
        with torch.no_grad():
            logs = torch.log_softmax(theirs(torch.tensor([ids])).logits[0], -1).numpy()
        expected = -logs[np.arange(len(ids) - 1), ids[1:]] / math.log(2)
        assert math.isnan(data["bits"][0])
        assert_close(data["bits"][1:].astype(np.float32), expected, model.traced, longest=len(ids))
    assert data["bits_per_token"] == math.fsum(data["bits"][1:]) / (len(ids) - 1)
    assert data["perplexity"] == 2.0 ** data["bits_per_token"]
    first = model.tokenizer.offsets(TEXT)[0, 1]
    assert data["bits_per_byte"] == math.fsum(data["bits"][1:]) / len(TEXT[first:].encode())


def test_surprisal_has_the_same_bits_in_parts(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(gpt2) as model:
        whole = fa.viz.surprisal(model, TEXT).data["bits"]
        monkeypatch.setitem(compute.token_logits.__kwdefaults__, "max_floats", 3 * 280)
        assert fa.viz.surprisal(model, TEXT).data["bits"].tobytes() == whole.tobytes()


def test_a_folder_gives_what_its_model_gives(gpt2: Path) -> None:
    with load(gpt2) as model:
        assert fa.viz.next_tokens(gpt2, TEXT).html == fa.viz.next_tokens(model, TEXT).html
        assert (
            fa.viz.attention(gpt2, TEXT).data["attentions"] == fa.viz.attention(model, TEXT).data["attentions"]
        ).all()
        assert list(fa.viz.look(str(gpt2), TEXT).data) == ["tokens", "surprisal", "next_tokens", "attention"]


def test_layers_that_fit_are_evenly_spaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(folders.write("bert", tmp_path)) as model:
        n = len(model.tokenizer.encode(TEXT))
        monkeypatch.setattr("fastattn.viz.attention_view.MAX_SHOWN", 2 * 3 * n * n)
        picture = fa.viz.attention(model, TEXT)
        assert picture.data["layers"] == [0, 2]
        assert "2 of 3 layers are shown" in picture.html
        assert fa.viz.attention(model, TEXT, heads=1).data["layers"] == [0, 1, 2]
        with pytest.raises(InputError, match=r"layers, heads: expected at most .* choose fewer layers or heads"):
            fa.viz.attention(model, TEXT, layers=[0, 1, 2])
        monkeypatch.setattr("fastattn.viz.attention_view.MAX_SHOWN", n * n)
        with pytest.raises(InputError, match="layers, heads"):
            fa.viz.attention(model, TEXT)
    assert MAX_SHOWN >= 64 * 512**2


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: fa.viz.attention(m, TEXT, layers=3), InputError, "layers: expected 0 to 2, got 3"),
        (lambda m: fa.viz.attention(m, TEXT, layers=[0, 0]), InputError, "layers: expected .* only once"),
        (lambda m: fa.viz.attention(m, TEXT, heads="0"), DTypeError, "heads: expected int, got str"),
        (lambda m: fa.viz.attention(m, TEXT, heads=[]), InputError, "heads: expected at least one"),
        (lambda m: fa.viz.attention(m, []), InputError, "text: expected at least one text"),
        (lambda m: fa.viz.attention(m, 3), DTypeError, "text: expected str"),
        (lambda m: fa.viz.attention(3, TEXT), DTypeError, "model: expected a model, a folder or a hub id, got int"),
        (
            lambda m: fa.viz.attention(m, "a " * 99),
            ContextLengthError,
            "text: expected at most 64 tokens, .* shorten it",
        ),
        (lambda m: fa.viz.attention(m, ["a", "a " * 99]), ContextLengthError, r"text\[1\]: expected at most 64"),
        (lambda m: fa.viz.attention(m, ""), InputError, "text: expected a text of at least one token, got ''"),
        (lambda m: fa.viz.next_tokens(m, ""), InputError, "prompt: expected a text of at least 1 token, got ''"),
        (lambda m: fa.viz.next_tokens(m, TEXT, top_k=0), InputError, "top_k: expected 1"),
        (lambda m: fa.viz.next_tokens(m, TEXT, top_k=281), InputError, "top_k: expected 1 to 280"),
        (lambda m: fa.viz.next_tokens(m, ["a"]), DTypeError, "prompt: expected str"),
        (lambda m: fa.viz.surprisal(m, "a"), InputError, "text: expected a text of at least 2 tokens"),
        (lambda m: fa.viz.surprisal(m, "a " * 99), ContextLengthError, "expected at most 64 tokens"),
        (lambda m: fa.viz.surprisal(None, "a b"), DTypeError, "lm: expected a model"),
        (lambda m: fa.viz.tokens(m, ""), InputError, "text: expected a text of at least one token"),
        (lambda m: fa.viz.tokens(m, TEXT).save("a.png"), InputError, "path: expected FILE.html or FILE.svg"),
    ],
)
def test_wrong_arguments(gpt2: Path, call: Any, error: type[Exception], words: str) -> None:
    with load(gpt2) as model, pytest.raises(error, match=words):
        call(model)


def test_an_encoder_is_not_a_language_model(tmp_path: Path) -> None:
    with (
        load(folders.write("bert", tmp_path)) as model,
        pytest.raises(
            DTypeError, match="lm: expected a language model, got Encoder; load it with AutoModelForCausalLM"
        ),
    ):
        fa.viz.next_tokens(model, TEXT)
    with pytest.raises(ConfigError, match="next_tokens: expected a language model with a norm"):
        with_lens(model.traced)


def test_values_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    theirs = folders.make("gpt2")
    with torch.no_grad():
        theirs.transformer.ln_f.bias[0] = math.inf
    with load(folders.write("gpt2", tmp_path / "gpt2", theirs)) as model:
        for draw in (fa.viz.next_tokens, fa.viz.surprisal):
            with pytest.raises(NonFiniteError):
                draw(model, TEXT)
