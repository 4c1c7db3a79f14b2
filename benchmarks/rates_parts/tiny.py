"""A campaign on a tiny random model with generated data, which takes seconds."""

import json
import random
from pathlib import Path

from benchmarks.rates_parts.campaign import Campaign
from tests.support.chat_endpoint import Scripted
from tests.support.models import N_LAYERS, byte_tokenizer, tiny
from tests.support.texts import hellaswag_rows, prose, write_lines


def tiny_campaign(folder: Path) -> Campaign:
    """Return a campaign of few small searches. The model and the data are made in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "tiny-model"
    if not model.exists():
        tokenizer = byte_tokenizer()
        tiny(vocab_size=len(tokenizer)).save_pretrained(model)
        tokenizer.save_pretrained(model)
    texts = []
    for name in ("calibration.txt", "test.txt"):
        texts.append(folder / name)
        texts[-1].write_text(prose(40))
    return Campaign(
        folder=folder,
        label="tiny",
        model=str(model),
        calibration=texts[0],
        test=texts[1],
        documents=write_lines(folder / "hellaswag.jsonl", hellaswag_rows(4)),
        ratios=("20%",),
        seeds=(0,),
        trials=12,
        llm_trials=12,
        long_trials=14,
        tokens=64,
        test_tokens=64,
        limit=3,
        samplers=("evolution", "pso", "llm"),
        align=8,
        window=32,
    )


def random_reply(seed: str) -> Scripted:
    """Return a reply of a scripted endpoint: random levels of the tiny model, which must be
    repaired.
    """
    chance = random.Random(seed)
    candidates = []
    for _ in range(4):
        mlp = [chance.randrange(7) for _ in range(N_LAYERS)]
        kv = [chance.randrange(2) for _ in range(N_LAYERS)]
        candidates.append({"parents": [], "mlp": mlp, "kv": kv})
    return Scripted(text=json.dumps({"candidates": candidates}))
