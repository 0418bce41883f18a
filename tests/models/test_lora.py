"""LoRA adapters: the weights and outputs equal those of a model that peft merged."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.errors import ConfigError, FastattnError, ModelFormatError, ModelNotFoundError

pytestmark = pytest.mark.torch
peft = pytest.importorskip("peft", reason="compares with peft")

IDS = [[3, 14, 15, 92, 65], [35, 89, 79, 3, 23, 84, 62, 64]]


def gpt2() -> Any:
    import transformers as t

    return t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=120, n_positions=32, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def bert() -> Any:
    import transformers as t

    config = t.BertConfig(
        vocab_size=120, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, num_labels=3
    )
    return t.BertForSequenceClassification(config)


def fill(model: Any) -> Any:
    """Give the adapter's matrices, which begin as zeros, random values."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
            elif "magnitude" in name:
                parameter.mul_(1.5)
            elif "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


class Saved:
    """A base model and an adapter on disk, and the model that peft merges."""

    def __init__(self, folder: Path, make: Callable[[], Any], **settings: Any) -> None:
        import torch

        torch.manual_seed(0)
        self.base, self.adapter = folder / "base", folder / "adapter"
        model = make().eval()
        model.save_pretrained(self.base)
        model.name_or_path = str(self.base)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft uses what transformers calls deprecated
            adapted = fill(peft.get_peft_model(model, peft.LoraConfig(**settings)))
            adapted.peft_config["default"].base_model_name_or_path = str(self.base)
            adapted.save_pretrained(self.adapter)
            self.merged = adapted.merge_and_unload().double()

    def logits(self, ids: list[int]) -> np.ndarray:
        import torch

        with torch.no_grad():
            found = self.merged(torch.tensor([ids])).logits[0]
        return np.asarray(found)

    def change(self, **settings: Any) -> None:
        path = self.adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "gpt2": (gpt2, {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj", "c_fc"], "r": 4}),
    "gpt2, one square matrix": (
        gpt2,
        {"fan_in_fan_out": True, "target_modules": r".*attn\.c_proj", "r": 3, "lora_alpha": 5},
    ),
    "gpt2, ranks and alphas by name": (
        gpt2,
        {
            "fan_in_fan_out": True,
            "target_modules": ["c_attn", "c_fc"],
            "rank_pattern": {"h.1.attn.c_attn": 2},
            "alpha_pattern": {r"h\.0\.mlp\.c_fc": 20},
        },
    ),
    "gpt2, rank-stabilized": (gpt2, {"fan_in_fan_out": True, "target_modules": ["c_attn"], "r": 4, "use_rslora": True}),
    "gpt2, magnitudes": (
        gpt2,
        {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj"], "r": 4, "use_dora": True},
    ),
    "gpt2, biases": (gpt2, {"fan_in_fan_out": True, "target_modules": ["c_attn"], "bias": "all"}),
    "bert": (bert, {"target_modules": ["query", "value", "dense"], "task_type": "SEQ_CLS"}),
    "bert, magnitudes": (bert, {"target_modules": ["query", "dense"], "use_dora": True, "task_type": "SEQ_CLS"}),
    "bert, bias of the product": (bert, {"target_modules": ["query", "value", "dense"], "lora_bias": True}),
    "bert, embeddings": (bert, {"target_modules": ["word_embeddings", "query"]}),
    "bert, a whole layer": (bert, {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]}),
}


@pytest.fixture(scope="session", params=list(CASES))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    make, settings = CASES[request.param]
    return Saved(tmp_path_factory.mktemp("lora"), make, **settings)


def load(saved: Saved, path: Path | None = None, **options: Any) -> Any:
    causal = type(saved.merged).__name__.startswith("GPT2")
    auto = fa.AutoModelForCausalLM if causal else fa.AutoModelForSequenceClassification
    return auto.from_pretrained(saved.base if path is None else path, **options)


def rows(model: Any, ids: list[list[int]]) -> list[np.ndarray]:
    return [np.asarray(row) for row in model(ids).logits]


def test_outputs_equal_those_of_the_merged_model(saved: Saved) -> None:
    found = rows(load(saved, adapter=saved.adapter), IDS)
    plain = rows(load(saved), IDS)
    for ids, row, without in zip(IDS, found, plain, strict=True):
        expected = saved.logits(ids)
        np.testing.assert_allclose(row, expected, atol=2e-5)
        assert np.abs(without - expected).max() > 1e-2  # the adapter makes a difference


def test_the_numpy_executor_agrees(saved: Saved) -> None:
    for ids, row in zip(IDS, rows(load(saved, adapter=saved.adapter, device="numpy"), IDS), strict=True):
        np.testing.assert_allclose(row, saved.logits(ids), atol=2e-5)


def test_the_folder_of_an_adapter_names_its_base(saved: Saved) -> None:
    found, expected = load(saved, saved.adapter), load(saved, adapter=str(saved.adapter))
    for a, b in zip(rows(found, IDS), rows(expected, IDS), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_merged_weights_are_rounded_like_saved_ones(saved: Saved, dtype: str, tmp_path: Path) -> None:
    """Quantizing the merged model to a folder gives the bits of loading it with the dtype."""
    loaded = load(saved, adapter=saved.adapter, dtype=dtype)
    embedded(saved, tmp_path / "model")
    fa.quantize(tmp_path / "model", tmp_path / "small", dtype=dtype)
    for a, b in zip(rows(loaded, IDS), rows(load(saved, tmp_path / "small"), IDS), strict=True):
        np.testing.assert_array_equal(a, b)


def embedded(saved: Saved, folder: Path) -> Path:
    """Put the model and its adapter into one folder."""
    folder.mkdir()
    for source in (saved.base, saved.adapter):
        for path in source.iterdir():
            if path.is_file():
                (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_an_adapter_beside_the_weights_is_added(saved: Saved, tmp_path: Path) -> None:
    found = load(saved, embedded(saved, tmp_path / "model"))
    for a, b in zip(rows(found, IDS), rows(load(saved, adapter=saved.adapter), IDS), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_pickle_loads_the_adapter_again(saved: Saved, tmp_path: Path) -> None:
    with load(saved, adapter=saved.adapter) as model:
        expected, data = rows(model, IDS), pickle.dumps(model)
    for a, b in zip(rows(pickle.loads(data), IDS), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def small(tmp_path: Path) -> Saved:
    return Saved(tmp_path, gpt2, fan_in_fan_out=True, target_modules=["c_attn"], r=4)


def test_a_changed_adapter_does_not_unpickle(small: Saved) -> None:
    with load(small, adapter=small.adapter) as model:
        data = pickle.dumps(model)
    small.change(lora_alpha=16)
    with pytest.raises(ModelFormatError, match=r"adapter_config\.json"):
        pickle.loads(data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: expected 'LORA', got 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights.*merge_and_unload"),
        ({"layer_replication": [[0, 2]]}, "'layer_replication' is not supported"),
        ({"new_setting": 3}, "'new_setting' is not supported, got 3"),
        ({"r": 8}, "expected matrices of rank 8, got 4"),
        ({"r": 0}, "r: expected a number above 0, got 0"),
        ({"lora_alpha": "8"}, "lora_alpha: expected a number above 0"),
        ({"use_dora": True}, "expected lora_magnitude_vector"),
        ({"use_rslora": "yes"}, "use_rslora: expected true or false"),
        ({"rank_pattern": {"(a+)+": 4}}, "rank_pattern: expected names of modules"),
        ({"rank_pattern": {"(a": 4}}, "rank_pattern: expected a pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern: expected an object"),
        ({"target_parameters": ["w"]}, "'target_parameters' is not supported"),
    ],
)
def test_settings_that_are_not_computed_are_refused(small: Saved, settings: dict[str, Any], message: str) -> None:
    small.change(**settings)
    with pytest.raises(ConfigError, match=message):
        load(small, adapter=small.adapter)


def test_an_adapter_of_another_model_is_refused(small: Saved, tmp_path: Path) -> None:
    other = Saved(tmp_path / "other", bert, target_modules=["query"])
    with pytest.raises(ConfigError, match=r"the model has no tensor 'bert\.encoder\.layer\.0"):
        load(small, adapter=other.adapter)


def test_an_adapter_of_another_size_is_refused(small: Saved, tmp_path: Path) -> None:
    def wider() -> Any:
        import transformers as t

        return t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=120, n_positions=32, n_embd=96, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
        )

    other = Saved(tmp_path / "other", wider, fan_in_fan_out=True, target_modules=["c_attn"], r=4)
    with pytest.raises(ConfigError, match=r"expected matrices whose product has the shape \[192, 64\]"):
        load(small, adapter=other.adapter)


def test_a_tied_head_has_no_weights_of_its_own(tmp_path: Path) -> None:
    saved = Saved(tmp_path, gpt2, target_modules=["lm_head"], r=4)
    with pytest.raises(ConfigError, match="lm_head"):
        load(saved, adapter=saved.adapter)


def test_missing_files_are_named(small: Saved, tmp_path: Path) -> None:
    (small.adapter / "adapter_model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelNotFoundError, match="expected the weights of the adapter"):
        load(small, adapter=small.adapter)
    with pytest.raises(ModelNotFoundError, match="no folder"):
        load(small, adapter=tmp_path / "nowhere" / "at" / "all")


def test_quantized_weights_take_no_adapter(small: Saved, tmp_path: Path) -> None:
    fa.quantize(small.base, tmp_path / "int8", dtype="int8")
    with pytest.raises(ConfigError, match=r"expected a float checkpoint to add the adapter to.*dtype='int8'"):
        load(small, tmp_path / "int8", adapter=small.adapter)


@pytest.mark.parametrize("change", ["name", "extra", "lonely"])
def test_malformed_weights_are_refused(small: Saved, change: str) -> None:
    from safetensors.numpy import load_file, save_file

    path = small.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    first = next(name for name in tensors if name.endswith("lora_A.weight"))
    if change == "name":
        tensors["transformer.wte.weight"] = tensors.pop(first)
    elif change == "extra":
        tensors[first.replace("lora_A.weight", "lora_C.weight")] = tensors[first]
    else:
        del tensors[first]
    save_file(tensors, path)
    with pytest.raises(FastattnError, match=r"base_model\.model|is not supported|expected lora_A and lora_B"):
        load(small, adapter=small.adapter)
