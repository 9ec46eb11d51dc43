"""What a report never carries: homes, tokens, prompts; and that nothing makes it fail."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_compat.policies.redaction import MAX_DEPTH, MAX_ITEMS, MAX_TEXT_CHARS, redact, redact_text

SECRETS = {
    "hugging face": "hf_" + "aB3" * 10,
    "github": "ghp_" + "x" * 36,
    "openai": "sk-proj-" + "k" * 30,
    "aws": "AKIA" + "Q" * 16,
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize(
    "text", ["{}", "token={}", "Authorization: Bearer {}", "https://user:{}@host/x", "HF_TOKEN: '{}'", "({})"]
)
def test_a_secret_does_not_survive(secret: str, text: str) -> None:
    assert secret not in redact_text(text.format(secret))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/models/wan", "~/models/wan"),
        ("see /Users/ann/x and /home/bob", "see ~/x and ~"),
        ("/root/.cache", "~/.cache"),
        ("/rootless/x", "/rootless/x"),
        ("/data/home/ann", "/data/home/ann"),
        ("api_key = 'abc def'", "api_key = <redacted>"),
        ("password: hunter2 then", "password: <redacted> then"),
        ("https://me:pw@huggingface.co/a", "https://<redacted>@huggingface.co/a"),
        ("the tokenizer/tokenizer.json of 4 tokens", "the tokenizer/tokenizer.json of 4 tokens"),
        ("\x1b[31mred", "\\x1b[31mred"),
    ],
)
def test_homes_and_credentials_go_and_the_rest_stays(text: str, expected: str) -> None:
    assert redact_text(text) == expected


def test_the_users_own_home_goes_wherever_it_is_and_longer_names_stay() -> None:
    assert redact_text("/srv/people/ann/m /srv/people/anna/m", "/srv/people/ann") == "~/m /srv/people/anna/m"


def test_prompts_become_their_length_at_any_depth() -> None:
    document = redact({"job": {"prompt": "my secret garden", "Negative_Prompt": "x", "seed": 7, "prompt_2": None}})
    assert "garden" not in json.dumps(document)
    assert document["job"] == {
        "prompt": "<16 characters>",
        "Negative_Prompt": "<1 characters>",
        "seed": 7,
        "prompt_2": None,
    }


def test_what_is_too_deep_or_too_long_is_cut_and_says_so() -> None:
    deep: object = "end"
    for _ in range(MAX_DEPTH + 5):
        deep = [deep]
    assert "nested deeper" in json.dumps(redact(deep))
    assert redact(list(range(MAX_ITEMS + 3)))[-1] == "<3 more>"
    assert redact({str(n): n for n in range(MAX_ITEMS + 3)})["..."] == "3 more"
    assert len(redact_text("x" * (MAX_TEXT_CHARS * 2))) <= MAX_TEXT_CHARS


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=200),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
        max_leaves=20,
    )
)
def test_any_plain_data_is_redacted_into_plain_data(value: object) -> None:
    json.dumps(redact(value, "/home/ann"), allow_nan=False)
