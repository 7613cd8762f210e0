"""What is taken for a secret and what is not, and that nothing shown gives one away."""

import pytest

from rlhflab.data.survey.secrets import find_secrets, redacted

# Put together here, so that no file of this project holds anything that looks like a key.
KEYS = {"AWS access key": "AK" + "IA" + "IOSFODNN7EXAMPLE", "GitHub token": "gh" + "p_" + "a1B2" * 9,
        "Slack token": "xo" + "xb-" + "123456789012-abcdef", "Google API key": "AI" + "za" + "x" * 35,
        "model API key": "s" + "k-" + "a1b2c3d4" * 5, "payment key": "sk_" + "live_" + "a" * 24,
        "signed token": "ey" + "J" + "a" * 20 + ".ey" + "J" + "b" * 20 + "." + "c" * 20,
        "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----"}


@pytest.mark.parametrize(("kind", "key"), KEYS.items())
def test_a_key_is_found_taken_out_and_never_shown(kind, key):
    found, = find_secrets(f"use {key} for it")
    assert found.kind == kind and key[4:] not in found.masked
    assert redacted(f"use {key} for it") == f"use [removed: {kind}] for it"


@pytest.mark.parametrize(("kind", "text"), [
    ("e-mail address", "anna.meier@mail.net"), ("phone number", "+1 (415) 867-5309"), ("phone number", "415-867-5309"),
    ("phone number", "(415) 867-5309"), ("phone number", "+44 20 7946 0958"), ("phone number", "+49 170 1234567"),
])
def test_addresses_and_numbers_are_found_whole(kind, text):
    assert redacted(f"Reach me: {text}, thanks") == f"Reach me: [removed: {kind}], thanks"
    assert text[2:] not in find_secrets(text)[0].masked


@pytest.mark.parametrize("text", [
    "someone@example.com", "user@host.net", "a@b", "call 555-123-4567", "212-555-0123", "123-456-7890", "sk-short",
    "ISBN 978-3-16-148410-0", "2019-2020 1234", "192.168.100.1000", "1 234 567 8901", "3.141-592-6535",
    "x = 1+23456789012", "AKIA",
])
def test_names_that_belong_to_nobody_and_other_numbers_are_left_alone(text):
    assert find_secrets(text) == [] and redacted(text) == text


def test_two_secrets_in_a_text_are_both_taken_out():
    assert redacted("a.b@mail.net or 415-867-5309") == "[removed: e-mail address] or [removed: phone number]"
