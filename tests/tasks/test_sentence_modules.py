"""The modules of SentenceTransformer, alone and in stacks, compared with sentence-transformers and recorded values."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import ConfigError, InputError, ModelFormatError, ReadOnlyError
from fastattn.tasks.sentence.modules import ACTIVATIONS, activate
from tests.reference.checkpoints import safetensors
from tests.tasks.bounds import assert_as_good_as
from tests.tasks.sentence_folders import (
    MEAN,
    NORMALIZE,
    POOLING,
    TEXTS,
    WIDTH,
    ModuleFiles,
    change_json,
    dense,
    layer_norm,
    random,
    write_model,
    write_static,
)  # fmt: skip
from tests.tasks.sentence_reference import Reference
from tests.tolerances import ulp

ACTIVATION = "torch.nn.modules.activation."
# Test names -> stacks of modules after the transformer.
STACKS: dict[str, list[ModuleFiles]] = {
    "pooling": [POOLING],
    "dense": [POOLING, dense(WIDTH, 40)],
    "dense_without_bias": [
        POOLING,
        dense(WIDTH, 40, bias=False, activation_function="torch.nn.modules.linear.Identity"),
    ],
    "dense_twice": [
        POOLING,
        dense(WIDTH, 40, activation_function=ACTIVATION + "GELU"),
        dense(40, 30, seed=5),
        NORMALIZE,
    ],
    "residual": [POOLING, dense(WIDTH, WIDTH, use_residual=True)],
    "projected_residual": [POOLING, dense(WIDTH, 40, use_residual=True, activation_function=ACTIVATION + "ReLU")],
    "dense_of_tokens": [
        dense(WIDTH, 20, module_input_name="token_embeddings"),
        ("Pooling", {"embedding_dimension": 20, "pooling_mode": ["mean", "max"]}, None),
    ],
    "normalized_tokens": [("Normalize", {"module_input_name": "token_embeddings"}, None), POOLING],
    "normalize_too_early": [NORMALIZE, POOLING],
    "layer_norm": [POOLING, layer_norm(WIDTH), dense(WIDTH, 40)],
    "dense_by_another_name": [
        POOLING,
        dense(WIDTH, 16, module_output_name="other"),
        dense(16, 24, seed=3, module_input_name="other", module_output_name="sentence_embedding"),
    ],
    "two_poolings": [POOLING, ("Pooling", {"embedding_dimension": WIDTH, "pooling_mode": "cls"}, None), NORMALIZE],
    "dense_in_the_middle": [POOLING, dense(WIDTH, WIDTH, module_output_name="token_vectors"), NORMALIZE],
}


@pytest.mark.torch
@pytest.mark.parametrize("name", STACKS)
def test_stacks(tmp_path: Path, device: str, name: str) -> None:
    folder = write_model(tmp_path / "m", *STACKS[name])
    found = fastattn.SentenceTransformer(folder, device=device)
    vectors = found.encode(TEXTS)
    expected = Reference(folder)
    expected.check(vectors, "encode", TEXTS)
    assert vectors.shape == (len(TEXTS), found.get_embedding_dimension())
    assert found.get_embedding_dimension() == expected.exact.get_embedding_dimension()
    assert len(found) == len(expected.exact) == 1 + len(STACKS[name])
    models = (found, expected.exact, expected.rough)
    tokens = [[model.encode(text, output_value="token_embeddings") for text in TEXTS] for model in models]
    assert len({tuple(array.shape for array in arrays) for arrays in tokens}) == 1
    assert_as_good_as(*(np.concatenate(arrays) for arrays in tokens))


@pytest.mark.parametrize("name", STACKS)
def test_a_vector_depends_on_its_text_alone(tmp_path: Path, name: str) -> None:
    model = fastattn.SentenceTransformer(write_model(tmp_path / "m", *STACKS[name]), threads=1)
    texts = [*TEXTS, *(" ".join(TEXTS[: i % 7]) for i in range(40))]
    vectors = model.encode(texts)
    for size in (1, 2, 3, 17):
        assert model.encode(texts, batch_size=size).tobytes() == vectors.tobytes()
    assert model.encode(texts[::-1]).tobytes() == vectors[::-1].tobytes()
    assert all(model.encode(text).tobytes() == row.tobytes() for text, row in zip(texts, vectors, strict=True))
    cut = model.encode(texts, normalize_embeddings=True, truncate_dim=7)
    assert all(
        model.encode(text, normalize_embeddings=True, truncate_dim=7).tobytes() == row.tobytes()
        for text, row in zip(texts, cut, strict=True)
    )


def test_recorded_vectors(tmp_path: Path) -> None:
    """Results of sentence-transformers 6.2 in float64, to six digits."""
    folder = write_model(tmp_path / "m", POOLING, layer_norm(WIDTH), dense(WIDTH, 4), NORMALIZE)
    found = fastattn.SentenceTransformer(folder, device="numpy").encode(["good film", ""])
    assert [[f"{x:.6f}" for x in row] for row in found] == RECORDED_STACK
    static = fastattn.SentenceTransformer(write_static(tmp_path / "s", dense(WIDTH, 4))).encode(["good film", ""])
    assert [[f"{x:.6f}" for x in row] for row in static] == RECORDED_STATIC


RECORDED_STACK = [
    ["0.584461", "0.621812", "-0.149735", "0.499335"],
    ["0.145494", "0.586355", "0.506784", "-0.614970"],
]
RECORDED_STATIC = [
    ["0.993136", "0.963467", "0.642480", "0.701145"],
    ["0.332454", "0.675950", "0.318913", "-0.862534"],
]


@pytest.mark.torch
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    torch = pytest.importorskip("torch")
    kind = getattr(torch.nn, name)
    x = np.concatenate([random(500) * 3, np.linspace(-30, 30, 121, dtype=np.float32), np.float32([0.5, -0.5, -0.0])])
    ours = activate(name, x)
    assert ours.dtype == np.float32
    exact = kind()(torch.from_numpy(x).double()).numpy()
    rough = kind()(torch.from_numpy(x)).numpy().astype(np.float64)
    bound = 2 * np.abs(rough - exact) + ulp(exact)
    if name == "GELU":  # a kernel in float32; tests/kernels checks it against its own bound
        bound = np.maximum(bound, 2 * np.abs(rough - exact).max())
    assert (np.abs(ours - exact) <= bound).all()


@pytest.mark.parametrize("name", ["Softmax", "Linear", "tanh", "PReLU", "GLU"])
def test_other_activations_are_refused(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "m", POOLING, dense(WIDTH, 4, activation_function=ACTIVATION + name))
    with pytest.raises(ConfigError, match=r"2_Dense/config.json: activation_function: expected a class of torch.nn"):
        fastattn.SentenceTransformer(folder)


@pytest.mark.torch
def test_an_activation_outside_torch_is_tanh_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_model(tmp_path / "m", POOLING, dense(WIDTH, 40, activation_function="my_code.Swish"))
    found = fastattn.SentenceTransformer(folder, threads=1).encode(TEXTS)
    assert "my_code.Swish" in caplog.text
    assert "Tanh is used" in caplog.text
    Reference(folder).check(found, "encode", TEXTS)
    with pytest.raises(ConfigError, match=r"my_code\.Swish"):
        fastattn.SentenceTransformer(folder, trust_remote_code=True)


@pytest.mark.torch
@pytest.mark.parametrize("truncation", [None, 5])
@pytest.mark.parametrize("modules", [[], [NORMALIZE], [dense(WIDTH, 40), NORMALIZE], [layer_norm(WIDTH)]])
def test_static_embeddings(tmp_path: Path, truncation: int | None, modules: list[ModuleFiles]) -> None:
    folder = write_static(tmp_path / "m", *modules, truncation=truncation)
    found, expected = fastattn.SentenceTransformer(folder), Reference(folder)
    vectors = found.encode(TEXTS)
    expected.check(vectors, "encode", TEXTS)
    expected.check(found.encode_query(TEXTS, prompt="the "), "encode_query", TEXTS, prompt="the ")
    assert found.max_seq_length == expected.exact.max_seq_length == float("inf")
    assert found.get_embedding_dimension() == expected.exact.get_embedding_dimension()
    assert [found.encode(text).tobytes() for text in TEXTS] == [row.tobytes() for row in vectors]
    ours, theirs = found.tokenize(TEXTS), expected.exact.preprocess(TEXTS)
    assert {name: array.tolist() for name, array in ours.items()} == {name: t.tolist() for name, t in theirs.items()}
    with pytest.raises(InputError, match="token embeddings"):
        found.encode(TEXTS, output_value="token_embeddings")


@pytest.mark.torch
def test_the_tables_of_model2vec(tmp_path: Path) -> None:
    folder = write_static(tmp_path / "m", NORMALIZE)
    words = 71
    rows = np.random.default_rng(0).integers(0, 20, words).astype(np.int64)
    tensors = {"embeddings": random(20, WIDTH), "mapping": rows, "weights": random(words, seed=1).astype(np.float64)}
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    Reference(folder).check(fastattn.SentenceTransformer(folder).encode(TEXTS), "encode", TEXTS)
    (folder / "model.safetensors").write_bytes(safetensors({"embeddings": random(words, WIDTH)}))
    Reference(folder).check(fastattn.SentenceTransformer(folder).encode(TEXTS), "encode", TEXTS)
    (folder / "model.safetensors").write_bytes(safetensors({**tensors, "mapping": rows + 1}))
    with pytest.raises(ModelFormatError, match="mapping"):
        fastattn.SentenceTransformer(folder)


def test_a_token_without_a_vector_is_named(tmp_path: Path) -> None:
    folder = write_static(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(safetensors({"embedding.weight": random(40, WIDTH)}))
    model = fastattn.SentenceTransformer(folder)
    with pytest.raises(InputError, match=r"^sentences\[1\]: token id \d+ has no vector; the model has 40"):
        model.encode(["abc", "good"])


def without(module: ModuleFiles, *names: str) -> ModuleFiles:
    """Return a module without some of its tensors."""
    kind, config, tensors = module
    return kind, config, {name: array for name, array in (tensors or {}).items() if name not in names}


def with_tensors(module: ModuleFiles, **more: np.ndarray) -> ModuleFiles:
    """Return a module with other tensors."""
    kind, config, tensors = module
    return kind, config, {**(tensors or {}), **more}


@pytest.mark.parametrize(
    ("modules", "error", "message"),
    [
        ([POOLING, dense(13, 4)], ConfigError, r"Dense: expected sentence_embedding of width 13, got 12"),
        ([POOLING, layer_norm(13)], ConfigError, r"LayerNorm: expected sentence_embedding of width 13, got 12"),
        ([dense(12, 4)], ConfigError, r"Dense: expected sentence_embedding from a module before it"),
        ([layer_norm(12)], ConfigError, r"LayerNorm: expected sentence_embedding from a module before it"),
        ([POOLING, dense(12, 4, module_input_name="x")], ConfigError, r"Dense: expected x from a module before it"),
        ([POOLING, without(dense(12, 4), "linear.bias")], ModelFormatError, r"2_Dense/.*linear.bias"),
        ([POOLING, with_tensors(dense(12, 4), x=random(1))],
         ModelFormatError, r"unexpected \['x'\]"),
        ([POOLING, with_tensors(dense(12, 4), **{"linear.weight": random(12, 4)})],
         ModelFormatError, r"linear.weight.*expected shape \[4, 12\], got \[12, 4\]"),
        ([POOLING, (*dense(12, 4)[:2], None)], ModelFormatError, r"2_Dense/model.safetensors: .*found no such file"),
        ([POOLING, ("Dense", None, {})], ConfigError, r"2_Dense/config.json: .*module Dense, found no such file"),
        ([("Pooling", None, None)], ConfigError, r"1_Pooling/config.json: .*module Pooling, found no such file"),
        ([("Pooling", {}, None)], ConfigError, r"embedding_dimension: expected the width"),
        ([POOLING, ("LayerNorm", {}, {})], ConfigError, r"2_LayerNorm/config.json: dimension"),
        ([POOLING, dense(12, 4, in_features="12")], ConfigError, r"in_features: expected an integer"),
        ([POOLING, dense(12, 4, bias="false")], ConfigError, r"bias: expected true or false, got 'false'"),
        ([POOLING, dense(12, 4, activation_function=None)], ConfigError, r"activation_function"),
        ([POOLING, dense(12, 4, activation_function=["Tanh"])], ConfigError, r"activation_function: expected a string"),
        ([POOLING, dense(12, 4, module_input_name=None)], ConfigError, r"module_input_name"),
        ([("Pooling", {**MEAN, "pooling_mode_cls_token": "false"}, None)], ConfigError, r"expected true or false"),
        ([("Pooling", {**MEAN, "include_prompt": "no"}, None)], ConfigError, r"include_prompt: expected true or false"),
        ([("Pooling", {**MEAN, "pooling_mode": ["mean", ["cls"]]}, None)], ConfigError, r"pooling_mode"),
        ([("Pooling", {**MEAN, "pooling_mode": "median"}, None)], ConfigError, r"pooling_mode.*got 'median'"),
        ([("Pooling", {**MEAN, "pooling_mode_new": True}, None)], ConfigError, r"pooling_mode_new"),
    ],
)  # fmt: skip
def test_refused_modules(tmp_path: Path, modules: list[ModuleFiles], error: type[Exception], message: str) -> None:
    folder = write_model(tmp_path / "m", *modules)
    with pytest.raises(error, match=message) as caught:
        fastattn.SentenceTransformer(folder)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", POOLING, dense(WIDTH, 4))
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ModelFormatError, match=r"only pytorch_model.bin.*SentenceTransformer\(folder\).save"):
        fastattn.SentenceTransformer(folder)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", POOLING)
    (folder / "1_Pooling" / "config.json").unlink()
    (folder / "1_Pooling" / "config.json").mkdir()
    with pytest.raises((ConfigError, ModelFormatError), match=r"1_Pooling/config.json"):
        fastattn.SentenceTransformer(folder)


def test_unknown_settings_are_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_model(
        tmp_path / "m", ("Pooling", {**MEAN, "novel": 1}, None), dense(WIDTH, 4, dropout=0.1), layer_norm(4), NORMALIZE
    )
    change_json(folder / "3_LayerNorm" / "config.json", eps=0.1)
    change_json(folder / "4_Normalize" / "config.json", p=3)
    change_json(folder / "config_sentence_transformers.json", pooling="x")
    change_json(folder / "sentence_bert_config.json", stride=4)
    fastattn.SentenceTransformer(folder)
    for name in ("novel", "dropout", "eps", "'p'", "pooling", "stride"):
        assert name in caplog.text


@pytest.mark.torch
def test_another_width_in_the_pooling_config_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_model(tmp_path / "m", ("Pooling", {**MEAN, "word_embedding_dimension": 99}, None))
    model = fastattn.SentenceTransformer(folder, threads=1)
    assert "99" in caplog.text
    assert model.get_embedding_dimension() == WIDTH
    Reference(folder).check(model.encode(TEXTS), "encode", TEXTS)


@pytest.mark.torch
@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_a_prompt_that_leaves_nothing_to_pool(tmp_path: Path, mode: str) -> None:
    """The prompt is longer than the length limit of this call."""
    config = {"embedding_dimension": WIDTH, "pooling_mode": mode, "include_prompt": False}
    folder = write_model(tmp_path / "m", ("Pooling", config, None))
    model = fastattn.SentenceTransformer(folder, threads=1)
    options: dict[str, Any] = {"prompt": "good " * 10, "processing_kwargs": {"text": {"max_length": 6}}}
    if mode == "max":  # sentence-transformers returns minus infinity
        with pytest.raises(InputError, match=r"^sentences\[\d\]: expected a token to pool by max"):
            model.encode(TEXTS, **options)
    else:
        Reference(folder).check(model.encode(TEXTS, **options), "encode", TEXTS, **options)


@pytest.mark.torch
def test_set_pooling_include_prompt(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", POOLING, NORMALIZE)
    model, expected = fastattn.SentenceTransformer(folder, threads=1), Reference(folder)
    before = model.encode(TEXTS, prompt="the film ")
    for one in (model, expected.exact, expected.rough):
        one.set_pooling_include_prompt(False)
    after = model.encode(TEXTS, prompt="the film ")
    expected.check(after, "encode", TEXTS, prompt="the film ")
    assert not np.array_equal(before, after)
    assert json.loads(json.dumps(model[1].include_prompt)) is False


def test_modules_by_index(tmp_path: Path) -> None:
    model = fastattn.SentenceTransformer(write_model(tmp_path / "m", POOLING, dense(WIDTH, 4), NORMALIZE))
    names = [type(module).__name__ for module in model]
    assert names == ["Transformer", "Pooling", "Dense", "Normalize"]
    first: Any = model[0]
    first.max_seq_length = 9
    assert model.max_seq_length == 9
    assert (first.get_embedding_dimension(), model[1].get_embedding_dimension()) == (WIDTH, WIDTH)
    assert model[1].get_pooling_mode_str() == "mean"
    assert (model[-2].in_features, model[2].out_features, model[2].activation_function) == (WIDTH, 4, "Tanh")
    with pytest.raises(IndexError):
        model[4]
    with pytest.raises(AttributeError):
        model[1].pooling_mode = "cls"


def test_attributes_of_modules_are_read_only(tmp_path: Path) -> None:
    folder = write_model(tmp_path, POOLING, dense(WIDTH, 8), layer_norm(8), NORMALIZE)
    model = fastattn.SentenceTransformer(folder, threads=1)
    before = model.encode(TEXTS)
    for module, name in zip(list(model)[1:], ("pooling_mode", "weight", "bias", "module_input_name"), strict=True):
        for change in (lambda m, n: setattr(m, n, "cls"), delattr):
            with pytest.raises(ReadOnlyError) as caught:
                change(module, name)
            assert isinstance(caught.value, AttributeError)
            assert str(caught.value) == (
                f"{type(module).__name__}.{name}: modules are read-only; "
                "change the files in the module's folder and load the model again"
            )
    with pytest.raises(ReadOnlyError, match="call set_pooling_include_prompt of the SentenceTransformer"):
        model[1].include_prompt = False
    assert np.array_equal(model.encode(TEXTS), before)
    for module in list(model)[1:]:
        for again in (copy.copy(module), pickle.loads(pickle.dumps(module))):
            assert repr(again) == repr(module)


def test_which_texts_are_cut(tmp_path: Path) -> None:
    with fastattn.SentenceTransformer(write_model(tmp_path / "m", POOLING), threads=1) as model:
        texts = ["good film", "good " * 70, "a", "good " * 62]
        assert model.count_tokens(texts) == [4, 72, 3, 64]  # including [CLS] and [SEP]
        vectors, cut = model.encode_with_cuts(texts, normalize_embeddings=True)
        assert cut == {1: 64}
        assert vectors.tobytes() == model.encode(texts, normalize_embeddings=True).tobytes()
    static = fastattn.SentenceTransformer(write_static(tmp_path / "s", truncation=3))
    assert static.encode_with_cuts(texts)[1] == {1: 3, 3: 3}
