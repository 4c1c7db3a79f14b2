"""What the submit page offers."""

from pathlib import Path

from prunesearch.service.web import choices


def test_models_are_folders_with_a_config_and_gguf_files(tmp_path: Path) -> None:
    for name in ("SmolLM2", "team/Qwen3", ".hidden/m", "a/b/c/d/deep"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")  # not a model: it is the folder itself
    (tmp_path / "small.gguf").write_bytes(b"")
    assert choices.models([tmp_path]) == ["small.gguf", "SmolLM2", "team/Qwen3"]
    assert choices.models([tmp_path / "missing"]) == []


def test_data_are_all_files(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("texts/b.txt", "a.jsonl", ".secret", "bad\nname"):
        (tmp_path / name).write_text("")
    assert choices.data_files([tmp_path]) == ["a.jsonl", "texts/b.txt"]
