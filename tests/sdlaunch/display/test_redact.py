"""What counts as a secret."""

import json
import shlex

import pytest
import yaml

from sdlaunch.display.redact import is_secret, redact, redacted_environment, secrets_of

QUOTED = 'it\'s-"the"-\\so-secret'


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "hf_token",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "GOOGLE_CREDENTIALS",
        "APIKEY",
        "KEY",
        "PGPASS",
        "MYSQL_PWD",
        "GITHUB_PAT",
        "SENTRY_DSN",
        "AZURE_STORAGE_CONNECTION_STRING",
    ],
)
def test_secret_names(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "TOKENIZERS_PARALLELISM",
        "KEYBOARD",
        "MONKEY",
        "HOME",
        "lr",
        "KEYNES_DIR",
        "PATH",
        "PWD",
        "OLDPWD",
        "BYPASS",
    ],
)
def test_other_names(name):
    assert not is_secret(name)


def test_values_of_secrets_are_hidden_anywhere_and_short_ones_in_their_place_only():
    environ = {"HF_TOKEN": "hf_abcdef", "PIN_KEY": "12", "X": "a hf_abcdef b 12"}
    assert redacted_environment(environ) == {
        "HF_TOKEN": "[redacted]",
        "PIN_KEY": "[redacted]",
        "X": "a [redacted] b 12",
    }


def test_a_secret_within_a_longer_one():
    secrets = secrets_of({"A_TOKEN": "abcdef", "B_TOKEN": "abcdef123"})
    assert redact("abcdef123 abcdef", secrets) == "[redacted] [redacted]"


@pytest.mark.parametrize(("value", "hidden"), [("abcde", False), ("abcdef", True)])
def test_a_value_is_a_secret_from_six_characters_on(value, hidden):
    text = f"the word {value}s"
    assert redact(text, secrets_of({"API_KEY": value})) == (
        text.replace(value, "[redacted]") if hidden else text
    )


@pytest.mark.parametrize(
    "spell", [str, json.dumps, shlex.quote, lambda text: shlex.quote(f"NAME={text}"), yaml.safe_dump]
)
def test_a_secret_with_quotes_however_it_is_spelled(spell):
    shown = redact(spell(QUOTED), secrets_of({"MY_PASSWORD": QUOTED}))
    assert "[redacted]" in shown
    assert "so-secret" not in shown


@pytest.mark.parametrize(
    ("spelled", "shown"),
    [
        (json.dumps('über "x"-secret'), '"[redacted]"'),
        (json.dumps('über "x"-secret', ensure_ascii=False), '"[redacted]"'),
        (shlex.quote("it's-so-secret"), "'[redacted]'"),
        ("'it''s-so-secret'", "'[redacted]'"),  # in YAML
    ],
)
def test_a_secret_is_hidden_from_its_first_to_its_last_character(spelled, shown):
    secrets = {"A_TOKEN": 'über "x"-secret', "B_TOKEN": "it's-so-secret"}
    assert redact(spelled, secrets_of(secrets)) == shown


def test_a_part_of_a_secret_is_not_hidden():
    assert redact("bcdefgh", secrets_of({"A_TOKEN": "abcdefghi"})) == "bcdefgh"


def test_each_line_of_a_secret():
    key = "-----BEGIN PRIVATE KEY-----\nabcdefgh\nijklmnop\n-----END PRIVATE KEY-----\n"
    shown = redact("abcdefgh\nx ijklmnop\n" + json.dumps(key), secrets_of({"PRIVATE_KEY": key}))
    assert "abcd" not in shown and "ijkl" not in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@host/x http://host/y", "https://[redacted]@host/x http://host/y"),
        ("https://ghp_0123@host/x", "https://[redacted]@host/x"),
        ("redis://u:p/a/s@host:6379/0", "redis://[redacted]@host:6379/0"),
        ("http://host:8080/simple/@scope", "http://host:8080/simple/@scope"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_logins_in_urls(text, shown):
    assert redact(text, ()) == shown
