"""What ``--cache`` and ``--storage`` may say."""

from pathlib import Path

import pytest

from prunesearch.errors import StorageError
from prunesearch.store.places import DEFAULT_FOLDER, Places, check_url

URL = "postgresql+psycopg://me:s3,cret@host/team?host=h1:5432,h2:5432"


def test_a_comma_in_the_url_is_no_folder() -> None:
    assert Places.parse(URL) == Places(Path(DEFAULT_FOLDER), URL)
    assert Places.parse(f"a,b,{URL}") == Places(Path("a,b"), URL)
    assert str(Places.parse(f"mine,{URL}")) == ("mine,postgresql+psycopg://me:***@host/team?host=h1:5432,h2:5432")
    for folder in ("a,b", "/a:b@c", "./me:x@host", "storage/cache"):
        assert Places.parse(folder) == Places(Path(folder))


@pytest.mark.parametrize(
    "text",
    [
        "me:s3cret@host/team",
        "postgresql:/me:s3cret@host/team",
        "postgresql//me:s3cret@host/team",
        "dir;postgresql://me:s3cret@host/team",
        "host=h password=s3cret",
        "postgresql://me:a@s3cret@host/team",
        "postgresql://me:s3cret@host:port/team",
        "postgresql://me:s3cret/team",
        "mysql://me:s3cret@host/team",
        "dir,mysql://me:s3cret@host/team",
    ],
)
def test_what_may_hold_a_password_is_refused_without_it(text: str) -> None:
    with pytest.raises(StorageError) as refused:
        Places.parse(text)
    assert "s3cret" not in str(refused.value)
    with pytest.raises(StorageError) as refused:
        check_url(text)
    assert "s3cret" not in str(refused.value)


def test_a_path_is_answered_with_its_url(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"'my/study.db' is not a URL: for that file write sqlite:///my/study.db"):
        check_url("my/study.db")
    with pytest.raises(StorageError, match=f"write sqlite:///{tmp_path}/study.db"):
        check_url(str(tmp_path))
