"""How much of what pruning loses comes back: compensation, LoRA, distillation, together and alone.

    python -m benchmarks.healing --train wikitext2_valid.txt --test wikitext2_test.txt --hellaswag hellaswag.jsonl.bz2 \
        --json benchmarks/results/healing.json

SmolLM2-135M without 8 of its 30 blocks. Compensation is fitted to, and healing trained on, `--train`; part of that is
kept apart to choose by. Losses are next-token cross-entropies (log-perplexities, nats per token) on `--test`, which
chose nothing.

* A table of two by two at equal time: plain LoRA against distillation, with and without compensation. A cell's time is
  that of the teacher logits, the compensation and the training; its steps follow from the speeds of each.
* One longer healing: compensated, then next-token loss and distillation, on `--train` and documents of HellaSwag
  (contexts with the right ending), with HellaSwag's acc_norm of other documents before and after it.
* Seconds of a step against a bare peft + Trainer loop on the same batches.
* A run that is killed (SIGKILL) and run again, against one that is not: largest difference of the loss curves.
"""

import argparse
import itertools
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.tasks.hellaswag.utils import preprocess
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.support.inputs import hellaswag, model_folder, text
from benchmarks.support.record import Record, arguments, precision
from prunesearch.candidate import LayerSubset
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.surgery import pruned
from prunesearch.objectives.base import ChunkWork
from prunesearch.objectives.calibration_data import open_text, token_windows
from prunesearch.objectives.task import TaskObjective
from prunesearch.recovery import (
    Healed,
    HealRecipe,
    heal,
    weights_restored,
)
from prunesearch.recovery.compensation import compensate, fit_and_held_out
from prunesearch.recovery.healing import ask_teacher, plan_healing
from prunesearch.recovery.lora import adapted
from prunesearch.recovery.training import HealTrainer
from prunesearch.recovery.training_data import sequences_of
from prunesearch.runtime.json_values import as_object, to_json

CANDIDATE = LayerSubset.parse("4,12,13,14,15,16,17,18", 30)
DENSE = LayerSubset.of(30)
QUICK: dict[str, float] = {
    "documents": 20,
    "train_documents": 200,
    "seeds": 1,
    "cell_seconds": 1,
    "long_steps": 4,
    "test_tokens": 512,
}
SMOKE: dict[str, float] = QUICK | {
    "documents": 4,
    "train_documents": 4,
    "unused": 2,
    "fit_tokens": 512,
    "held_out_tokens": 512,
    "cell_seconds": 0.01,
    "long_steps": 2,
}
"""Options of a quick and of a smoke run."""
_PARAGRAPH = 200  # characters; shorter lines are titles


@torch.inference_mode()
def log_perplexity(loaded: LoadedModel, candidate: LayerSubset, windows_BL: torch.Tensor) -> float:
    """Mean next-token cross-entropy in nats, by the model's own forward pass."""
    sums = 0.0
    with pruned(loaded.model, candidate) as model, wide_products():
        for ids_BL in windows_BL.split(2):
            logits_BLV = model(input_ids=ids_BL, use_cache=False).logits[:, :-1].float()
            sums += float(
                torch.nn.functional.cross_entropy(logits_BLV.flatten(0, 1), ids_BL[:, 1:].flatten())
            ) * len(ids_BL)
    return sums / len(windows_BL)


def accuracy(
    loaded: LoadedModel, candidate: LayerSubset, objective: TaskObjective
) -> dict[str, float]:
    """HellaSwag's acc_norm and its standard error, with the weights as they are."""
    work = [ChunkWork(chunk, [candidate]) for chunk in objective.chunks]
    found = {}
    for result in objective.score(work, Forward(loaded.model, loaded.layers)):
        found[result.chunk.index] = result.rows
    metrics = objective.metrics([found[chunk.index] for chunk in objective.chunks])
    return {"acc_norm": metrics.values["acc_norm"], "stderr": metrics.stderr["acc_norm"]}


class Session:
    """What all parts share: the model, texts, and the dense and pruned figures."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.folder = folder
        self.loaded = load(str(options.model), dtype=precision(), device="cpu")
        self.test_BL = token_windows(
            str(options.test), self.loaded.tokenizer, options.test_tokens, 256
        )
        self.windows = fit_and_held_out(
            self.loaded.tokenizer, str(options.train), options.fit_tokens, 256
        )
        self.dense = log_perplexity(self.loaded, DENSE, self.test_BL)
        self.pruned = log_perplexity(self.loaded, CANDIDATE, self.test_BL)
        start = time.perf_counter()
        with compensate(self.loaded, CANDIDATE, *self.windows) as done:
            self.seconds_of_compensation = time.perf_counter() - start
            self._compensated = [(p, p.data.clone()) for p in done.changed]
            self.compensated = log_perplexity(self.loaded, CANDIDATE, self.test_BL)

    @contextmanager
    def compensation(self) -> Iterator[None]:
        """The compensated weights, found once, inside the ``with`` block."""
        before = [(parameter, parameter.data) for parameter, _ in self._compensated]
        for parameter, data in self._compensated:
            parameter.data = data.clone()
        try:
            yield
        finally:
            for parameter, data in before:
                parameter.data = data

    def recovered(self, loss: float) -> float:
        """Share of the lost log-perplexity that came back."""
        return (self.pruned - loss) / (self.pruned - self.dense)

    def healed(self, recipe: HealRecipe, compensated: bool) -> tuple[float, Healed]:
        """Loss on the test text after healing, and the report."""
        references = self.folder / "references"
        ask_teacher(plan_healing(self.loaded, CANDIDATE, recipe), references)
        with (
            weights_restored(self.loaded, [CANDIDATE], recipe.target_modules),
            ExitStack() as stack,
        ):
            if compensated:
                stack.enter_context(self.compensation())
            work = Path(tempfile.mkdtemp(dir=self.folder))
            report = heal(self.loaded, CANDIDATE, recipe, work, references=references)
            return log_perplexity(self.loaded, CANDIDATE, self.test_BL), report


@dataclass(frozen=True)
class Speeds:
    """Seconds of a training step, of the teacher logits of a sequence, and of a
    compensation.
    """

    step: float
    answer: float
    compensation: float

    def steps(self, seconds: float, recipe: HealRecipe, compensated: bool) -> int:
        """How many steps a cell of the table has."""
        a_step = self.step + self._answers(recipe) * recipe.batch
        return max(1, int((seconds - compensated * self.compensation) / a_step))

    def seconds(self, recipe: HealRecipe, compensated: bool, training: float) -> float:
        """What a healing took in all, where answers and compensation had been found before."""
        return (
            training
            + self._answers(recipe) * recipe.batch * recipe.steps
            + compensated * self.compensation
        )

    def _answers(self, recipe: HealRecipe) -> float:
        return self.answer if recipe.loss != "lm" else 0.0


def table(
    record: Record,
    session: Session,
    recipe: HealRecipe,
    speeds: Speeds,
    options: argparse.Namespace,
) -> None:
    """Plain LoRA against distillation, compensation on and off, at equal time."""
    rows = []
    for compensated in (False, True):
        for loss in ("lm", "distill"):
            shares = []
            for seed in range(options.seeds):
                owned = recipe.model_copy(update={"loss": loss, "seed": seed})
                steps = speeds.steps(options.cell_seconds, owned, compensated)
                owned = owned.model_copy(update={"steps": steps, "eval_every": max(1, steps // 4)})
                after, report = session.healed(owned, compensated)
                shares.append(session.recovered(after))
                rows.append({"loss": loss, "compensated": compensated, "seed": seed, "steps": steps,
                             "log_perplexity": after, "recovered": shares[-1], "curve": report.held_out_loss,
                             "seconds": speeds.seconds(owned, compensated, report.seconds)})  # fmt: skip
                print({k: v for k, v in rows[-1].items() if k != "curve"}, flush=True)
            name = f"{loss}{'_compensated' if compensated else ''}"
            record.add(f"recovered_by_{name}", statistics.fmean(shares))
            record.add(f"least_recovered_by_{name}", min(shares))
            record.add(f"most_recovered_by_{name}", max(shares))
    record.notes["table"] = rows


def mixed(options: argparse.Namespace, path: Path) -> tuple[Path, Path]:
    """HellaSwag documents to measure on, and those after them, with paragraphs of the training
    text, to train on.
    """
    with open_text(options.hellaswag) as file:
        lines = list(file)[options.unused :]
    measured = path / "measured.jsonl"
    measured.write_text("".join(lines[: options.documents]), encoding="utf-8")
    documents = [
        _told(json.loads(line)) for line in lines[options.documents :][: options.train_documents]
    ]
    with open_text(options.train) as file:
        paragraphs = [line.strip() for line in file if len(line) > _PARAGRAPH]
    wanted = options.train_share / (1 - options.train_share) * sum(map(len, documents))
    lengths = itertools.accumulate(map(len, paragraphs))
    documents += [
        p for p, before in zip(paragraphs, [0, *lengths], strict=False) if before < wanted
    ]
    trained = path / "trained.jsonl"
    trained.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8"
    )
    return measured, trained


def _told(document: dict[str, Any]) -> str:
    """A document with its right ending, as lm-eval puts it to the model."""
    context = f"{document['ctx_a']} {document['ctx_b'].capitalize()}"
    return str(
        preprocess(
            f"{document['activity_label']}: {context} {document['endings'][int(document['label'])]}"
        )
    )


def long_run(
    record: Record, session: Session, recipe: HealRecipe, options: argparse.Namespace
) -> None:
    """Compensated and healed for longer, on text of the task too."""
    measured, trained = mixed(options, session.folder)
    loaded, references = session.loaded, session.folder / "references"
    objective = TaskObjective(loaded, "hellaswag", data=str(measured), limit=options.documents)
    found = {
        name: accuracy(loaded, c, objective)
        for name, c in (("dense", DENSE), ("pruned", CANDIDATE))
    }
    print(found, flush=True)
    recipe = recipe.model_copy(update={"data": str(trained)})
    start = time.perf_counter()
    ask_teacher(plan_healing(loaded, CANDIDATE, recipe), references)
    teacher = time.perf_counter() - start
    windows = fit_and_held_out(loaded.tokenizer, recipe.data, options.fit_tokens, recipe.window)
    with (
        weights_restored(loaded, [CANDIDATE]),
        compensate(loaded, CANDIDATE, *windows) as done,
    ):
        compensated = log_perplexity(loaded, CANDIDATE, session.test_BL)
        begun = time.perf_counter()
        report = heal(loaded, CANDIDATE, recipe, session.folder / "long", references=references)
        training = time.perf_counter() - begun
        after = log_perplexity(loaded, CANDIDATE, session.test_BL)
        found["healed"] = accuracy(loaded, CANDIDATE, objective)
    seconds = {
        "teacher": teacher,
        "compensation": sum(gap.seconds for gap in done.gaps),
        "training": training,
    }
    record.add("long_steps", report.steps)
    record.add("long_seconds", sum(seconds.values()), "<= 900")
    record.add("long_log_perplexity_compensated", compensated)
    record.add("long_log_perplexity", after)
    record.add("long_recovered", session.recovered(after), ">= 0.7")
    record.add("peak_gib", report.peak_memory / 2**30)
    record.notes["long"] = {
        **as_object(to_json(report), "healed"),
        "test": after,
        "seconds_of": seconds,
        "hellaswag": found,
    }
    for name, value in found.items():
        record.add(f"hellaswag_acc_norm_{name}", value["acc_norm"])
    record.add("hellaswag_stderr", found["healed"]["stderr"])
    record.add("hellaswag_documents", options.documents)
    lost = found["dense"]["acc_norm"] - found["pruned"]["acc_norm"]
    gained = found["healed"]["acc_norm"] - found["pruned"]["acc_norm"]
    record.add("hellaswag_recovered", gained / lost if lost else 0.0, ">= 0.5")


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        self.seconds.append(time.perf_counter() - self._start)


class _Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, ids_BL: torch.Tensor) -> None:
        self._ids_BL = ids_BL

    def __len__(self) -> int:
        return len(self._ids_BL)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._ids_BL[index], "labels": self._ids_BL[index]}


def seconds_of_an_answer(session: Session, recipe: HealRecipe) -> float:
    """What the dense model needs for a sequence of the training text."""
    planned = plan_healing(
        session.loaded, CANDIDATE, recipe.model_copy(update={"loss": "distill", "steps": 4})
    )
    start = time.perf_counter()
    ask_teacher(planned, None)
    asked = len(planned.sequences.train_BL) + len(planned.sequences.held_out_BL)
    return (time.perf_counter() - start) / asked


def throughput(record: Record, session: Session, recipe: HealRecipe) -> float:
    """Seconds of a step, ours and a bare loop's, turn about."""
    recipe = recipe.model_copy(update={"steps": 6, "eval_every": 10_000, "loss": "lm"})
    sequences = sequences_of(recipe, session.loaded.tokenizer)
    times: dict[str, list[float]] = {"ours": [], "bare": []}

    def ours(model: Any) -> None:  # noqa: ANN401
        clock = _Clock()
        with adapted(model, recipe) as adapter:
            folder = Path(tempfile.mkdtemp(dir=session.folder))
            trainer = HealTrainer(
                adapter.model,
                recipe,
                sequences,
                None,
                folder,
                name="throughput",
                check=lambda losses: None,
                device=torch.device("cpu"),
                bf16=False,
                checkpointing=False,
            )
            trainer.evaluate = lambda *_, **__: {"eval_loss": 1.0}  # type: ignore[method-assign]
            trainer.add_callback(clock)
            trainer.train()
        times["ours"] += clock.seconds[1:]

    def bare(model: Any) -> None:  # noqa: ANN401
        clock = _Clock()
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        adapter = get_peft_model(
            model,
            LoraConfig(
                r=recipe.rank,
                lora_alpha=int(recipe.alpha),
                target_modules=names,
                task_type="CAUSAL_LM",
            ),
        )
        arguments = TrainingArguments(
            tempfile.mkdtemp(dir=session.folder), max_steps=6, per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate, lr_scheduler_type="cosine", logging_steps=1, save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        Trainer(
            adapter, arguments, train_dataset=_Rows(sequences.train_BL), callbacks=[clock]
        ).train()
        adapter.unload()
        times["bare"] += clock.seconds[1:]

    with (
        weights_restored(session.loaded, [CANDIDATE]),
        pruned(session.loaded.model, CANDIDATE) as model,
    ):
        for run in (ours, bare, bare, ours):
            run(model)
    medians = {name: statistics.median(spent) for name, spent in times.items()}
    record.add("seconds_per_step", medians["ours"])
    record.add("throughput_to_a_bare_loop", medians["bare"] / medians["ours"], ">= 0.9")
    return medians["ours"]


_CHILD = """
import json, sys
from pathlib import Path
import torch
from benchmarks.healing import CANDIDATE
from prunesearch import events
from prunesearch.recovery import HealRecipe, heal
from prunesearch.models.loading import load
model, recipe, threads, work = sys.argv[1:]
torch.set_num_threads(int(threads))
loaded = load(model, dtype="float32", device="cpu")

def show(event):
    if isinstance(event, events.HealProgress) and event.phase == "training":
        print("step", event.done, flush=True)

with events.subscribed(show):
    healed = heal(loaded, CANDIDATE, HealRecipe(**json.loads(recipe)), Path(work))
print("CURVE" + json.dumps(healed.training_loss))
"""


def resumed(record: Record, session: Session, recipe: HealRecipe) -> None:
    """Kill a run after its first checkpoint and run it again."""
    recipe = recipe.model_copy(
        update={"steps": 6, "eval_every": 2, "loss": "lm", "held_out_tokens": 512}
    )
    words = [sys.executable, "-c", _CHILD, session.loaded.name, recipe.model_dump_json()]
    words.append(str(record.threads))

    def curve(work: Path) -> list[tuple[int, float]]:
        done = subprocess.run([*words, str(work)], capture_output=True, text=True, check=True)
        return [tuple(point) for point in json.loads(done.stdout.partition("CURVE")[2])]

    unbroken = curve(session.folder / "unbroken")
    work = session.folder / "killed"
    process = subprocess.Popen(
        [*words, str(work)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.split() == ["step", "4"]:  # step 3 has been trained; step 2's checkpoint is whole
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    again = curve(work)
    assert [step for step, _ in again] == [step for step, _ in unbroken]
    record.add("largest_difference_of_a_resumed_curve",
               max(abs(a - b) for (_, a), (_, b) in zip(again, unbroken, strict=True)), "<= 1e-4")  # fmt: skip


def draw(record: Record, path: Path) -> None:
    """Learning curves as a plot."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    colours = {
        (loss, on): f"C{2 * on + (loss == 'distill')}"
        for loss in ("lm", "distill")
        for on in (False, True)
    }
    for row in record.notes["table"]:
        kind = (row["loss"], row["compensated"])
        label = f"{'plain LoRA' if kind[0] == 'lm' else 'distillation'}{', compensated' if kind[1] else ''}"
        label = label if row["seed"] == 0 else "_"
        axes.plot(
            *zip(*row["curve"], strict=True),
            marker="o",
            markersize=3,
            color=colours[kind],
            label=label,
        )
    axes.set(
        xlabel="step", ylabel="held-out cross-entropy (nats/token)",
        title="SmolLM2-135M without 8 of 30 blocks: all cells take the same time",
    )  # fmt: skip
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the benchmark."""
    options = arguments(
        __doc__ or "",
        {
            "--train": {"type": Path, "help": "text to fit and to train on"},
            "--test": {"type": Path, "help": "text to measure on"},
            "--hellaswag": {"type": Path, "help": "HellaSwag .jsonl[.gz|.bz2]"},
            "--documents": {"type": int, "default": 1000, "help": "of HellaSwag, to measure on"},
            "--train-documents": {
                "type": int,
                "default": 2000,
                "help": "of HellaSwag, to train on",
            },
            "--train-share": {
                "type": float,
                "default": 0.2,
                "help": "of --train in the long run's text",
            },
            "--test-tokens": {"type": int, "default": 8192},
            "--seeds": {"type": int, "default": 3},
            "--cell-seconds": {
                "type": float,
                "default": 600,
                "help": "of each cell of the table",
            },
            "--long-steps": {"type": int, "default": 210},
            "--long-loss": {"default": "mix"},
            "--fit-tokens": {"type": int, "default": 8192, "help": "of the compensation"},
            "--held-out-tokens": {"type": int, "default": 2048, "help": "of --train, to choose by"},
            "--unused": {
                "type": int,
                "default": 1000,
                "help": "the documents of HellaSwag from here on were used by no search, "
                "calibration or evaluation of this project",
            },
        },
    )
    record = Record("healing", options.size)
    torch.set_num_threads(record.threads)
    vars(options).update(record.by_size({}, QUICK, SMOKE))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="prunesearch-healing-") as folder:
        options.model = model_folder(record, Path(folder))
        options.hellaswag = hellaswag(record, options.hellaswag, Path(folder))
        options.train = text(record, options.train, "--train", Path(folder))
        options.test = text(record, options.test, "--test", Path(folder))
        session = Session(options, Path(folder))
        record.add("log_perplexity_dense", session.dense)
        record.add("log_perplexity_pruned", session.pruned)
        record.add("log_perplexity_compensated", session.compensated)
        record.add("recovered_by_compensation", session.recovered(session.compensated), ">= 0.3")
        record.add("seconds_of_compensation", session.seconds_of_compensation)
        print(record.figures, flush=True)
        recipe = HealRecipe(
            data=str(options.train), window=256, batch_size=2, learning_rate=3e-3, rank=32, alpha=64, steps=1,
            distill_weight=0.3, held_out_tokens=options.held_out_tokens, eval_every=1, patience=100,
        )  # fmt: skip
        step = throughput(record, session, recipe)
        speeds = Speeds(
            step, seconds_of_an_answer(session, recipe), session.seconds_of_compensation
        )
        resumed(record, session, recipe)
        print(record.figures, flush=True)
        longer = {
            "loss": options.long_loss,
            "steps": options.long_steps,
            "eval_every": max(1, options.long_steps // 6),
        }
        long_run(record, session, recipe.model_copy(update=longer), options)
        print(record.figures, flush=True)
        if options.json is not None:
            options.json.write_text(
                json.dumps(record.document(), indent=2) + "\n"
            )  # the table may take hours
        table(record, session, recipe, speeds, options)
    record.finish(options.json)
    if options.json is not None:
        draw(record, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
