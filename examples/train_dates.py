"""Train a recurrent model that writes dates as YYYY-MM-DD: "3rd of May 2021" becomes "2021-05-03".

    python examples/train_dates.py OUT [--steps 1500]

It needs torch and safetensors, and takes a few minutes on two cores. OUT becomes a folder for
`fastattn.RecurrentSeq2Seq.from_pretrained`: a bidirectional GRU encoder and a GRU decoder with the attention of
Bahdanau et al. (2015), over characters. The weights are written as float16, about 220 KB.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

PAD, BOS, EOS, UNK = range(4)
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October"]
MONTHS += ["November", "December"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SOURCE = [*SPECIAL, *" ,./-0123456789abcdefghijklmnopqrstuvwxyzADFJMNOSTW"]
TARGET = [*SPECIAL, *"-0123456789"]
EMBEDDING, HIDDEN = 32, 64
BATCH, YEARS = 128, (1900, 2099)


def ordinal(n: int) -> str:
    """Return 1st, 2nd, 3rd, 4th, ..."""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def pair(rng: random.Random) -> tuple[str, str]:
    """Return a date as people write it, and as YYYY-MM-DD."""
    first, last = (datetime.date(year, 1, 1).toordinal() for year in (YEARS[0], YEARS[1] + 1))
    date = datetime.date.fromordinal(rng.randrange(first, last))
    day, month, year = date.day, MONTHS[date.month - 1], date.year
    weekday = DAYS[date.weekday()]
    written = rng.choice(
        (
            f"{ordinal(day)} of {month} {year}",
            f"{day} {month} {year}",
            f"{month} {day}, {year}",
            f"{month} {ordinal(day)}, {year}",
            f"{weekday}, {day} {month} {year}",
            f"{weekday} the {ordinal(day)} of {month}, {year}",
            f"{day} {month[:3]} {year}",
            f"{month[:3]} {day}, {year}",
            f"{day}.{date.month}.{year}",
            f"{day:02}.{date.month:02}.{year}",
            f"{date.month}/{day}/{year}",
        )
    )
    return written, date.isoformat()


class Dates(nn.Module):
    """The modules by the names of the tensors in the folder."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(
            {
                "encoder": nn.ModuleDict(
                    {
                        "embedding": nn.Embedding(len(SOURCE), EMBEDDING),
                        "rnn": nn.GRU(EMBEDDING, HIDDEN, bidirectional=True, batch_first=True),
                    }
                ),
                "bridge": nn.Linear(2 * HIDDEN, HIDDEN),
                "decoder": nn.ModuleDict(
                    {
                        "embedding": nn.Embedding(len(TARGET), EMBEDDING),
                        "rnn": nn.GRU(EMBEDDING + 2 * HIDDEN, HIDDEN, batch_first=True),
                    }
                ),
                "attention": nn.ModuleDict(
                    {
                        "key": nn.Linear(2 * HIDDEN, HIDDEN),
                        "query": nn.Linear(HIDDEN, HIDDEN, bias=False),
                        "score": nn.Linear(HIDDEN, 1, bias=False),
                    }
                ),
                "output": nn.Linear(3 * HIDDEN, len(TARGET)),
            }
        )

    def forward(self, source: torch.Tensor, lengths: torch.Tensor, fed: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, n_target, vocab] for the ids that the decoder reads."""
        p = self.parts
        packed = nn.utils.rnn.pack_padded_sequence(
            p["encoder"]["embedding"](source), lengths, batch_first=True, enforce_sorted=False
        )
        outputs, ends = p["encoder"]["rnn"](packed)
        values, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
        state = torch.tanh(p["bridge"](torch.cat([ends[0], ends[1]], 1)))
        keys, mask = p["attention"]["key"](values), source == PAD
        logits = []
        for token in fed.unbind(1):
            query = p["attention"]["query"](state)[:, None]
            scores = p["attention"]["score"](torch.tanh(query + keys))[..., 0].masked_fill(mask, -torch.inf)
            context = (torch.softmax(scores, 1)[:, None] @ values)[:, 0]
            x = torch.cat([p["decoder"]["embedding"](token), context], 1)
            rows, last = p["decoder"]["rnn"](x[:, None], state[None])
            state = last[0]
            logits.append(p["output"](torch.cat([rows[:, 0], context], 1)))
        return torch.stack(logits, 1)


def batch_of(rng: random.Random, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return sources [n, longest], their lengths, and targets with both marks [n, 12]."""
    pairs = [pair(rng) for _ in range(n)]
    sources = [torch.tensor([SOURCE.index(c) for c in written]) for written, _ in pairs]
    targets = torch.tensor([[BOS, *(TARGET.index(c) for c in date), EOS] for _, date in pairs])
    return nn.utils.rnn.pad_sequence(sources, batch_first=True), torch.tensor([len(s) for s in sources]), targets


def save(model: Dates, folder: Path) -> None:
    """Write the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name.removeprefix("parts."): t.half().contiguous() for name, t in model.state_dict().items()}
    save_file(tensors, str(folder / "model.safetensors"))
    config = {
        "model_type": "recurrent-seq2seq",
        "cell": "gru",
        "attention": "bahdanau",
        "source_vocab_size": len(SOURCE),
        "target_vocab_size": len(TARGET),
        "embedding_size": EMBEDDING,
        "hidden_size": HIDDEN,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "unk_token_id": UNK,
        "tokens": "characters",
    }
    for name, value in (("config", config), ("source_vocab", SOURCE), ("target_vocab", TARGET)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Train, test on new dates and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    torch.manual_seed(0)
    rng, model = random.Random(0), Dates()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=args.steps)
    for step in range(1, args.steps + 1):
        source, lengths, target = batch_of(rng, BATCH)
        logits = model(source, lengths, target[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == args.steps:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    with torch.no_grad():
        source, lengths, target = batch_of(random.Random(1), 1000)
        right = (model(source, lengths, target[:, :-1]).argmax(2) == target[:, 1:]).all(1)
    print(f"{right.float().mean():.1%} of 1000 new dates are right if the decoder reads the right characters")
    save(model, args.out)


if __name__ == "__main__":
    main()
