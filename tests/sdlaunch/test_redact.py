"""What counts as a secret."""

import pytest

from sdlaunch.redact import is_secret, redact, redacted_environment, secrets_of


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
    ],
)
def test_secret_names(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "KEYBOARD", "MONKEY", "HOME", "lr", "KEYNES_DIR"])
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


def test_logins_in_urls():
    assert redact("https://user:pass@host/x http://host/y", ()) == "https://[redacted]@host/x http://host/y"
