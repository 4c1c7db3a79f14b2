"""Healing a candidate: ask the teacher, train, merge the best adapter into the weights, remember that it is done.

A run has a work folder with its checkpoints. When it is finished, the best adapter and the report are all that stays
there, and the same run again merges that adapter without training.
"""

import hashlib
import json
import math
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.engine.memory import keep_freed_memory
from prunesearch.errors import InputError, StorageError, one_line
from prunesearch.heal.adapter import Adapter, adapted, target_names, wide_weights
from prunesearch.heal.data import Sequences, sequences_of
from prunesearch.heal.recipe import HealRecipe
from prunesearch.heal.teacher import Teacher
from prunesearch.heal.training import (
    Curves,
    Examples,
    HealProgress,
    HealTrainer,
    Listener,
    checkpoint_at,
    held_out_losses,
    newest_checkpoint,
)
from prunesearch.model.anatomy import input_device
from prunesearch.model.arithmetic import wide_products, widens
from prunesearch.model.fingerprint import fingerprint
from prunesearch.model.loading import LoadedModel
from prunesearch.model.surgery import pruned
from prunesearch.scoring.objectives import numerics_of, tokens_digest
from prunesearch.store.keys import canonical_json
from prunesearch.store.places import check_writable

HEAL_VERSION = 1
"""Raised whenever a change of this package may change a healed weight."""
WORK = Path("storage/heal")
"""Where work folders lie by default, by digest."""
_RUN, _RESULT, _ADAPTER, _LOCK = "run.json", "result.json", "adapter", ".lock"
_16_BIT = (torch.bfloat16, torch.float16)

Curve = tuple[tuple[int, float | None], ...]
"""Steps and losses in nats per token; None where the loss was no number."""


@dataclass(frozen=True)
class Healed:
    """What healing did.

    Attributes:
        digest: of everything that determines it.
        steps: taken, of `planned`.
        best_step: whose weights were kept; 0: the pruned model was never beaten.
        training_loss: by step: cross-entropy, KL or their sum, as the recipe says.
        watched_loss: the same on the held-out text, by which the best was chosen; from step 0, the pruned model, on.
        held_out_loss: next-token cross-entropy there, whatever was trained.
        dense_loss: the same of the model with all its blocks; None where its weights had been changed before.
        tokens: trained on, repetitions counted.
        seconds: of training, over all processes that took part.
        peak_memory: bytes, of the process, or of the GPU.
        stopped_early: for want of progress.
        diverged: the loss was no number or far above the start; the best before that was kept.
        merge_difference: largest difference of a logit between adapted and merged model.
        cached: it had been done before, and nothing was trained.
        resumed_from: the step that this process went on from.
    """

    digest: str
    steps: int
    planned: int
    best_step: int
    training_loss: Curve
    watched_loss: Curve
    held_out_loss: Curve
    dense_loss: float | None
    tokens: int
    seconds: float
    peak_memory: int
    stopped_early: bool
    diverged: bool
    merge_difference: float
    cached: bool = False
    resumed_from: int = 0

    @property
    def before(self) -> float:
        """Held-out loss of the pruned model."""
        return _number(self.held_out_loss, 0)

    @property
    def after(self) -> float:
        """Held-out loss of the weights that were kept."""
        return _number(self.held_out_loss, self.best_step)

    @property
    def watched(self) -> float:
        """The least watched loss, which is that of the weights that were kept."""
        return _number(self.watched_loss, self.best_step)

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "before": self.before, "after": self.after}


def _number(curve: Curve, step: int) -> float:
    loss = dict(curve)[step]
    return math.nan if loss is None else loss


@dataclass(frozen=True)
class Plan:
    """A run that is known to be possible.

    Attributes:
        identity: everything that determines the result, as JSON values.
        dense: the weights in memory are those that `loaded.fingerprint` names.
    """

    loaded: LoadedModel
    candidate: LayerSubset
    recipe: HealRecipe
    sequences: Sequences
    identity: dict[str, Any]
    bf16: bool
    wide: bool
    dense: bool

    @property
    def digest(self) -> str:
        """Sha256 of the identity, hexadecimal."""
        return hashlib.sha256(canonical_json(self.identity).encode()).hexdigest()


def plan(loaded: LoadedModel, candidate: LayerSubset, recipe: HealRecipe) -> Plan:
    """Check everything and read the data; nothing is written or computed.

    Raises:
        InputError: the model is streamed, the target modules match nothing, or the data do not suffice.
    """
    if loaded.layers.one_pass:
        raise InputError("training needs the weights in memory: leave --weights out")
    sequences = sequences_of(recipe, loaded.tokenizer)
    bf16, wide = _arithmetic(loaded.model, recipe)
    content = fingerprint(loaded.model)
    with pruned(loaded.model, candidate) as model:
        targets = target_names(model, recipe.target_modules)
    identity = {
        "version": HEAL_VERSION,
        "model": content,
        "candidate": candidate.canonical,
        "recipe": recipe.identity(),
        "targets": targets,
        "data": tokens_digest(sequences.train_BL.tolist()),
        "held_out": tokens_digest(sequences.held_out_BL.tolist()),
        "numerics": numerics_of(loaded.model)
        | {"trained in": "bfloat16" if bf16 else "float32" if wide else "as it is"},
    }
    dense = content == loaded.fingerprint
    return Plan(loaded, candidate, recipe, sequences, identity, bf16, wide, dense)


def _arithmetic(model: PreTrainedModel, recipe: HealRecipe) -> tuple[bool, bool]:
    """Whether to compute in bfloat16 (autocast), and whether to hold 16-bit weights as float32 for the time.

    A GPU trains in bfloat16 where it can; a CPU keeps float32 weights as they are, and goes to float32 where it has no
    16-bit products.

    Raises:
        InputError: bfloat16 is asked for where there is none.
    """
    device, narrow = input_device(model), model.dtype in _16_BIT
    able = torch.cuda.is_bf16_supported() if device.type == "cuda" else device.type == "cpu"
    if recipe.precision == "bfloat16" and not able:
        raise InputError(f"--precision bfloat16 cannot be used on {device}: use float32")
    fast = able and (device.type == "cuda" or (narrow and not widens()))
    bf16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and fast)
    return bf16, narrow and not bf16


def heal(
    loaded: LoadedModel,
    candidate: LayerSubset,
    recipe: HealRecipe,
    work_folder: Path | None = None,
    listener: Listener = lambda progress: None,
    *,
    references: Path | None = None,
    checkpointing: bool = False,
) -> Healed:
    """Heal a candidate: behind this, the blocks that it keeps have healed weights, in the model they belong to.

    `weights_restored` gives the dense weights back. A run that was stopped goes on where it was, and a finished one is
    not repeated.

    Args:
        loaded: the dense model.
        work_folder: of this run alone; default: `WORK`, by digest.
        listener: told of progress.
        references: folder of the dense model's answers (see `ReferenceStore`); default: in memory.
        checkpointing: compute activations again in the backward pass: less memory, a third more time.

    Raises:
        InputError: see `plan`; the folder is another run's, or in use.
        StorageError: the folder cannot be written.
        VerificationError: the merged model is not the adapted one.
    """
    return carry_out(plan(loaded, candidate, recipe), work_folder, listener, references, checkpointing)


def carry_out(
    planned: Plan,
    work_folder: Path | None = None,
    listener: Listener = lambda progress: None,
    references: Path | None = None,
    checkpointing: bool = False,
    merge: bool = True,
) -> Healed:
    """What `heal` does, of a plan.

    Args:
        merge: false leaves the weights as they are: the report is wanted alone.
    """
    folder = work_folder or WORK / planned.digest[:16]
    model, recipe = planned.loaded.model, planned.recipe
    check_writable(folder)
    with _held(folder, planned.identity):
        healed = _finished(folder)
        if healed is not None:
            _tidy(folder)
            if not merge:
                return healed
        else:
            dense_loss = _dense_loss(planned)
            teacher = ask_teacher(planned, references, listener)
        with (
            torch.random.fork_rng(),
            pruned(model, planned.candidate),
            wide_weights(model, planned.wide),
            adapted(model, recipe) as adapter,
        ):
            if healed is None:
                trained = _train(planned, adapter, teacher, folder, listener, checkpointing)
                _keep_best(trained.curves, folder, adapter)
                difference = adapter.merge(planned.sequences.held_out_BL[:1]) if merge else 0.0
                healed = _report(planned, trained, dense_loss, difference)
                _write(folder / _RESULT, healed.document())
                _tidy(folder)
            else:
                adapter.read(folder / _ADAPTER)
                difference = adapter.merge(planned.sequences.held_out_BL[:1])
                healed = replace(healed, merge_difference=difference)
    return healed


@dataclass(frozen=True)
class _Trained:
    curves: Curves
    resumed_from: int


def _train(
    planned: Plan, adapter: Adapter, teacher: Teacher | None, folder: Path, listener: Listener, checkpointing: bool
) -> _Trained:
    """Train to the end."""
    model, started = planned.loaded.model, newest_checkpoint(folder)
    use_cache = model.config.use_cache  # the Trainer sets it
    keep_freed_memory()
    trainer = HealTrainer(
        adapter.model,
        planned.recipe,
        planned.sequences,
        teacher,
        folder,
        listener,
        device=input_device(model),
        bf16=planned.bf16,
        checkpointing=checkpointing,
    )
    try:
        curves = trainer.heal()
    finally:
        model.config.use_cache = use_cache
        if checkpointing:
            model.activation_checkpointing_disable()  # type: ignore[no-untyped-call]
        model.eval()  # type: ignore[no-untyped-call]
    return _Trained(curves, int(started.name.rpartition("-")[2]) if started is not None else 0)


def _keep_best(curves: Curves, folder: Path, adapter: Adapter) -> None:
    """Put the best step's adapter on the model, and keep it beside the result."""
    step, _ = curves.best
    if step:
        adapter.read(checkpoint_at(folder, step))
    else:
        adapter.reset()
    scratch = folder / f".{_ADAPTER}"
    shutil.rmtree(scratch, ignore_errors=True)
    adapter.model.save_pretrained(str(scratch))
    shutil.rmtree(folder / _ADAPTER, ignore_errors=True)
    scratch.rename(folder / _ADAPTER)


def _report(planned: Plan, trained: _Trained, dense_loss: float | None, difference: float) -> Healed:
    curves, recipe = trained.curves, planned.recipe
    steps = curves.training[-1][0] if curves.training else 0
    return Healed(
        digest=planned.digest,
        steps=steps,
        planned=recipe.steps,
        best_step=curves.best[0],
        training_loss=_finite(curves.training),
        watched_loss=_finite(curves.watched),
        held_out_loss=_finite(curves.held_out),
        dense_loss=dense_loss,
        tokens=steps * recipe.batch_tokens,
        seconds=curves.seconds,
        peak_memory=_peak_memory(input_device(planned.loaded.model)),
        stopped_early=not curves.diverged and steps < recipe.steps,
        diverged=curves.diverged,
        merge_difference=difference,
        resumed_from=trained.resumed_from,
    )


def _finite(curve: list[tuple[int, float]]) -> Curve:
    return tuple((step, loss if math.isfinite(loss) else None) for step, loss in curve)


def held_out_loss(planned: Plan, candidate: LayerSubset) -> float:
    """Cross-entropy of the held-out text without a candidate's blocks, in nats per token, with weights as they are."""
    lm = planned.recipe.model_copy(update={"loss": "lm"})
    with wide_products(), pruned(planned.loaded.model, candidate) as model:
        return held_out_losses(model, Examples(planned.sequences.held_out_BL, None), lm, input_device(model))[1]


def _dense_loss(planned: Plan) -> float | None:
    return held_out_loss(planned, LayerSubset.of(planned.loaded.n_layers)) if planned.dense else None


def ask_teacher(planned: Plan, references: Path | None, listener: Listener = lambda progress: None) -> Teacher | None:
    """The dense model's answers, all of them known; None where the loss does not want them.

    Raises:
        InputError: some are not, and the weights in memory are no longer the dense model's.
    """
    if planned.recipe.loss == "lm":
        return None
    teacher = Teacher(planned.loaded, planned.recipe.kl_top, references, planned.dense)
    every_BL = torch.cat([planned.sequences.train_BL, planned.sequences.held_out_BL])
    teacher.prepare(every_BL, lambda done, total: listener(HealProgress("teacher", done, total)))
    return teacher


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def _held(folder: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Make the run's work folder, or see that it is its own, and keep others out.

    Raises:
        InputError: it belongs to another run, or another process is at work in it.
        StorageError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise InputError(f"another process is healing in {str(folder)!r}: wait for it") from None
    except OSError as error:
        raise StorageError(f"cannot use the work folder {str(folder)!r}: {one_line(error)}") from None
    try:
        _check_owner(folder, identity)
        yield
    except OSError as error:
        raise StorageError(f"cannot work in {str(folder)!r}: {one_line(error)}; free space and run it again") from None
    finally:
        lock.release()


def _check_owner(folder: Path, identity: dict[str, Any]) -> None:
    if not (folder / _RUN).exists():
        if any(path.name not in (_LOCK, f".{_RUN}") for path in folder.iterdir()):
            raise InputError(f"work folder {str(folder)!r} holds something else: give an empty one, or none")
        _write(folder / _RUN, identity)
        return
    try:
        stored = json.loads((folder / _RUN).read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"work folder {str(folder)!r} is damaged: delete it, or give another") from None
    differing = list(_differing(stored, identity))
    if differing:
        raise InputError(
            f"work folder {str(folder)!r} belongs to another run (it differs in {', '.join(differing)}): "
            "give another folder, or none"
        )


def _differing(stored: dict[str, Any], asked: dict[str, Any]) -> Iterator[str]:
    """What differs between two identities, by name; settings of the recipe with both values."""
    for name in sorted({*stored, *asked}):
        old, new = stored.get(name), asked.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
            yield from (f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in changed)
        elif old != new:
            yield f"{name}: {old} there, {new} now" if name == "candidate" else f"the {name.replace('_', '-')}"


def _finished(folder: Path) -> Healed | None:
    """The report of a run that is done."""
    try:
        stored = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not (folder / _ADAPTER / SAFETENSORS_WEIGHTS_NAME).is_file():
        return None
    for name in ("before", "after"):
        del stored[name]
    for name in ("training_loss", "watched_loss", "held_out_loss"):
        stored[name] = tuple((step, loss) for step, loss in stored[name])
    return Healed(**{**stored, "cached": True})


def _write(path: Path, document: dict[str, Any]) -> None:
    """Write JSON that is there as a whole or not at all."""
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(json.dumps(document, indent=1, sort_keys=True), encoding="utf-8")
    scratch.replace(path)


def _tidy(folder: Path) -> None:
    """Delete the checkpoints of a finished run."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
