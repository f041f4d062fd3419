"""Credentials in URLs: how to find them, and how to leave them out of what is shown."""

from __future__ import annotations

import re
from urllib.parse import unquote

_START = re.compile(r"(?:(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]+):/+|^//+)")
_NAMES_A_USER = frozenset(
    ("abfs", "abfss", "wasb", "wasbs", "sftp", "ssh", "ftp", "hdfs", "webhdfs", "smb")
)
"""Protocols in which `name@host` names a user or a container; elsewhere the name is a key."""
_PASSWORD = re.compile(r"[^/@]*:(?!\d+/)[^@]*@")
_ASSIGNMENT = re.compile(r"[?#;][^/]*=")
_NAMED_SECRET = re.compile(
    r"(?:secret|token|passw|pwd|signature|credential|\bsig\b|\bauth\w*|"
    r"(?:api|access|private|account)[-_.]?key)[^/?#;&,=]*=",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\s'\"<>]+")
REMEDY = (
    "leave it out and give credentials as the storage's own tools take them (for S3 "
    "AWS_ACCESS_KEY_ID or AWS_PROFILE, for GCS GOOGLE_APPLICATION_CREDENTIALS, for the Hugging "
    "Face hub HF_TOKEN)"
)


def holds_credentials(text: str) -> bool:
    """Whether a URL in `text` carries a user's key, a password, a token or a signature, also if it
    is written with percent signs."""
    once = unquote(text)
    return any(map(_open_credentials, {text, once, unquote(once)}))


def _open_credentials(text: str) -> bool:
    for match in _START.finditer(text):
        scheme, rest = (match[1] or "").lower(), text[match.end() :]
        authority = re.split(r"[/?#\s]", rest, maxsplit=1)[0]
        if "@" in authority and (scheme not in _NAMES_A_USER or ":" in authority.split("@")[0]):
            return True
        if any(pattern.search(rest) for pattern in (_ASSIGNMENT, _NAMED_SECRET)):
            return True
        if _PASSWORD.match(rest):
            return True
    return False


def without_credentials(text: str) -> str:
    """`text` without the credentials of the URLs in it."""
    return _WORD.sub(lambda match: _clean(match[0]), text)


def _clean(word: str) -> str:
    if not holds_credentials(word):
        return word
    start = _START.search(word)
    head, rest = (word[: start.end()], word[start.end() :]) if start else ("", word)
    rest = re.sub(r"[?#;].*", "", rest.rpartition("@")[2])
    return head if holds_credentials(head + rest) else head + rest
