"""What counts as a secret."""

import json
import shlex
import time

import pytest
import yaml

from sdjob.redact import is_secret, redact, secrets_of, without_secrets, without_secrets_in

QUOTED = 'it\'s-"the"-\\so-secret'


SECRET = """
HF_TOKEN hf_token WANDB_API_KEY AWS_SECRET_ACCESS_KEY DB_PASSWORD GOOGLE_CREDENTIALS APIKEY KEY
PGPASS MYSQL_PWD GITHUB_PAT SENTRY_DSN AZURE_STORAGE_CONNECTION_STRING PROXY_AUTH AUTHORIZATION
BEARER SLURM_JWT SESSION_COOKIE SLACK_WEBHOOK_URL X-Amz-Signature
"""
OTHER = """
TOKENIZERS_PARALLELISM KEYBOARD MONKEY HOME lr KEYNES_DIR PATH PWD OLDPWD BYPASS AUTHOR XAUTHORITY
max_new_tokens --placeholder_token initializer_token pad_token_id num_tokens
"""


@pytest.mark.parametrize("name", SECRET.split())
def test_secret_names(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", OTHER.split())
def test_names_of_words_people_and_other_things(name):
    assert not is_secret(name)


def test_values_of_secrets_are_hidden_wherever_they_occur():
    assert (
        redact("a hf_abcdef b 12", secrets_of({"HF_TOKEN": "hf_abcdef", "PIN_KEY": "12"}))
        == "a [redacted] b 12"
    )


def test_values_of_secret_flags_are_hidden_in_a_command_however_short():
    words = [
        "x.py",
        "--token",
        "a",
        "--api-key=b=c",
        "password=d",
        "--key",
        "--lr",
        "1",
        "--max_new_tokens",
        "9",
    ]
    shown = ["x.py", "--token", "[redacted]", "--api-key=[redacted]", "password=[redacted]", *words[5:]]
    assert without_secrets(words) == tuple(shown)
    assert without_secrets_in("--lr 1  {x}") == "--lr 1  {x}"
    assert without_secrets_in("--token 'a b' {x}") == "--token '[redacted]' '{x}'"
    assert without_secrets_in("--lr 1 --token 'a b") == "--lr 1 --token [redacted]"  # an open quote
    assert secrets_of({}, ["--token", "long$secret", "--key=0123456"]) == ("long$secret", "0123456")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Namespace(hub_token='abc', lr=1)", "Namespace(hub_token='[redacted]', lr=1)"),
        ('{"hub_token": "abc", "pad_token": "<|e|>"}', '{"hub_token": "[redacted]", "pad_token": "<|e|>"}'),
        ('"--hub_token",\n  "X"', '"--hub_token",\n  "[redacted]"'),
        ("Authorization: Bearer abcdefgh1", "Authorization: Bearer [redacted]"),
        ("using hf_abcdefghijklmnopqrstu now", "using [redacted] now"),
        ("eyJhbGciOiJI.eyJzdWIi.abc", "[redacted]"),
        (
            "https://s3/x?X-Amz-Signature=a%2B&y=1&sig=b",
            "https://s3/x?X-Amz-Signature=[redacted]&y=1&sig=[redacted]",
        ),
        ("KeyError: 'key'; key=foo; tokens: 5", "KeyError: 'key'; key=foo; tokens: 5"),
        ("step 1/9 loss 0.1 max_token_length=225", "step 1/9 loss 0.1 max_token_length=225"),
    ],
)
def test_what_looks_like_a_secret(text, shown):
    assert redact(text, ()) == shown
    assert redact(shown, ()) == shown


@pytest.mark.parametrize("text", ["token", "://a:", "a", "--token ", "?a=b&", "token=", "eyJ"])
def test_a_long_line_takes_little_time(text):
    start = time.process_time()
    redact(text * (65536 // len(text)), ("abcdef",))
    assert time.process_time() - start < 1


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
        ("/mnt/model/https:/user:pass@host/x", "/mnt/model/https:/[redacted]@host/x"),
        ("a:/home/me@b", "a:/home/me@b"),
        ("https://ghp_0123@host/x", "https://[redacted]@host/x"),
        ("redis://u:p/a/s@host:6379/0", "redis://[redacted]@host:6379/0"),
        ("http://host:8080/simple/@scope", "http://host:8080/simple/@scope"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_logins_in_urls(text, shown):
    assert redact(text, ()) == shown
