"""What each command does; the model is loaded after the arguments are checked."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastattn import __version__
from fastattn.errors import ConfigError, InputError
from fastattn.generation.generate import GenerationArgs, complete, need_tokenizer, stream
from fastattn.generation.options import GenerationOptions

_EXTRAS = ("safetensors", "huggingface_hub", "sklearn", "pandas")


def info(args: argparse.Namespace) -> int:
    """Print what was installed and what of it runs here."""
    found: dict[str, Any] = {"version": __version__, "python": platform.python_version(), "numpy": np.__version__}
    try:
        from fastattn import runtime

        found |= runtime.info()
    except ImportError as error:
        found["extension"] = f"missing: {error}"
    found["extras"] = [name for name in _EXTRAS if importlib.util.find_spec(name) is not None]
    if args.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        print(f"{name.replace('_', ' ') + ':':<20}{text}")
    return 0


def generate(args: argparse.Namespace) -> int:
    """Continue prompts and say on stderr how fast."""
    from fastattn.models.auto import AutoModelForCausalLM

    options: GenerationArgs = {
        "max_new_tokens": args.max_tokens,
        "do_sample": True,
        "temperature": args.temp,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
        "seed": args.seed,
        "stop_strings": args.stop or None,
    }
    checked = GenerationOptions(**options)
    prompts = _texts(args, whole_stdin=True)
    model = AutoModelForCausalLM.from_pretrained(
        _model(args, "text-generation"), dtype=args.dtype, device=args.device, threads=args.threads
    )
    tokenizer = need_tokenizer(model, "generate")
    begin, n_new = time.perf_counter(), 0
    if args.stream and not args.json:
        seeds = checked.seeds(len(prompts))
        for prompt, seed in zip(prompts, seeds, strict=True):
            options["seed"] = seed
            with stream(model, prompt, **options) as pieces:
                print(prompt, end="", flush=True)
                for piece in pieces:
                    print(piece, end="", flush=True)
                print()
                n_new += pieces.n_new_tokens
    else:
        requests = complete(model, [tokenizer.encode(text) for text in prompts], checked, tokenizer=tokenizer)
        for prompt, request in zip(prompts, requests, strict=True):
            n_new += request.new_len
            text = "" if request.text is None else request.text.text
            answer = {"prompt": prompt, "text": text, "finish_reason": request.finish_reason, "seed": request.seed}
            print(json.dumps(answer | {"n_tokens": request.new_len}) if args.json else prompt + text)
    seconds = time.perf_counter() - begin
    print(f"{n_new} tokens in {seconds:.2f} s, {n_new / max(seconds, 1e-9):.1f} tokens/s", file=sys.stderr)
    return 0


def classify(args: argparse.Namespace) -> int:
    """Print the labels of texts: `label<TAB>score<TAB>text`, or JSON."""
    from fastattn.tasks.pipelines import pipeline

    if args.top_k < 0:
        raise InputError(f"--top-k: expected 0 or more, got {args.top_k}")
    texts = _texts(args, whole_stdin=False)
    classifier = pipeline("text-classification", args.model, dtype=args.dtype, device=args.device, threads=args.threads)
    for text, labels in zip(texts, classifier(texts, top_k=args.top_k or None, truncation=args.truncate), strict=True):
        if args.json:
            print(json.dumps({"text": text, "labels": labels}))
        else:
            for item in labels:
                print(f"{item['label']}\t{item['score']:.4f}\t{text}")
    return 0


def embed(args: argparse.Namespace) -> int:
    """Write the vectors of texts to a .npy file, or print one a line."""
    from fastattn.tasks.sentence_transformer import SentenceTransformer

    if args.output is not None and not Path(args.output).absolute().parent.is_dir():
        raise InputError(f"--output: expected an existing folder, got {Path(args.output).parent}")
    texts = _texts(args, whole_stdin=False)
    model = SentenceTransformer(
        _model(args, "text-classification"), dtype=args.dtype, device=args.device, threads=args.threads
    )
    vectors = model.encode(texts, batch_size=args.batch_size, normalize_embeddings=args.normalize)
    if args.output is not None:
        with open(args.output, "wb") as file:
            np.save(file, vectors)
        print(f"{args.output}: float32 {list(vectors.shape)}", file=sys.stderr)
        return 0
    for text, vector in zip(texts, vectors, strict=True):
        numbers = [float(x) for x in vector]
        print(json.dumps({"text": text, "embedding": numbers}) if args.json else " ".join(f"{x:.6g}" for x in numbers))
    return 0


def _model(args: argparse.Namespace, task: Literal["text-generation", "text-classification"]) -> str | Path:
    """The model that was named, were it by an empty word, or the demo model of a task."""
    from fastattn.tasks.demo import demo_model

    return demo_model(task) if args.model is None else args.model


def _texts(args: argparse.Namespace, *, whole_stdin: bool) -> list[str]:
    """The texts that the arguments name; '-' is standard input, as one text or line by line."""
    if args.file is not None:
        return _lines(Path(args.file).read_text(encoding="utf-8"), args.file)
    texts = []
    for text in args.prompt:
        if text != "-":
            texts.append(text)
        elif whole_stdin:
            texts.append(sys.stdin.read().rstrip("\n"))
        else:
            texts += _lines(sys.stdin.read(), "standard input")
    return texts


def _lines(text: str, where: str) -> list[str]:
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise ConfigError(f"{where}: expected a text a line, found none")
    return [line.rstrip("\r") for line in lines]
