"""A server in a thread, on a loopback port, and the models that it serves."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

import fastattn as fa
from fastattn.generation.page_plan import KvStats
from fastattn.server.app import App
from fastattn.server.models import Models, Served
from fastattn.server.options import ServeOptions
from fastattn.server.run import Server, bind, config_of
from fastattn.tasks.demo import demo_model
from fastattn.tokenizer import load_tokenizer
from tests.reference import checkpoints
from tests.reference.hang import HANG_SECONDS
from tests.tasks.sentence_folders import entry, write_json
from tests.tasks.structured_models import write_model
from tests.tasks.tokenizers import write_bert, write_gpt2
from tests.tasks.toy import ToyModel

WAIT = float(HANG_SECONDS)  # seconds until a test gives up; no test waits that long
PATIENT = {"body_timeout_s": WAIT, "header_timeout_s": WAIT, "keep_alive_s": WAIT}
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Live:
    """A server that runs in a thread. By default, it gives clients all the time that they may need."""

    def __init__(self, models: Iterable[Served], keys: Iterable[bytes] = (), **options: Any) -> None:
        self.options = ServeOptions(**{"port": 0, **PATIENT, **options})
        self.app = App(self.options, Models(list(models)), tuple(keys), version=fa.__version__)
        self._listener = bind(self.options)
        self.address: Any = self._listener.getsockname()
        self.server = Server(config_of(self.app))
        self._ready = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()
        assert self._ready.wait(WAIT)

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.call_soon(self._ready.set)
        await self.server.serve(sockets=[self._listener])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=WAIT, **options)

    def call(self, function: Any) -> Any:
        """Run a function in the event loop and return its result."""

        async def run() -> Any:
            return function()

        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(WAIT)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address[:2], timeout=WAIT)

    def close(self) -> None:
        self.server.should_exit = True
        self._thread.join(WAIT)
        assert not self._thread.is_alive()
        self._listener.close()
        self.app.threads.shutdown(wait=True)


@contextmanager
def live(models: Iterable[Served], keys: Iterable[bytes] = (), **options: Any) -> Iterator[Live]:
    """Run a server for a block."""
    server = Live(models, keys, **options)
    try:
        yield server
    finally:
        server.close()


class SlowModel(ToyModel):
    """A model whose steps wait for `go`; without one, they run. steps: how many began."""

    def __init__(self, folder: Path, max_positions: int = 4096) -> None:
        tokenizer = load_tokenizer(write_gpt2(folder))
        assert tokenizer is not None
        super().__init__(tokenizer, max_positions=max_positions)
        self.dtype = "float64"
        self.go = threading.Event()
        self.began = threading.Semaphore(0)
        self.steps = 0
        inner = self.executor.random_logits

        def wait(ids: list[int]) -> NDArray[np.float64]:
            self.steps += 1
            self.began.release()
            assert self.go.wait(WAIT)
            return inner(ids)

        self.executor.logits_of = wait

    def wait_for_step(self) -> None:
        """Wait until one more step has begun."""
        assert self.began.acquire(timeout=WAIT)

    def kv_stats(self) -> KvStats:
        return self.engine.stats()

    def close(self) -> None:
        pass


def slow(folder: Path) -> tuple[SlowModel, Served]:
    """Return a model whose steps wait, and its entry."""
    model = SlowModel(folder)
    return model, Served("slow", str(folder), {"generate": model})


def write_chat(folder: Path) -> Path:
    """Write a random GPT-2 with 512 positions and a chat template."""
    write_model(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def write_reranker(folder: Path) -> Path:
    """Write a random BERT with one label."""
    write_bert(folder)
    return checkpoints.write_bert(
        folder, vocab_size=_n_words(folder), id2label={"0": "relevant"}, max_position_embeddings=64, seed=5
    )


def write_masked(folder: Path) -> Path:
    """Write a random BERT with a masked-language-model head and a SpladePooling."""
    write_bert(folder)
    config = {
        **checkpoints.BERT,
        "architectures": ["BertForMaskedLM"],
        "vocab_size": _n_words(folder),
        "max_position_embeddings": 64,
    }
    unused = ("classifier", "bert.pooler")
    tensors = {name: t for name, t in checkpoints.bert_tensors(config).items() if not name.startswith(unused)}
    rng, width = np.random.default_rng(3), int(config["hidden_size"])
    head = "cls.predictions"
    for name, shape in {
        f"{head}.transform.dense.weight": (width, width),
        f"{head}.transform.dense.bias": (width,),
        f"{head}.transform.LayerNorm.weight": (width,),
        f"{head}.transform.LayerNorm.bias": (width,),
        f"{head}.bias": (int(config["vocab_size"]),),
    }.items():
        tensors[name] = rng.standard_normal(shape).astype(np.float32)
    checkpoints.write(folder, config, tensors)
    home = "sentence_transformers.sparse_encoder.models.SpladePooling"
    modules = [entry(0, "Transformer", ""), {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": home}]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"transformer_task": "fill-mask"})
    (folder / "1_SpladePooling").mkdir()
    write_json(folder / "1_SpladePooling/config.json", {})
    write_json(folder / "config_sentence_transformers.json", {"model_type": "SparseEncoder"})
    return folder


def _n_words(folder: Path) -> int:
    return len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())


STORIES = str(demo_model("text-generation"))
REVIEWS = str(demo_model("text-classification"))


def events(response: httpx.Response) -> list[Any]:
    """Return the events of a stream; the last one must be [DONE]."""
    found = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert found[-1] == "[DONE]"
    return [json.loads(line) for line in found[:-1]]
