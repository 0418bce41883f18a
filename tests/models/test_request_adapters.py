"""LoRA adapters of requests: the results of merged models, and the same bits in any company."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.graph.ir import Step
from fastattn.graph.rewrites import linear_targets, optimize, with_lora
from fastattn.models.request_adapters import read_request_adapter
from tests.reference.checkpoints import write_gpt2
from tests.reference.families import write_variant

save_file = pytest.importorskip("safetensors.numpy").save_file
MODULES = {
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "llama": ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "mlp.gate_proj"),
}
PREFIX = {"gpt2": "transformer.h.", "llama": "model.layers."}
LONG = [1 + i % 7 for i in range(70)]  # longer than a page
PROMPTS = [LONG, [3, 1, 4, 1, 5], [2], LONG[:66], [9, 2, 6]]
PLAIN: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": -1, "pad_token_id": 0}
OPTIONS: dict[str, Any] = {**PLAIN, "return_dict_in_generate": True, "output_scores": True}


def write_base(folder: Path, family: str) -> Path:
    options = {"n_positions": 128} if family == "gpt2" else {"max_position_embeddings": 128}
    return write_gpt2(folder, **options) if family == "gpt2" else write_variant(folder, family, "causal-lm", **options)


def write_adapter(
    folder: Path, base: Path, *, seed: int, modules: Sequence[str], prefix: str, rank: int = 3, **settings: Any
) -> Path:
    """Write an adapter as peft does. Its matrices fit the traced Program of the base model."""
    with fa.AutoModelForCausalLM.from_pretrained(base) as model:
        weights = {name: weight.shape for name, weight in model.traced.weights.items()}
    rng, tensors, folder = np.random.default_rng(seed), {}, folder / f"adapter{seed}"
    for layer in range(2):
        for module in modules:
            name = f"{prefix}{layer}.{module}"
            shape = next(shape for weight, shape in weights.items() if f"{name}.weight".endswith(weight))
            for part, sizes in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
                values = rng.standard_normal(sizes, np.float32) * np.float32(0.3)
                tensors[f"base_model.model.{name}.lora_{part}.weight"] = values
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    given = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / family, family)


@pytest.fixture(scope="module")
def adapters(family: str, base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, modules = tmp_path_factory.mktemp("adapters"), MODULES[family]
    return [
        write_adapter(folder, base, seed=i, modules=modules[i % 3 :], prefix=PREFIX[family], rank=1 + 2 * i)
        for i in range(16)
    ]


def load(base: Path, adapters: Sequence[Path] = (), **options: Any) -> CausalLM:
    model = fa.AutoModelForCausalLM.from_pretrained(base, **options)
    for i, folder in enumerate(adapters):
        model.load_adapter(folder, f"a{i}")
    return model


def results(output: Any) -> list[tuple[list[int], bytes]]:
    """Return the ids and the bits of the scores of each sequence."""
    rows = zip(output.sequences, output.scores, strict=True)
    return [(list(map(int, ids)), np.asarray(scores).tobytes()) for ids, scores in rows]


def test_results_are_those_of_merged_models(base: Path, adapters: list[Path]) -> None:
    with load(base, adapters) as model:
        plain = model.generate(PROMPTS, **OPTIONS)
        for i in (0, 1, 2, 15):
            with load(base, adapter=adapters[i]) as merged:
                expected = merged.generate(PROMPTS, **OPTIONS)
                found = model.generate(PROMPTS, **OPTIONS, adapter_name=f"a{i}")
                assert [list(ids) for ids in found.sequences] == [list(ids) for ids in expected.sequences]
                np.testing.assert_allclose(np.array(found.scores), np.array(expected.scores), atol=2e-4, rtol=1e-5)
                assert np.abs(np.array(found.scores) - np.array(plain.scores)).max() > 0.01
                scored = model.score([3, 1], [[4, 1], [5]], adapter_name=f"a{i}")
                for row, other in zip(scored.logprobs, merged.score([3, 1], [[4, 1], [5]]).logprobs, strict=True):
                    np.testing.assert_allclose(row, other, atol=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_sixteen_adapters_in_one_batch_equal_calls_alone(base: Path, adapters: list[Path], dtype: str) -> None:
    names = [*(f"a{i}" for i in range(16)), None, None]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(names))]
    with load(base, adapters, dtype=dtype, threads=2) as model:
        configs = [{**PLAIN, "output_scores": True, "adapter_name": name} for name in names]
        together = results(model.generate(prompts, generation_config=configs, return_dict_in_generate=True))
    with load(base, dtype=dtype, threads=1) as plain:
        alone = results(plain.generate(prompts[16:], **OPTIONS))
    assert together[16:] == alone  # the bits of a model that never had an adapter
    for i in (0, 4, 9, 15):
        with load(base, dtype=dtype, threads=1) as model:
            model.load_adapter(adapters[i], "only")
            assert results(model.generate([prompts[i]], **OPTIONS, adapter_name="only")) == [together[i]]


def test_the_formula(base: Path, adapters: list[Path]) -> None:
    with load(base, threads=2) as model, load(base, device="numpy") as exact:
        adapter = read_request_adapter(adapters[5], model.traced, "a")
        program = optimize(with_lora(model.traced, linear_targets(model.traced).values()))
        ids, bounds = np.array([1, 2, 3, 4, 5, 6, 7], np.int32), np.array([0, 3, 4, 7], np.int32)
        positions = np.array([0, 1, 2, 0, 0, 1, 2], np.int32)
        found = []
        for executor in (model.executor.with_program(program), exact.executor.with_program(program)):
            caches = tuple(executor.new_cache(one) for one in (adapter, None, adapter))
            step = Step(ids, bounds, positions, np.array([1, 3, 5, 6], np.int32), caches=caches)
            found.append(np.asarray(executor.run(step)["logits"]))
        np.testing.assert_allclose(found[0], found[1], atol=1e-4, rtol=1e-5)


def test_shared_prefixes_are_apart(base: Path, adapters: list[Path]) -> None:
    with load(base, adapters[:2]) as model:
        for _ in range(2):  # the second time from stored pages
            for name in ("a0", None, "a1"):
                with load(base) as fresh:
                    if name is not None:
                        fresh.load_adapter(adapters[int(name[1])], name)
                    expected = results(fresh.generate([LONG], **OPTIONS, adapter_name=name))
                assert results(model.generate([LONG], **OPTIONS, adapter_name=name)) == expected
        model.delete_adapter("a0")
        model.load_adapter(adapters[2], "a0")
        with load(base) as fresh:
            fresh.load_adapter(adapters[2], "a0")
            expected = results(fresh.generate([LONG], **OPTIONS, adapter_name="a0"))
        assert results(model.generate([LONG], **OPTIONS, adapter_name="a0")) == expected


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 4}, {"do_sample": True, "seed": 7}])
def test_other_options(base: Path, adapters: list[Path], options: dict[str, Any]) -> None:
    given = {"max_new_tokens": 12, "eos_token_id": -1, **options}
    with load(base, adapters[:1]) as model, load(base, adapter=adapters[0]) as merged:
        found = model.generate(PROMPTS[:2], **given, adapter_name="a0")
        for ids, expected in zip(found, merged.generate(PROMPTS[:2], **given), strict=True):
            assert ids.tolist() == expected.tolist()


def test_adapters_come_and_go_while_others_run(base: Path, adapters: list[Path]) -> None:
    with load(base, adapters[:1]) as model:
        expected = model.generate(PROMPTS[1], max_new_tokens=100, eos_token_id=-1, adapter_name="a0").tolist()
        found: list[list[int]] = []
        started = threading.Event()

        def call() -> None:
            started.set()
            found.append(model.generate(PROMPTS[1], max_new_tokens=100, eos_token_id=-1, adapter_name="a0").tolist())

        thread = threading.Thread(target=call)
        thread.start()
        started.wait()
        for i in range(1, 8):
            model.load_adapter(adapters[i], f"b{i}")
            model.delete_adapter(f"b{i}")
        thread.join()
        assert found == [expected]
        assert model.adapters == ("a0",)
        assert model.kv_stats().in_use == 0


def test_threads_that_load_at_the_same_time(base: Path, adapters: list[Path]) -> None:
    """Every adapter is applied afterwards, and calls that run meanwhile have their results."""
    with load(base, adapters[:1]) as model:
        expected = model.score([3, 1], [[4, 1], [5]], adapter_name="a0").logprobs
        barrier, failed = threading.Barrier(9), list[BaseException]()

        def run(work: Any) -> None:
            barrier.wait()
            try:
                work()
            except BaseException as error:
                failed.append(error)

        def score() -> None:
            for _ in range(20):
                for row, wanted in zip(
                    model.score([3, 1], [[4, 1], [5]], adapter_name="a0").logprobs, expected, strict=True
                ):
                    np.testing.assert_array_equal(row, wanted)

        works = [partial(model.load_adapter, folder, f"b{i}") for i, folder in enumerate(adapters[1:8])]
        threads = [threading.Thread(target=run, args=(work,)) for work in (*works, score, score)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        for i, folder in enumerate(adapters[1:8]):
            with load(base) as fresh:
                fresh.load_adapter(folder, "only")
                wanted = results(fresh.generate([PROMPTS[1]], **OPTIONS, adapter_name="only"))
            assert results(model.generate([PROMPTS[1]], **OPTIONS, adapter_name=f"b{i}")) == wanted


@pytest.mark.torch
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "lora_alpha": 5, "rank_pattern": {"c_fc": 6}},
        {"target_modules": ["c_attn"], "use_rslora": True, "alpha_pattern": {"c_attn": 3}, "fan_in_fan_out": True},
    ],
)
def test_logits_of_peft(tmp_path: Path, settings: dict[str, Any]) -> None:
    pytest.importorskip("peft", reason="compares with peft")
    from tests.models.test_lora import Saved, gpt2

    saved = Saved(tmp_path, gpt2, r=4, task_type="CAUSAL_LM", **settings)
    prompt = [3, 14, 15, 92, 65]
    with load(saved.base) as model:
        model.load_adapter(saved.adapter, "a")
        config = {"max_new_tokens": 1, "eos_token_id": -1, "pad_token_id": 1, "adapter_name": "a"}
        found = model.generate([prompt], **config, return_dict_in_generate=True, output_logits=True)
        wanted = saved.logits(prompt)[-1]
        np.testing.assert_allclose(np.asarray(found.logits[0])[0], wanted, atol=1e-4, rtol=1e-4)
        with load(saved.base) as plain:
            base = plain(prompt).logits[-1]
        assert np.abs(base - wanted).max() > 0.01


def test_errors(base: Path, adapters: list[Path], family: str, tmp_path: Path) -> None:
    modules, prefix = MODULES[family], PREFIX[family]
    with load(base, adapters[:1]) as model:
        with pytest.raises(InputError, match="expected a loaded adapter \\('a0'\\), got 'b'"):
            model.generate([1], adapter_name="b")
        with pytest.raises(DTypeError, match="adapter_name"):
            model.generate([1], adapter_name=3)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="expected a new name"):
            model.load_adapter(adapters[1], "a0")
        with pytest.raises(InputError, match="adapter_name"):
            model.delete_adapter("b")
        dora = write_adapter(tmp_path, base, seed=90, modules=modules, prefix=prefix, use_dora=True)
        with pytest.raises(ConfigError, match="without DoRA"):
            model.load_adapter(dora, "b")
        other = write_adapter(tmp_path, base, seed=91, modules=modules, prefix=prefix)
        tensors = {"base_model.model.else.lora_A.weight": np.ones((3, 4), np.float32)}
        save_file(tensors, other / "adapter_model.safetensors")
        with pytest.raises(ConfigError, match="no linear of this name"):
            model.load_adapter(other, "b")
        first = f"base_model.model.{prefix}0.{modules[0]}"
        tensors = {f"{first}.lora_{part}.weight": np.ones((3, 3), np.float32) for part in "AB"}
        save_file(tensors, other / "adapter_model.safetensors")
        with pytest.raises(ConfigError, match="trained for another model"):
            model.load_adapter(other, "b")
        save_file({"base_model.model.lm_head.weight": np.ones((3, 3), np.float32)}, other / "adapter_model.safetensors")
        with pytest.raises(ConfigError, match="whole tensor"):
            model.load_adapter(other, "b")
        assert model.adapters == ("a0",)
        adapter = model.find_adapter("a0")
        cache = model.executor.new_cache(adapter)
        step = Step(*(np.array(a, np.int32) for a in ([1], [0, 1], [0], [0])), caches=(cache,))
        with pytest.raises(InputError, match="adapters of this Program"):
            model.executor.run(step)  # its Program has no lora ops
    with load(base, device="numpy") as exact, pytest.raises(InputError, match="on the CPU"):
        exact.load_adapter(adapters[0], "a")
