"""No secret is printed: URLs, command lines, and the messages of libraries."""

import pytest

from prunesearch.runtime.masking import (
    command,
    masked,
    masked_text,
    masked_url,
    pasted,
)

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "postgresql+psycopg://me:s3cret@host:5432/team",
            "postgresql+psycopg://me:***@host:5432/team",
        ),
        ("postgresql://me:s3cret,2@[::1]:5432/team", "postgresql://me:***@[::1]:5432/team"),
        ("postgresql://me@host/team?sslmode=require", "postgresql://me@host/team?sslmode=require"),
        (
            "postgresql:///t?host=h1:5432,h2:5432&password=s3cret",
            "postgresql:///t?host=h1:5432,h2:5432&password=***",
        ),
        (
            "postgresql://h/t?sslpassword=s3cret&passfile=s3cret",
            "postgresql://h/t?sslpassword=***&passfile=***",
        ),
        ("postgresql://h/t?p%61ssword=s3cret", "postgresql://h/t?***=***"),
        ("postgresql://h/t?options=-c%20x%3Ds3cret", "postgresql://h/t?options=***"),
        ("postgresql://h/t?host=me:s3cret", "postgresql://h/t?host=***"),
        ("sqlite:////home/a@b/c#d.db", "sqlite:////home/a@b/c#d.db"),
        ("postgresql://h/t?password=a&S3cret=x", "postgresql://h/t?password=***&***=***"),
        ("https://s3cret@github.com/x", "https://***@github.com/x"),
        ("https://me:s3cret@host/x?page=2&token=s3cret", "https://me:***@host/x?page=2&token=***"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert masked_url(url) == shown
    assert masked_url(shown) == shown


@pytest.mark.parametrize("letter", "@/?#:")
def test_what_cannot_be_told_apart_is_not_shown(letter: str) -> None:
    assert SECRET not in masked_url(f"postgresql://me:a{letter}{SECRET}@host/team")
    assert masked_url("me:s3cret@host/team") == "***"
    assert masked_url("postgresql://me:s3cret@[::1/team") == "postgresql://***"


def test_messages_of_libraries_are_masked() -> None:
    text = "cannot reach 'postgresql://me:s3cret@host/t' (see https://docs.org/a?b=1): password=s3cret is wrong"
    assert masked_text(text) == (
        "cannot reach 'postgresql://me:***@host/t' (see https://docs.org/a?b=1): password=*** is "
        "wrong"
    )
    assert SECRET not in masked_text("postgresql://me:a s3cret@host/t failed")
    assert (
        masked_text("dsn password='s3cret 2' host=x, tokens=16")
        == "dsn password=*** host=x, tokens=16"
    )
    assert (
        masked_text("connect({'password': 's3cret, 2', 'host': 'h'})")
        == "connect({'password': ***, 'host': 'h'})"
    )
    assert masked_text('{"password": "s3\\"cret"}') == '{"password": ***}'
    assert (
        masked_text("hf_s3cretS3CRETs3cret is wrong, Bearer s3cret too")
        == "*** is wrong, Bearer *** too"
    )


def test_a_printed_command_can_be_pasted() -> None:
    words = [
        "prunesearch",
        "search",
        "my model",
        "--storage",
        "postgresql://me:s3cret@h/t",
        "--drop",
        "25%",
    ]
    line, variables = command([*words, "--cache=mine,postgresql://me:s3cret@h/t"])
    assert line == (
        "prunesearch search 'my model' --storage \"$PRUNESEARCH_STORAGE\" --drop 25% "
        '--cache="$PRUNESEARCH_CACHE"'
    )
    assert variables == ["PRUNESEARCH_STORAGE", "PRUNESEARCH_CACHE"]
    plain = [*words[:4], "postgresql://me@h/t?host=a,b"]
    assert command(plain) == (
        "prunesearch search 'my model' --storage 'postgresql://me@h/t?host=a,b'",
        [],
    )
    assert (
        SECRET
        not in command(
            ["--calibration", "https://me:s3cret@h/x", "--x=postgresql://me:s3cret@h/t"]
        )[0]
    )
    assert pasted("postgresql://me:***@h/t", "V") == '"$V"', "masked already"
    assert masked("dir,postgresql://me:s3cret@h/t") == "dir,postgresql://me:***@h/t"


def test_a_token_of_the_service_is_hidden_wherever_it_stands() -> None:
    token = "ps_" + "Ab-_9" * 8 + "xyz"
    assert token not in masked_text(f"--token={token}, see {token}.")
    assert masked_text("the package ps_utils is kept") == "the package ps_utils is kept"
