"""What a recipe may name: models and data inside the operator's folders, and nothing else."""

import os
from pathlib import Path

import pytest

from prunesearch.errors import InputError
from prunesearch.objectives.calibration_sources.builtin import HELD_OUT
from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.service.allowed import BUILTIN, MOST_BYTES, check
from prunesearch.service.job import JobRequest
from prunesearch.service.settings import ServiceSettings
from tests.support.jobs import settings_in


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    """Folders with a model, a text, and links of all kinds."""
    found = settings_in(tmp_path)
    models, data, outside = tmp_path / "models", tmp_path / "data", tmp_path / "outside"
    (models / "team" / "one").mkdir(parents=True)
    (models / "team" / "one" / "config.json").write_text("{}")
    (models / "small.gguf").write_text("x")
    (data / "texts").mkdir()
    (data / "texts" / "my.txt").write_text("words")
    (data / "rows.jsonl").write_text("{}")
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (models / "linked").symlink_to(outside)
    (models / "alias").symlink_to(models / "fake")
    (models / "leaky").mkdir()
    (models / "leaky" / "model.safetensors").symlink_to(outside / "secret.txt")
    (data / "linked.txt").symlink_to(outside / "secret.txt")
    os.mkfifo(data / "pipe")
    return found


def ask(settings: ServiceSettings, command: str = "search", **sections: Json) -> JsonObject:
    """Check a recipe with these sections; its document with the paths of this host."""
    recipe: JsonObject = {"model": "fake", "search": {"drop": "2"}, **sections}
    allowed = check(JobRequest(recipe, command), settings)  # type: ignore[arg-type]
    return allowed.located.document()


def path_of(document: JsonObject, section: str, field: str) -> object:
    values = document[section]
    assert isinstance(values, dict)
    return values[field]


@pytest.mark.parametrize("name", ["fake", "team/one", "small.gguf", "alias"])
def test_a_model_is_named_by_its_path_inside_an_allowed_folder(
    settings: ServiceSettings, name: str
) -> None:
    document = ask(settings, model=name)
    found = Path(str(path_of(document, "model", "path")))
    assert found == (settings.models[0] / name).resolve()
    # The recipe that people see has the name that was given.
    request = JobRequest({"model": name, "search": {"drop": "2"}}, "search")
    assert check(request, settings).recipe.model.path == name


@pytest.mark.parametrize(
    "name",
    [
        "/etc", "../outside", "fake/../../outside", "fake/..", "..", ".", "./fake", "", "fake/", "fake//",
        "linked", "leaky", "~", "~root", "fake\\..", "C:\\models", "file:///etc/passwd", "none", "models/fake",
        "Qwen/Qwen3-0.6B", "gpt2", "s3://bucket/model", "a" * 500, "fake\n", "\u202efake", "%2e%2e/outside",
        "team/one/../../../outside", "https://example.org/model", "fake\u0000",
    ],
)  # fmt: skip
def test_no_other_model_is_accepted(settings: ServiceSettings, name: str) -> None:
    with pytest.raises(InputError) as raised:
        ask(settings, model={"path": name})
    assert str(settings.models[0]) not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../outside/secret.txt", "linked.txt", "texts", "pipe", "none.txt", "wikitext",
     "texts/../../outside/secret.txt", "https://example.org/x.txt", "/dev/zero", "/proc/self/environ"],
)  # fmt: skip
def test_no_other_text_is_accepted(settings: ServiceSettings, name: str) -> None:
    data: list[JsonObject] = [
        {"data": {"calibration": name}},
        {"recover": {"heal": {"data": name}}},
        {"recover": {"heal": {"held_out": name}}},
        {"recover": {"evaluate": {"calibration": name}}},
        {"objective": {"task": "hellaswag"}, "data": {"task_data": name}},
        {"recover": {"evaluate": {"task": "hellaswag", "task_data": name}}},
    ]
    for sections in data:
        with pytest.raises(InputError) as raised:
            ask(settings, command="run", **sections)
        assert str(settings.data[0]) not in str(raised.value)


def test_texts_and_rows_are_found(settings: ServiceSettings) -> None:
    here = settings.data[0].resolve()
    document = ask(settings, data={"calibration": "texts/my.txt"})
    assert path_of(document, "data", "calibration") == str(here / "texts" / "my.txt")
    document = ask(settings, objective={"task": "hellaswag"}, data={"task_data": "rows.jsonl"})
    assert path_of(document, "data", "task_data") == str(here / "rows.jsonl")
    heal: JsonObject = {"data": "texts/my.txt", "held_out": "builtin-held-out"}
    evaluate: JsonObject = {"calibration": "texts/my.txt"}
    document = ask(settings, command="run", recover={"heal": heal, "evaluate": evaluate})
    recovery = document["recover"]
    assert isinstance(recovery, dict)
    assert str(here / "texts" / "my.txt") in str(recovery["heal"])
    assert str(here / "texts" / "my.txt") in str(recovery["evaluate"])
    assert BUILTIN == ("builtin", HELD_OUT)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"path": "fake", "trust_remote_code": True}}, "model.trust_remote_code"),
        ({"objective": {"task": "mine"}, "data": {"include_path": "texts"}}, "data.include_path"),
        ({"objective": {"task": "hellaswag"}}, "reads its documents from the hub"),
        ({"objective": {"task": "../mine.yaml"}, "data": {"task_data": "rows.jsonl"}}, "built-in"),
        ({"objective": {"task": "/etc/passwd"}, "data": {"task_data": "rows.jsonl"}}, "built-in"),
        ({"objective": {"name": "kl=1,../x=1"}}, "built-in|unknown"),
        ({"run": {"storage": "sqlite:///x.db"}}, "run"),
        ({"storage": "sqlite:///x.db"}, "storage"),
        ({"device_map": "auto"}, "device_map"),
        ({"search": {"drop": "2", "out": "/tmp/x"}}, "out"),
        ({"search": {"drop": "2", "sampler": ["pso", "woa"]}}, "sampler"),
        ({"search": {"drop": "2", "seed": "1" * MOST_BYTES}}, "larger than"),
        ({"nosuch": {}}, "nosuch"),
    ],
)
def test_a_request_decides_nothing_that_the_operator_decides(
    settings: ServiceSettings, sections: JsonObject, words: str
) -> None:
    with pytest.raises(InputError, match=words) as raised:
        ask(settings, "search", **sections)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    "study",
    ["../x", "a/b", "", " a", "<script>alert(1)</script>", "a\nb", "x" * 201, "\u202eabc", "-x", ".hidden", "a;b", "a'b"],
)  # fmt: skip
def test_odd_names_of_studies_are_refused(settings: ServiceSettings, study: str) -> None:
    with pytest.raises(InputError, match="study"):
        check(
            JobRequest({"model": "fake", "search": {"drop": "2"}}, "search", None, study), settings
        )


@pytest.mark.parametrize("study", ["a", "tiny-drop2-kl-pso", "Größe 2 (v1.0)", "x=1,y=2", "模型"])
def test_usual_names_of_studies_are_accepted(settings: ServiceSettings, study: str) -> None:
    request = JobRequest({"model": "fake", "search": {"drop": "2"}}, "search", None, study)
    assert check(request, settings).study == study


@pytest.mark.parametrize(
    "drop",
    ["a", "", "nan", "nan%", "1e9", "a/b", "8%0", "9" * 5000, f"1.{'0' * 300}%", "<b>", "2\n"],
)
def test_values_of_drop_that_no_model_takes_are_refused_at_once(
    settings: ServiceSettings, drop: str
) -> None:
    with pytest.raises(InputError, match=r"drop|study") as raised:
        check(JobRequest({"model": "fake", "search": {"drop": drop}}, "search"), settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("trials", [0, -1, 10**9])
def test_numbers_of_trials_are_checked(settings: ServiceSettings, trials: int) -> None:
    with pytest.raises(InputError, match="trials"):
        check(JobRequest({"model": "fake", "search": {"drop": "2"}}, "search", trials), settings)


def test_only_one_best_can_be_exported(settings: ServiceSettings) -> None:
    for search in ({"drop": "pareto", "sampler": "nsga2"}, {"drop": "2", "units": "sublayers"}):
        ask(settings, search=search)
        with pytest.raises(InputError, match="submit the command search"):
            ask(settings, command="run", search=search)


def test_more_layers_than_the_model_has_are_refused_at_once(settings: ServiceSettings) -> None:
    place = settings.models[0] / "fake" / "config.json"
    # The layers of a model of images are those of its language model.
    for config in ('{"num_hidden_layers": 4}', '{"text_config": {"num_hidden_layers": 4}}'):
        place.write_text(config)
        ask(settings, search={"drop": "3"})
        for search in ({"drop": "4"}, {"drop": "3", "protect": "first:1,last:1"}):
            with pytest.raises(InputError, match="drop"):
                ask(settings, search=search)
        ask(settings, search={"drop": "7", "units": "sublayers"})
    # The job itself says what is wrong with a config that cannot be read.
    for config in ("[]", "{", '{"num_hidden_layers": "4"}'):
        place.write_text(config)
        ask(settings, search={"drop": "4"})


def test_the_hub_is_reached_only_if_the_operator_allows_it(
    tmp_path: Path, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    open_service = settings_in(tmp_path, allow_hub=True)
    for name in ("gpt2", "Qwen/Qwen3-0.6B"):
        assert path_of(ask(open_service, model=name), "model", "path") == name
    document = ask(open_service, data={"calibration": "Salesforce/wikitext:wikitext-2-raw-v1:test"})
    assert path_of(document, "data", "calibration") == "Salesforce/wikitext:wikitext-2-raw-v1:test"
    ask(open_service, objective={"task": "hellaswag"})
    # A hub id that is a path of the server's folder would be read there.
    for name in ("outside", "models/fake", "data"):
        with pytest.raises(InputError, match="unknown model"):
            ask(open_service, model=name)
        with pytest.raises(InputError, match="unknown text"):
            ask(open_service, data={"calibration": name})


def test_a_second_folder_may_be_what_a_link_leads_to(
    tmp_path: Path, settings: ServiceSettings
) -> None:
    both = settings_in(tmp_path, models=(tmp_path / "models", tmp_path / "outside"))
    assert path_of(ask(both, model="leaky"), "model", "path") == str(
        (tmp_path / "models" / "leaky").resolve()
    )


def test_a_sampler_that_connects_to_an_address_of_the_user_is_refused(
    settings: ServiceSettings,
) -> None:
    search = {"drop": "2", "sampler": "llm"}
    llm = {"url": "http://169.254.169.254/v1", "model": "m"}
    request = JobRequest(recipe={"model": "tiny", "search": search, "llm": llm}, command="search")
    with pytest.raises(InputError, match="asks a language model, which jobs cannot"):
        check(request, settings)
