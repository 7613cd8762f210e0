"""Keys, tokens, e-mail addresses and phone numbers in text, by patterns that rather miss one than see one everywhere.

What is found is named by its kind and by what is left when it is masked; the whole secret leaves this file only in
`redacted`'s input. No name, no postal address and no card number is looked for.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

KEYS: Mapping[str, re.Pattern[str]] = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
                              r"(?:.{1,8000}?-----END (?:[A-Z]+ )*PRIVATE KEY-----)?", re.DOTALL),
    "AWS access key": re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9])"),
    "GitHub token": re.compile(r"(?<![A-Za-z0-9_])(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{60,255})"),
    "Slack token": re.compile(r"(?<![A-Za-z0-9])xox[abprs]-[A-Za-z0-9-]{10,250}"),
    "Google API key": re.compile(r"(?<![A-Za-z0-9])AIza[0-9A-Za-z_-]{35}(?![A-Za-z0-9_-])"),
    "model API key": re.compile(r"(?<![A-Za-z0-9])(?:sk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,200}|hf_[A-Za-z0-9]{30,60})"
                                r"(?![A-Za-z0-9_-])"),
    "payment key": re.compile(r"(?<![A-Za-z0-9])[rs]k_live_[0-9A-Za-z]{16,100}"),
    "signed token": re.compile(r"(?<![A-Za-z0-9_.-])eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\."
                               r"[A-Za-z0-9_-]{10,1000}"),
}
"""By kind. The first letters of each make it all but sure."""
HINTS: Mapping[str, tuple[str, ...]] = {
    "private key": ("PRIVATE KEY-----",), "AWS access key": ("AKIA", "ASIA"),
    "GitHub token": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    "Slack token": ("xox",), "Google API key": ("AIza",), "model API key": ("sk-", "hf_"), "payment key": ("k_live_",),
    "signed token": ("eyJ",)}
"""Text without any of these holds no key of the kind; to look for them costs next to nothing."""
EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}"
                   r"@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,18}(?![\w-])")
PHONE = re.compile(r"(?<![\w+./=-])(?:\+(?=\d{1,6}[ .()-])[1-9](?:[ .()-]{0,2}\d){8,14}(?!\d)"
                   r"|(?:\+?1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[ .-]\d{4})(?![\w/-]|\.\d)")
DIGITS = re.compile(r"[0-9][0-9][0-9][ .)-]{1,2}[0-9][0-9][0-9]")
"""What a phone number without a plus has; much quicker to look for."""
NOBODY = re.compile(r"@(?:[\w.-]+\.)?(?:example\.(?:com|org|net|edu)|(?:your)?(?:domain|company|email)\.com"
                    r"|[\w.-]+\.(?:test|invalid|localhost))$|^(?:git|user|username|name|email|you|your)@"
                    r"|\(?555\)?[ .-]\d{3}[ .-]\d{4}$|[ .-]555[ .-]01\d\d$|123[ .-]456[ .-]7890", re.IGNORECASE)
"""Addresses and numbers that belong to nobody: reserved names, and numbers kept for fiction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """One thing found in a text, without the thing."""

    kind: str
    start: int
    end: int
    masked: str
    """Its kind, its length and at most four of its characters."""


def find_secrets(text: str) -> list[Secret]:
    """What there is in `text`, in the order of its places; of two that overlap, the first in `KEYS` counts."""
    found: list[Secret] = []
    for kind, pattern in KEYS.items():
        if any(hint in text for hint in HINTS[kind]):
            found += _found(kind, pattern, text)
    if "@" in text:
        found += _found("e-mail address", EMAIL, text)
    if "+" in text or DIGITS.search(text):
        found += _found("phone number", PHONE, text)
    if len(found) < 2:
        return found
    found.sort(key=lambda secret: secret.start)
    return [found[0], *(later for earlier, later in pairwise(found) if later.start >= earlier.end)]


def redacted(text: str) -> str:
    """`text` with `[removed: KIND]` in the place of each secret."""
    parts, place = [], 0
    for secret in find_secrets(text):
        parts += [text[place:secret.start], f"[removed: {secret.kind}]"]
        place = secret.end
    return "".join([*parts, text[place:]])


def _found(kind: str, pattern: re.Pattern[str], text: str) -> list[Secret]:
    return [Secret(kind=kind, start=match.start(), end=match.end(), masked=_masked(kind, match[0]))
            for match in pattern.finditer(text) if not NOBODY.search(match[0])]


def _masked(kind: str, secret: str) -> str:
    """`a… (e-mail address, 17 characters)`."""
    shown = 1 if kind in ("e-mail address", "phone number") else 0 if kind == "private key" else 4
    return f"{secret[:shown]}… ({kind}, {len(secret)} characters)"
