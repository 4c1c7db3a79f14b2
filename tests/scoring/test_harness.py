"""Task scores equal lm-eval's own, and bad tasks or data are refused."""

import contextlib
import io
import math
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from prunesearch.candidate import LayerSubset
from prunesearch.errors import DataError, InputError, ScoringError, UnknownNameError
from prunesearch.model.loading import LoadedModel
from prunesearch.model.surgery import pruned
from prunesearch.scoring.harness import TaskObjective
from prunesearch.scoring.objectives import Metrics
from prunesearch.scoring.text import read_jsonl
from tests.conftest import N_LAYERS, results_of

OWN_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
{choices}
metric_list:
{metrics}
metadata: {{version: 1.0}}
"""


def score(loaded: LoadedModel, objective: TaskObjective, dropped: tuple[int, ...]) -> Metrics:
    return objective.metrics(*results_of(loaded, objective, LayerSubset.of(N_LAYERS, dropped)))


def stock(loaded: LoadedModel, tasks: Any, **settings: Any) -> dict[str, float]:  # noqa: ANN401
    """Metrics and errors from `lm_eval.simple_evaluate` itself."""
    with contextlib.redirect_stderr(io.StringIO()):
        lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4)
        outcome = lm_eval.simple_evaluate(lm, tasks=tasks, bootstrap_iters=100, **settings)
    (results,) = outcome["results"].values()
    return {name.split(",")[0]: v for name, v in results.items() if isinstance(v, float)}


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager()


@pytest.mark.parametrize(("dropped", "shots"), [((), None), ((0, 4), 2)])
def test_hellaswag_on_local_data_equals_simple_evaluate(
    loaded: LoadedModel, hellaswag_like: Path, manager: TaskManager, dropped: tuple[int, ...], shots: int | None
) -> None:
    objective = TaskObjective(loaded, "hellaswag", data=str(hellaswag_like), limit=10, num_fewshot=shots)
    assert (objective.metric, objective.maximize) == ("acc_norm", True)
    ours = score(loaded, objective, dropped)
    splits = {"local": datasets.Dataset.from_list(read_jsonl(hellaswag_like))}
    overrides = {
        "custom_dataset": lambda **_: splits,
        "training_split": None,
        "validation_split": "local",
        "fewshot_split": "local",
    }
    tasks = manager.load([{"group": "g", "task": [{"task": "hellaswag", **overrides}]}])["tasks"]
    with pruned(loaded.model, LayerSubset.of(N_LAYERS, dropped)):
        theirs = stock(loaded, list(tasks.values()), limit=10, num_fewshot=shots)
    assert ours.values["acc_norm"] == theirs["acc_norm"]
    assert ours.values["acc"] == theirs["acc"]
    assert ours.stderr["acc_norm"] == theirs["acc_norm_stderr"]
    assert score(loaded, objective, dropped) == ours, "the same answers give the same metrics again"


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """Own task files: one of log-likelihood, one of rolling type, one that generates, in a folder of its own."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f'{{"q": "What is {i}?", "a": "It is {i}."}}\n' for i in range(6)))
    folder = tmp_path / "tasks"
    folder.mkdir()

    def add(name: str, kind: str, text: str, target: str, *metrics: tuple[str, str, str]) -> None:
        lines = "".join(f"  - {{metric: {m}, aggregation: {a}, higher_is_better: {h}}}\n" for m, a, h in metrics)
        settings = {"name": name, "data": data, "kind": kind, "text": text, "target": target, "choices": ""}
        (folder / f"{name}.yaml").write_text(OWN_TASK.format(metrics=lines, **settings))

    add("own_ll", "loglikelihood", "{{q}}", " {{a}}", ("perplexity", "perplexity", "false"), ("acc", "mean", "true"))
    add("own_roll", "loglikelihood_rolling", "", "{{q}} {{a}}", ("word_perplexity", "weighted_perplexity", "false"))
    add("own_gen", "generate_until", "{{q}}", "{{a}}", ("exact_match", "mean", "true"))
    return folder


@pytest.mark.parametrize(("task", "metric"), [("own_ll", "perplexity"), ("own_roll", "word_perplexity")])
def test_own_tasks_of_log_likelihood_type_equal_simple_evaluate(
    loaded: LoadedModel, own_tasks: Path, task: str, metric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    objective = TaskObjective(loaded, task, include_path=str(own_tasks))
    assert (objective.metric, objective.maximize) == (metric, False)
    capsys.readouterr()
    ours = score(loaded, objective, (2,))
    assert capsys.readouterr().out == "", "stdout belongs to the command's own document"
    manager = TaskManager(include_path=str(own_tasks), include_defaults=False)
    with pruned(loaded.model, LayerSubset.of(N_LAYERS, (2,))):
        theirs = stock(loaded, [task], task_manager=manager)
    assert math.log(ours.values[metric]) == pytest.approx(math.log(theirs[metric]), rel=1e-6)


def test_the_metric_can_be_chosen(loaded: LoadedModel, own_tasks: Path) -> None:
    chosen = TaskObjective(loaded, "own_ll", metric="acc", include_path=str(own_tasks))
    assert (chosen.metric, chosen.maximize) == ("acc", True)
    with pytest.raises(UnknownNameError, match="metric of task 'own_ll' 'ac': did you mean 'acc'"):
        TaskObjective(loaded, "own_ll", metric="ac", include_path=str(own_tasks))


def test_what_cannot_be_scored_is_refused(loaded: LoadedModel, own_tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="generates text"):
        TaskObjective(loaded, "own_gen", include_path=str(own_tasks))
    with pytest.raises(UnknownNameError, match="did you mean 'hellaswag'"):
        TaskObjective(loaded, "helaswag")
    with pytest.raises(DataError, match="no folder"):
        TaskObjective(loaded, "hellaswag", include_path=str(tmp_path / "none"))
    (tmp_path / "undefined.jsonl").write_text('{"answerKey": "A", "choices": {"text": ["a"], "label": ["A"]}}\n')
    (tmp_path / "wrong.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(DataError, match="needs a field 'ctx_a'"):
        TaskObjective(loaded, "hellaswag", data=str(tmp_path / "wrong.jsonl"))
    with pytest.raises(DataError, match=r"cannot use .*'question' is undefined"):
        TaskObjective(loaded, "arc_easy", data=str(tmp_path / "undefined.jsonl"))
    with pytest.raises(InputError, match="group of several"):
        TaskObjective(loaded, "mmlu", data=str(tmp_path / "wrong.jsonl"))


def test_labels_are_part_of_the_data_but_not_of_the_key(
    loaded: LoadedModel, hellaswag_like: Path, tmp_path: Path
) -> None:
    relabelled = tmp_path / "relabelled.jsonl"
    relabelled.write_text(hellaswag_like.read_text().replace('"label": "1"', '"label": "2"'))
    a, b = (TaskObjective(loaded, "hellaswag", data=str(p)) for p in (hellaswag_like, relabelled))
    assert a.digest != b.digest
    assert [chunk.identity for chunk in a.chunks] == [chunk.identity for chunk in b.chunks]


def test_broken_output_is_an_error(loaded: LoadedModel, hellaswag_like: Path) -> None:
    objective = TaskObjective(loaded, "hellaswag", data=str(hellaswag_like), limit=2)
    loaded.model.model.norm.weight.data.fill_(float("nan"))
    (found,) = results_of(loaded, objective, LayerSubset.of(N_LAYERS, (1,)))
    assert all(isinstance(result, ScoringError) and "not finite" in str(result) for result in found)
