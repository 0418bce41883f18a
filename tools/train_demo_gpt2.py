"""Train the demo GPT-2 model on LitBank novels and write it as a Hugging Face directory.

Run from the project root. The defaults are the first of two training rounds of the shipped model; its model card has
the command of the second. See ``--help`` for all settings::

    python tools/train_demo_gpt2.py --data ../shared/data --work build/demo-gpt2

Needs ``torch``, ``transformers`` and ``tokenizers``. ``--work`` stores the tokenized text and a checkpoint every
``--save-every`` steps; the same command resumes an interrupted run. The learning rate is constant after the warm-up and
falls linearly to zero over the last ``--decay`` steps. To train for longer or shorter, continue from a checkpoint
before this decay with another ``--steps``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from demo_data import load_novels, split_novels

END_OF_TEXT = "<|endoftext|>"
ROOT = Path(__file__).resolve().parent.parent


def parse_args() -> argparse.Namespace:
    """Parse the command-line settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="data folder (see demo_data.py)")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build/demo-gpt2", help="folder for tokenized text and checkpoints"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "src/fastattn/demo/gpt2-litbank", help="model directory")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--embd", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument(
        "--decay", type=int, default=700, help="number of last steps, in which the learning rate falls to 0"
    )
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16, help="windows of --context tokens in one step")
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--muon-lr", type=float, default=0.02, help="for the matrices inside the blocks")
    parser.add_argument("--adam-lr", type=float, default=0.003, help="for embeddings, biases and layer norms")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="of the matrices inside the blocks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--no-compile", action="store_true", help="do not use torch.compile: slower, but needs no C++ compiler"
    )
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument(
        "--score-tokens", type=int, default=0, help="tokens to score per held-out novel at the end (0: all)"
    )
    parser.add_argument("--export-only", action="store_true", help="score and write the last checkpoint; no training")
    return parser.parse_args()


# ---- text -------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE exactly as GPT-2 uses it on the training novels; <|endoftext|> is entry 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def prepare(args: argparse.Namespace) -> tuple[Tokenizer, np.ndarray, dict[str, tuple[np.ndarray, int]]]:
    """Return the tokenizer, training tokens, and (tokens, bytes) of each held-out novel; cached under --work."""
    train, held_out = split_novels(load_novels(args.data))
    tokenizer_path = args.work / "tokenizer.json"
    tokens_path = args.work / "train.npy"
    if tokenizer_path.exists() and tokens_path.exists():
        tokenizer = Tokenizer.from_file(str(tokenizer_path))
        tokens = np.load(tokens_path)
    else:
        tokenizer = train_tokenizer(train.values(), args.vocab_size)
        pieces = [[0, *tokenizer.encode(text).ids] for text in train.values()]
        tokens = np.concatenate([np.array(piece, dtype=np.uint16) for piece in pieces])
        tokenizer.save(str(tokenizer_path))
        np.save(tokens_path, tokens)
    scored = {
        name: (np.array([0, *tokenizer.encode(text).ids], dtype=np.uint16), len(text.encode()))
        for name, text in held_out.items()
    }
    return tokenizer, tokens, scored


class Windows:
    """Windows of context + 1 tokens. Seed and step determine their offset and order, which change in each epoch."""

    def __init__(self, tokens: np.ndarray, context: int, batch: int, seed: int) -> None:
        self.tokens, self.context, self.batch, self.seed = tokens, context, batch, seed
        self.per_epoch = ((len(tokens) - 1) // context - 1) // batch
        self.epoch = -1

    def __call__(self, step: int) -> torch.Tensor:
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self.epoch = epoch
            self.offset = int(rng.integers(self.context))
            self.order = rng.permutation(self.per_epoch * self.batch)
        starts = self.offset + self.context * self.order[position * self.batch : (position + 1) * self.batch]
        return torch.from_numpy(np.stack([self.tokens[s : s + self.context + 1] for s in starts]).astype(np.int64))


# ---- model and optimizer ----------------------------------------------------------------------------------------


def make_model(args: argparse.Namespace) -> GPT2LMHeadModel:
    """Create a GPT-2 of the given size with the usual initial weights.

    Projections into the residual stream start at 0.
    """
    config = GPT2Config(
        vocab_size=args.vocab_size,
        n_positions=args.context,
        n_embd=args.embd,
        n_layer=args.layers,
        n_head=args.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation="eager",  # fastest on a CPU here with torch.compile
    )
    torch.manual_seed(args.seed)
    model = GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            torch.nn.init.zeros_(parameter)
    return model


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized by Newton-Schulz steps (Jordan, 2024), for 2-D weights.

    A fused query/key/value weight (columns = 3 x rows) is treated as three matrices.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @staticmethod
    def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
        """Return approximately the nearest semi-orthogonal matrix: all singular values move to about 1."""
        wide = matrix.shape[0] <= matrix.shape[1]
        x = (matrix if wide else matrix.T).bfloat16()
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return (x if wide else x.T).float() * max(1.0, matrix.shape[1] / matrix.shape[0]) ** 0.5

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"])
                rows, columns = update.shape
                parts = update.chunk(3, dim=1) if columns == 3 * rows else (update,)
                update = torch.cat([self.orthogonalize(part) for part in parts], dim=1)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def make_optimizers(model: GPT2LMHeadModel, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the blocks and Adam for the rest."""
    blocks = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or ".h." not in n]
    return [
        Muon(blocks, lr=args.muon_lr, momentum=0.95, weight_decay=args.weight_decay),
        torch.optim.AdamW(rest, lr=args.adam_lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0),
    ]


def rate(step: int, args: argparse.Namespace) -> float:
    """Return the learning-rate factor: linear warm-up, constant, linear to zero over the last --decay steps."""
    return min(1.0, (step + 1) / args.warmup, (args.steps - step) / args.decay)


# ---- training ---------------------------------------------------------------------------------------------------


def train(model: GPT2LMHeadModel, windows: Windows, held_out: dict, args: argparse.Namespace) -> None:
    """Run or continue the training up to --steps, logging to --work/log.jsonl."""
    optimizers = make_optimizers(model, args)
    peak = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    checkpoint, start = args.work / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start = state["step"]
    loss_of = mean_loss if args.no_compile else torch.compile(mean_loss)
    parts = args.batch // args.micro_batch
    clock, seen, total = time.process_time(), 0, 0.0
    for step in range(start, args.steps):
        for optimizer, lr in zip(optimizers, peak, strict=True):
            optimizer.param_groups[0]["lr"] = lr * rate(step, args)
        for micro in windows(step).split(args.micro_batch):
            loss = loss_of(model, micro) / parts
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += 1
        if seen == 20 or step + 1 == args.steps:
            speed = seen * args.batch * args.context / (time.process_time() - clock)
            record = {"step": step + 1, "loss": round(total / seen, 4), "tokens_per_cpu_second": round(speed)}
            if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
                state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
                torch.save({**state, "step": step + 1}, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
                record["held_out_bits_per_byte"] = round(bits_per_byte(model, held_out, most=4096)["all"], 4)
            print(json.dumps(record), flush=True)
            with (args.work / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
            clock, seen, total = time.process_time(), 0, 0.0


def mean_loss(model: GPT2LMHeadModel, windows: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy in nats for predicting each next token of the windows."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(windows[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model: GPT2LMHeadModel, novels: dict[str, tuple[np.ndarray, int]], most: int = 0) -> dict[str, float]:
    """Return held-out bits per byte of each novel and of all together, in float32.

    Windows overlap by half and only their second half counts (the first window counts fully). So every token except
    those of the first half window is predicted from at least half a context. ``most`` limits the tokens per novel.
    """
    context = model.config.n_positions
    half = context // 2
    result, all_bits, all_bytes = {}, 0.0, 0.0
    for name, (tokens, size) in novels.items():
        part = torch.from_numpy(tokens[: most or None].astype(np.int64))
        count = len(part) - 1
        fill = max(context - count, (context - count) % half)
        inputs = F.pad(part[:-1], (0, fill)).unfold(0, context, half)
        targets = F.pad(part[1:], (0, fill), value=-100).unfold(0, context, half).clone()
        targets[1:, :half] = -100
        bits = 0.0
        for ids, wanted in zip(inputs.split(16), targets.split(16), strict=True):
            logits = model(ids).logits
            bits += F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").item() / math.log(2)
        share = size * count / (len(tokens) - 1)
        result[name] = bits / share
        all_bits, all_bytes = all_bits + bits, all_bytes + share
    return {**result, "all": all_bits / all_bytes}


# ---- export -----------------------------------------------------------------------------------------------------


def export(model: GPT2LMHeadModel, tokenizer: Tokenizer, out: Path) -> None:
    """Write the Hugging Face directory: float16 weights, config and a compact tokenizer.json."""
    out.mkdir(parents=True, exist_ok=True)
    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half = half.half()
    assert all(torch.isfinite(p).all() for p in half.parameters()), "a weight does not fit float16"
    half.config.use_cache = True
    half.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    half.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    compact = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.n_positions,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    """Prepare, train, and score before and after the export."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer, tokens, held_out = prepare(args)
    model = make_model(args)
    windows = Windows(tokens, args.context, args.batch, args.seed)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{parameters:,} parameters, {len(tokens):,} training tokens, {windows.per_epoch} steps per epoch", flush=True
    )
    if args.export_only:
        model.load_state_dict(torch.load(args.work / "checkpoint.pt", weights_only=True)["model"])
    else:
        train(model, windows, held_out, args)
    model.eval()
    export(model, tokenizer, args.out)
    reloaded = GPT2LMHeadModel.from_pretrained(args.out, dtype=torch.float32).eval()
    for label, which in (("float32", model), ("float16 weights", reloaded)):
        scores = {name: round(score, 4) for name, score in bits_per_byte(which, held_out, args.score_tokens).items()}
        print(f"held-out bits per byte, {label}: {json.dumps(scores)}", flush=True)


if __name__ == "__main__":
    main()
