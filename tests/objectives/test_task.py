"""Task scores equal lm-eval's own, and bad tasks or data are refused."""

import contextlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import decoders
from tokenizers.processors import TemplateProcessing
from transformers import BloomConfig, BloomForCausalLM

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import LayerSubset
from prunesearch.errors import (
    DataError,
    InputError,
    ScoringError,
    UnknownNameError,
)
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.models.fingerprint import fingerprint
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.sizes import sizes_of
from prunesearch.models.streaming import open_streamed
from prunesearch.models.surgery import pruned
from prunesearch.objectives.base import Chunk, Metrics
from prunesearch.objectives.calibration_data import read_jsonl
from prunesearch.objectives.lm_eval_tasks import bootstrap_here
from prunesearch.objectives.task import TaskObjective
from tests.support.models import N_LAYERS, byte_tokenizer, resident, results_of, store_head_apart
from tests.support.widths import narrow_copy

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
    with contextlib.redirect_stderr(io.StringIO()), bootstrap_here():
        lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4)
        outcome = lm_eval.simple_evaluate(lm, tasks=tasks, bootstrap_iters=100, **settings)
    (results,) = outcome["results"].values()
    return {name.split(",")[0]: v for name, v in results.items() if isinstance(v, float)}


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    """lm-eval's index of one folder; that of all its tasks takes seconds to read."""
    folder = Path(lm_eval.tasks.__file__).parent / "hellaswag"
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.mark.parametrize(("dropped", "shots"), [((), None), ((0, 4), 2)])
def test_hellaswag_on_local_data_equals_simple_evaluate(
    loaded: LoadedModel,
    hellaswag_like: Path,
    manager: TaskManager,
    dropped: tuple[int, ...],
    shots: int | None,
) -> None:
    objective = TaskObjective(
        loaded, "hellaswag", data=str(hellaswag_like), limit=10, num_fewshot=shots
    )
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
        theirs = stock(
            loaded, list(tasks.values()), limit=10, num_fewshot=shots, task_manager=manager
        )
    assert ours.values["acc_norm"] == theirs["acc_norm"]
    assert ours.values["acc"] == theirs["acc"]
    assert ours.stderr["acc_norm"] == theirs["acc_norm_stderr"]
    assert score(loaded, objective, dropped) == ours, "the same answers give the same metrics again"


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own task files of log-likelihood and rolling type, and some that generate, in a folder of its
    own.
    """
    here = tmp_path_factory.mktemp("own")
    data = here / "rows.jsonl"
    data.write_text("".join(f'{{"q": "What is {i}?", "a": "It is {i}."}}\n' for i in range(6)))
    folder = here / "tasks"
    folder.mkdir()

    def add(
        name: str, kind: str, text: str, target: str, *metrics: tuple[str, str, str], end: str = ""
    ) -> None:
        lines = "".join(
            f"  - {{metric: {m}, aggregation: {a}, higher_is_better: {h}}}\n" for m, a, h in metrics
        )
        settings = {
            "name": name,
            "data": data,
            "kind": kind,
            "text": text,
            "target": target,
            "choices": "",
        }
        (folder / f"{name}.yaml").write_text(OWN_TASK.format(metrics=lines, **settings) + end)

    add(
        "own_ll",
        "loglikelihood",
        "{{q}}",
        " {{a}}",
        ("perplexity", "perplexity", "false"),
        ("acc", "mean", "true"),
    )
    add(
        "own_roll",
        "loglikelihood_rolling",
        "",
        "{{q}} {{a}}",
        ("word_perplexity", "weighted_perplexity", "false"),
    )
    add(
        "own_med",
        "loglikelihood",
        "{{q}}",
        " {{a}}",
        ("perplexity", "perplexity", "false"),
        ("acc", "median", "true"),
    )
    generating = {
        "own_gen": "",
        "own_gen_stops": 'generation_kwargs: {until: ["w", " x"]}',
        "own_gen_short": "generation_kwargs: {max_gen_toks: 7}",
        "own_gen_long": "generation_kwargs: {max_gen_toks: 5000}",
        "own_gen_sampled": "generation_kwargs: {do_sample: true, temperature: 1.0, max_gen_toks: 3}",
    }
    for name, settings in generating.items():
        add(name, "generate_until", "{{q}}", "{{a}}", ("exact_match", "mean", "true"), end=settings)
    return folder


@pytest.mark.parametrize(
    ("task", "metric"), [("own_ll", "perplexity"), ("own_roll", "word_perplexity")]
)
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


def test_texts_of_narrow_layers_are_those_of_a_narrow_copy(
    loaded: LoadedModel, own_tasks: Path
) -> None:
    candidate, small = narrow_copy(loaded)
    texts = []
    for each, scored in ((loaded, candidate), (small, LayerSubset.of(N_LAYERS))):
        task = TaskObjective(each, "own_gen_short", include_path=str(own_tasks), generate=True)
        texts.append(results_of(each, task, scored))
    assert texts[0] == texts[1]
    [[rows]] = texts[0]
    assert len(rows) == 6 and any(rows)


def test_the_metric_can_be_chosen(loaded: LoadedModel, own_tasks: Path) -> None:
    chosen = TaskObjective(loaded, "own_ll", metric="acc", include_path=str(own_tasks))
    assert (chosen.metric, chosen.maximize) == ("acc", True)
    with pytest.raises(UnknownNameError, match="unknown own_ll metric 'ac': did you mean 'acc'"):
        TaskObjective(loaded, "own_ll", metric="ac", include_path=str(own_tasks))


def test_an_answer_is_right_if_its_margin_is_above_zero(
    loaded: LoadedModel, hellaswag_like: Path, own_tasks: Path
) -> None:
    for metric in ("acc", "acc_norm"):
        objective = TaskObjective(loaded, "hellaswag", data=str(hellaswag_like), metric=metric)
        for dropped in ((), (1,), (0, 2)):
            (answers,) = results_of(loaded, objective, LayerSubset.of(N_LAYERS, dropped))
            margins = objective.margins(answers)
            assert margins is not None
            right = [-1.0 if margin > 0 else 0.0 for margin in margins]
            assert right == list(objective.losses(answers))
    (answers,) = results_of(loaded, objective, LayerSubset.of(N_LAYERS, ()))
    incomplete = objective.margins([answers[0][:6]])
    assert incomplete == list(objective.margins(answers) or ())[:1], "a document has four choices"
    other = TaskObjective(loaded, "own_ll", include_path=str(own_tasks))
    (answers,) = results_of(loaded, other, LayerSubset.of(N_LAYERS, ()))
    assert other.margins(answers) is None


def test_a_perplexity_has_no_losses_because_lm_eval_keeps_log_likelihoods(
    loaded: LoadedModel, own_tasks: Path
) -> None:
    for metric, losses in (("perplexity", False), ("acc", True)):
        objective = TaskObjective(loaded, "own_ll", metric=metric, include_path=str(own_tasks))
        (answers,) = results_of(loaded, objective, LayerSubset.of(N_LAYERS, ()))
        if losses:
            assert set(objective.losses(answers)) <= {-1.0, 0.0}
        else:
            with pytest.raises(InputError, match="'perplexity' is not the mean of a number per"):
                objective.losses(answers)


def test_what_cannot_be_scored_is_refused(
    loaded: LoadedModel, own_tasks: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="generates text"):
        TaskObjective(loaded, "own_gen", include_path=str(own_tasks))
    with pytest.raises(UnknownNameError, match="did you mean 'hellaswag'"):
        TaskObjective(loaded, "helaswag")
    with pytest.raises(DataError, match="no folder"):
        TaskObjective(loaded, "hellaswag", include_path=str(tmp_path / "none"))
    (tmp_path / "undefined.jsonl").write_text(
        '{"answerKey": "A", "choices": {"text": ["a"], "label": ["A"]}}\n'
    )
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


@pytest.fixture
def apart(make_model: Callable[..., Path]) -> Path:
    """A model whose config says that its head is the embedding, while its file has a head of its
    own.
    """
    folder = make_model(name="apart", tie_word_embeddings=True)
    store_head_apart(folder)
    return folder


@pytest.mark.parametrize("opened", [load, open_streamed], ids=["memory", "streamed"])
def test_a_task_leaves_weights_tokenizer_and_settings_as_they_were(
    opened: Callable[..., LoadedModel], apart: Path, own_tasks: Path
) -> None:
    edited = json.loads((apart / "tokenizer_config.json").read_text())
    for name in ("pad_token", "eos_token"):  # lm-eval makes one then
        edited.pop(name, None)
    (apart / "tokenizer_config.json").write_text(json.dumps(edited))
    loaded = opened(str(apart), device="cpu")
    head, words = loaded.model.lm_head.weight.clone(), len(loaded.tokenizer)
    configs = loaded.model.config.to_json_string(), loaded.model.generation_config.to_json_string()
    TaskObjective(loaded, "own_ll", include_path=str(own_tasks))
    assert torch.equal(loaded.model.lm_head.weight, head)
    assert not torch.equal(head, loaded.model.model.embed_tokens.weight)
    assert (len(loaded.tokenizer), loaded.tokenizer.pad_token) == (words, None)
    assert configs == (
        loaded.model.config.to_json_string(),
        loaded.model.generation_config.to_json_string(),
    )
    if opened is load:
        assert fingerprint(loaded.model) == loaded.fingerprint


def generation(loaded: LoadedModel, own_tasks: Path, task: str = "own_gen") -> Chunk:
    (chunk,) = TaskObjective(loaded, task, include_path=str(own_tasks), generate=True).chunks
    return chunk


@pytest.mark.parametrize(
    "changed",
    [
        "repetition_penalty",
        "eos_token_id",
        "decoder",
        "first token",
        "own_gen_stops",
        "own_gen_short",
    ],
)
def test_whatever_decides_a_generated_text_is_in_its_key(
    loaded: LoadedModel, own_tasks: Path, changed: str
) -> None:
    before, task = generation(loaded, own_tasks), "own_gen"
    assert before.cacheable
    assert before.identity == generation(loaded, own_tasks).identity, "the same twice"
    if changed in ("repetition_penalty", "eos_token_id"):
        setattr(loaded.model.generation_config, changed, 5)
    elif changed == "decoder":  # the same ids, read as other text
        loaded.tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    elif changed == "first token":
        loaded.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            "<s> $A", special_tokens=[("<s>", 0)]
        )
    else:
        task = changed
    after = generation(loaded, own_tasks, task)
    assert before.identity != after.identity
    assert after.cacheable


def test_sampled_text_is_generated_anew_each_time(
    loaded: LoadedModel, own_tasks: Path, tmp_path: Path
) -> None:
    objective = TaskObjective(loaded, "own_gen_sampled", include_path=str(own_tasks), generate=True)
    assert not objective.chunks[0].cacheable
    candidate = LayerSubset.of(N_LAYERS, (1,))
    with EvaluationCache(tmp_path / "cache") as cache:
        engine = LocalEngine(loaded, objective, cache)
        for _ in range(2):
            (evaluation,) = engine.evaluate_now([candidate])
            assert evaluation.failure is None
            assert not evaluation.cached
    assert fingerprint(loaded.model) == loaded.fingerprint


def test_a_text_too_long_for_the_model_is_one_line(loaded: LoadedModel, own_tasks: Path) -> None:
    with pytest.raises(InputError, match=r"cannot generate what the task asks for: .*5000"):
        TaskObjective(loaded, "own_gen_long", include_path=str(own_tasks), generate=True)


def test_the_truncation_length_is_in_the_key_of_what_is_truncated(
    make_model: Callable[..., Path], hellaswag_like: Path
) -> None:
    """Bloom's config has no length, so that the tokenizer's counts."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 264,
        "hidden_size": 32,
        "n_layer": 2,
        "n_head": 4,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model = BloomForCausalLM(BloomConfig(**sizes))
    model.eval()
    found = []
    for longest in (512, 256, 24):
        tokenizer = byte_tokenizer()
        tokenizer.model_max_length = longest
        loaded = LoadedModel("tiny", model, tokenizer, "0" * 64, sizes_of(model), resident(model))
        found.append(TaskObjective(loaded, "hellaswag", data=str(hellaswag_like), limit=2))
    whole, also_whole, cut = ([chunk.identity for chunk in objective.chunks] for objective in found)
    assert whole == also_whole, "nothing was cut"
    assert "truncation" not in whole[0]
    assert cut[0] == {**whole[0], "truncation": 24}
    assert [objective.settings["task truncation"] for objective in found] == [0, 0, 24]


def test_how_answers_are_judged_is_in_the_studys_identity(
    loaded: LoadedModel, own_tasks: Path
) -> None:
    before, again, after = (
        TaskObjective(loaded, task, include_path=str(own_tasks))
        for task in ("own_ll", "own_ll", "own_med")
    )
    assert before.settings == again.settings
    assert before.settings["lm-eval version"] == ".".join(lm_eval.__version__.split(".")[:2])
    assert after.settings["task scoring"] != before.settings["task scoring"]
    assert [c.identity for c in after.chunks] == [c.identity for c in before.chunks], (
        "the answers stay valid"
    )


def test_the_documents_after_the_first_ones_are_scored_as_if_they_were_alone(
    loaded: LoadedModel, hellaswag_like: Path, tmp_path: Path
) -> None:
    rows = hellaswag_like.read_text().splitlines(keepends=True)
    others = tmp_path / "others.jsonl"
    others.write_text("".join(rows[4:10]))
    after = TaskObjective(loaded, "hellaswag", data=str(hellaswag_like), first=4, limit=6)
    alone = TaskObjective(loaded, "hellaswag", data=str(others))
    assert after.digest == alone.digest
    assert [chunk.identity for chunk in after.chunks] == [chunk.identity for chunk in alone.chunks]
    (answers,) = results_of(loaded, alone, LayerSubset.of(N_LAYERS, (1,)))
    assert after.metrics(answers) == alone.metrics(answers)
    assert list(after.losses(answers)) == list(alone.losses(answers))
    # The first documents are others, and a task has no more than it has.
    before = TaskObjective(loaded, "hellaswag", data=str(hellaswag_like), limit=4)
    assert not before.items() & after.items()
    with pytest.raises(DataError, match="12 documents, and none is left after the first 12"):
        TaskObjective(loaded, "hellaswag", data=str(hellaswag_like), first=12)
