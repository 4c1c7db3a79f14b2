"""How much of what pruning loses comes back: compensation, LoRA, distillation, together and alone.

    python -m benchmarks.healing --train wikitext2_valid.txt --test wikitext2_test.txt --hellaswag hellaswag.jsonl.bz2 \
        --json benchmarks/results/healing.json

SmolLM2-135M without 8 of its 30 blocks. Compensation is fitted to, and healing trained on, `--train`; part of that is
kept apart to choose by. Losses are next-token cross-entropies (log-perplexities, nats per token) on `--test`, which
chose nothing.

* A table of two by two at equal steps and batches: plain LoRA against distillation, with and without compensation.
* One longer healing, compensated and distilled, with HellaSwag's acc_norm before and after.
* Seconds of a step against a bare peft + Trainer loop on the same batches.
* A run that is killed (SIGKILL) and run again, against one that is not: largest difference of the loss curves.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.record import Record, precision
from prunesearch.candidate import LayerSubset
from prunesearch.heal import Healed, HealRecipe, heal, weights_restored
from prunesearch.heal.adapter import adapted
from prunesearch.heal.compensation import compensate, fit_and_held_out
from prunesearch.heal.data import sequences_of
from prunesearch.heal.healing import ask_teacher, plan
from prunesearch.heal.training import HealTrainer
from prunesearch.model.arithmetic import wide_products
from prunesearch.model.demo_weights import obtain
from prunesearch.model.loading import LoadedModel, load
from prunesearch.model.surgery import pruned
from prunesearch.scoring.forward import Forward
from prunesearch.scoring.harness import TaskObjective
from prunesearch.scoring.text import token_windows

CANDIDATE = LayerSubset.parse("4,12,13,14,15,16,17,18", 30)
DENSE = LayerSubset.of(30)
FIT_TOKENS = 8192


@torch.inference_mode()
def log_perplexity(loaded: LoadedModel, candidate: LayerSubset, windows_BL: torch.Tensor) -> float:
    """Mean next-token cross-entropy in nats, by the model's own forward pass."""
    sums = 0.0
    with pruned(loaded.model, candidate) as model, wide_products():
        for ids_BL in windows_BL.split(2):
            logits_BLV = model(input_ids=ids_BL, use_cache=False).logits[:, :-1].float()
            sums += float(torch.nn.functional.cross_entropy(logits_BLV.flatten(0, 1), ids_BL[:, 1:].flatten())) * len(
                ids_BL
            )
    return sums / len(windows_BL)


def accuracy(loaded: LoadedModel, candidate: LayerSubset, objective: TaskObjective) -> dict[str, float]:
    """HellaSwag's acc_norm and its standard error, with the weights as they are."""
    work = [(chunk, [candidate]) for chunk in objective.chunks]
    found = {index: results for index, _, results in objective.score(work, Forward(loaded.model, loaded.layers))}
    metrics = objective.metrics([found[chunk.index] for chunk in objective.chunks])  # type: ignore[misc]
    return {"acc_norm": metrics.values["acc_norm"], "stderr": metrics.stderr["acc_norm"]}


class Bench:
    """What all parts share: the model, texts, and the dense and pruned figures."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.folder = folder
        self.loaded = load(str(obtain(Path("storage/models"), print)), dtype=precision(), device="cpu")
        self.test_BL = token_windows(str(options.test), self.loaded.tokenizer, options.test_tokens, 256)
        self.windows = fit_and_held_out(self.loaded.tokenizer, str(options.train), FIT_TOKENS, 256)
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

    def healed(
        self, recipe: HealRecipe, compensated: bool, objective: TaskObjective | None = None
    ) -> tuple[float, Healed, float, dict[str, float] | None]:
        """Loss on the test text behind healing, the report, all seconds, and the accuracy where a task is given."""
        start = time.perf_counter()
        references = self.folder / "references"
        ask_teacher(plan(self.loaded, CANDIDATE, recipe), references)
        with weights_restored(self.loaded.model, [CANDIDATE], recipe.target_modules), ExitStack() as stack:
            if compensated:
                stack.enter_context(self.compensation())
            work = Path(tempfile.mkdtemp(dir=self.folder))
            report = heal(self.loaded, CANDIDATE, recipe, work, references=references)
            seconds = time.perf_counter() - start + compensated * self.seconds_of_compensation
            loss = log_perplexity(self.loaded, CANDIDATE, self.test_BL)
            found = accuracy(self.loaded, CANDIDATE, objective) if objective is not None else None
        return loss, report, seconds, found


def table(record: Record, bench: Bench, recipe: HealRecipe, seeds: int) -> None:
    """Plain LoRA against distillation, compensation on and off."""
    rows = []
    for compensated in (False, True):
        for loss in ("lm", "distill"):
            shares = []
            for seed in range(seeds):
                mine = recipe.model_copy(update={"loss": loss, "seed": seed})
                after, report, seconds, _ = bench.healed(mine, compensated)
                shares.append(bench.recovered(after))
                rows.append({"loss": loss, "compensated": compensated, "seed": seed, "log_perplexity": after,
                             "recovered": shares[-1], "seconds": seconds, "curve": report.held_out_loss})  # fmt: skip
                print({k: v for k, v in rows[-1].items() if k != "curve"}, flush=True)
            name = f"{loss}{'_compensated' if compensated else ''}"
            record.add(f"recovered_by_{name}", statistics.fmean(shares))
    record.notes["table"] = rows


def long_run(record: Record, bench: Bench, recipe: HealRecipe, options: argparse.Namespace) -> None:
    """Compensated and distilled for longer."""
    objective = None
    if options.hellaswag is not None:
        objective = TaskObjective(bench.loaded, "hellaswag", data=str(options.hellaswag), limit=options.documents)
        before = {name: accuracy(bench.loaded, c, objective) for name, c in (("dense", DENSE), ("pruned", CANDIDATE))}
        print(before, flush=True)
    after, report, seconds, found = bench.healed(recipe, True, objective)
    record.add("long_steps", report.steps)
    record.add("long_seconds_with_teacher_and_compensation", seconds, "<= 900")
    record.add("long_log_perplexity", after)
    record.add("long_recovered", bench.recovered(after), ">= 0.7")
    record.add("peak_gib", report.peak_memory / 2**30)
    record.notes["long"] = {**report.document(), "test": after}
    if found is not None:
        lost = before["dense"]["acc_norm"] - before["pruned"]["acc_norm"]
        for name, value in {**before, "healed": found}.items():
            record.add(f"hellaswag_acc_norm_{name}", value["acc_norm"])
        record.add("hellaswag_stderr", found["stderr"])
        record.add("hellaswag_documents", options.documents)
        record.add("hellaswag_recovered", (found["acc_norm"] - before["pruned"]["acc_norm"]) / lost, ">= 0.5")


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


def throughput(record: Record, bench: Bench, recipe: HealRecipe) -> None:
    """Seconds of a step, ours and a bare loop's, turn about."""
    recipe = recipe.model_copy(update={"steps": 6, "eval_every": 10_000, "loss": "lm"})
    sequences = sequences_of(recipe, bench.loaded.tokenizer)
    times: dict[str, list[float]] = {"ours": [], "bare": []}

    def ours(model: Any) -> None:  # noqa: ANN401
        clock = _Clock()
        with adapted(model, recipe) as adapter:
            folder = Path(tempfile.mkdtemp(dir=bench.folder))
            trainer = HealTrainer(
                adapter.model,
                recipe,
                sequences,
                None,
                folder,
                lambda progress: None,
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
        adapter = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=names, task_type="CAUSAL_LM"))
        arguments = TrainingArguments(
            tempfile.mkdtemp(dir=bench.folder), max_steps=6, per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate, lr_scheduler_type="cosine", logging_steps=1, save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        Trainer(adapter, arguments, train_dataset=_Rows(sequences.train_BL), callbacks=[clock]).train()
        adapter.unload()
        times["bare"] += clock.seconds[1:]

    with weights_restored(bench.loaded.model, [CANDIDATE]), pruned(bench.loaded.model, CANDIDATE) as model:
        for run in (ours, bare, bare, ours):
            run(model)
    medians = {name: statistics.median(spent) for name, spent in times.items()}
    record.add("seconds_per_step", medians["ours"])
    record.add("throughput_to_a_bare_loop", medians["bare"] / medians["ours"], ">= 0.9")


_CHILD = """
import json, sys
from pathlib import Path
import torch
from benchmarks.healing import CANDIDATE
from prunesearch.heal import HealRecipe, heal
from prunesearch.model.loading import load
torch.set_num_threads(2)
model, recipe, work = sys.argv[1:]
loaded = load(model, dtype="float32", device="cpu")
tell = lambda progress: print("step", progress.done, flush=True) if progress.phase == "training" else None
print("CURVE" + json.dumps(heal(loaded, CANDIDATE, HealRecipe(**json.loads(recipe)), Path(work), tell).training_loss))
"""


def resumed(record: Record, bench: Bench, recipe: HealRecipe) -> None:
    """Kill a run behind its first checkpoint and run it again."""
    recipe = recipe.model_copy(update={"steps": 6, "eval_every": 2, "loss": "lm", "held_out_tokens": 512})
    words = [sys.executable, "-c", _CHILD, bench.loaded.name, recipe.model_dump_json()]

    def curve(work: Path) -> list[tuple[int, float]]:
        done = subprocess.run([*words, str(work)], capture_output=True, text=True, check=True)
        return [tuple(point) for point in json.loads(done.stdout.partition("CURVE")[2])]

    unbroken = curve(bench.folder / "unbroken")
    work = bench.folder / "killed"
    process = subprocess.Popen([*words, str(work)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
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
    for row in record.notes.get("table", []):
        label = f"{row['loss']}{', compensated' if row['compensated'] else ''}"
        axes.plot(*zip(*row["curve"], strict=True), marker="o", label=label if row["seed"] == 0 else None)
    if "long" in record.notes:
        axes.plot(
            *zip(*record.notes["long"]["held_out_loss"], strict=True), marker="s", label="longer: distill, compensated"
        )
    axes.set(xlabel="step", ylabel="held-out cross-entropy (nats/token)", title="SmolLM2-135M without 8 of 30 blocks")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same figures with a few steps")
    parser.add_argument("--json", type=Path, help="write the document here, and the plot beside it")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--hellaswag", type=Path, help="HellaSwag .jsonl[.gz|.bz2]")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--test-tokens", type=int, default=8192)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="of each cell of the table")
    parser.add_argument("--long-steps", type=int, default=160)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(2)
    steps, long_steps, seeds = (2, 4, 1) if options.quick else (options.steps, options.long_steps, options.seeds)
    record = Record("healing", options.quick)
    with tempfile.TemporaryDirectory(prefix="prunesearch-healing-") as folder:
        bench = Bench(options, Path(folder))
        record.add("log_perplexity_dense", bench.dense)
        record.add("log_perplexity_pruned", bench.pruned)
        record.add("log_perplexity_compensated", bench.compensated)
        record.add("recovered_by_compensation", bench.recovered(bench.compensated), ">= 0.3")
        record.add("seconds_of_compensation", bench.seconds_of_compensation)
        print(record.figures, flush=True)
        recipe = HealRecipe(
            data=str(options.train), window=256, batch_size=4, learning_rate=1e-3, held_out_tokens=2048, steps=steps,
            eval_every=max(1, steps // 2), patience=100,
        )  # fmt: skip
        throughput(record, bench, recipe)
        resumed(record, bench, recipe)
        print(record.figures, flush=True)
        longer = {"loss": "distill", "steps": long_steps, "eval_every": max(1, long_steps // 4)}
        long_run(record, bench, recipe.model_copy(update=longer), options)
        print(record.figures, flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(record.document(), indent=2) + "\n")  # the table may take hours
        table(record, bench, recipe, seeds)
    record.finish(options.json)
    if options.json is not None:
        draw(record, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
