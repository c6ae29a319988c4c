"""Secrets are never written: passwords inside of addresses, and the values of `*_TOKEN` and the like."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
SECRET_NAME = re.compile(r"(^|_)(TOKEN|PASSWORD|PASSWD|SECRET|SECRET_ACCESS_KEY|API_KEY)$")
"""Names of environment variables whose values are secret."""
MIN_SECRET_LENGTH = 6
"""A shorter value is a word that also stands elsewhere."""
CREDENTIALS = re.compile(
    r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^\s/?#:'\"]*):(?P<password>[^\s/?#'\"]*)@"
)
ONLY_TOKEN = re.compile(r"(?P<scheme>\bhttps?://)[^\s/?#:@'\"]+@", re.I)
"""A token in the place of user and password."""
QUERY = re.compile(
    r"(?P<name>[?&;](?:[\w-]*_)?(?:token|password|passwd|pwd|secret|api_key|key)=)[^\s&;#'\"]+", re.I
)
HTTP = ("http://", "https://")


def masked(text: str) -> str:
    """`text` without secrets, to be read by people: `https://user:***@host`."""
    text = CREDENTIALS.sub(rf"\g<scheme>\g<user>:{HIDDEN}@", text)
    text = ONLY_TOKEN.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = QUERY.sub(rf"\g<name>{HIDDEN}", text)
    for secret in _secrets_of_environment():
        text = text.replace(secret, HIDDEN)
    return text


def without_credentials(uri: str) -> str:
    """`uri` to be stored and used again, when its credentials come from the environment.

    Of http addresses user and password go (MLflow reads `MLFLOW_TRACKING_USERNAME` and
    `MLFLOW_TRACKING_PASSWORD`), of others the password (PostgreSQL's client reads `PGPASSWORD`).
    """

    def shorten(found: re.Match[str]) -> str:
        is_http = found["scheme"].lower() in HTTP
        return found["scheme"] if is_http else f"{found['scheme']}{found['user']}@"

    uri = ONLY_TOKEN.sub(r"\g<scheme>", CREDENTIALS.sub(shorten, uri))
    return QUERY.sub(rf"\g<name>{HIDDEN}", uri)


def stored(value: Any) -> Any:
    """A setting's value as it may be stored: text without credentials, also inside of lists and mappings."""
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, dict):
        return {key: stored(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [stored(inner) for inner in value]
    return value


def _secrets_of_environment() -> list[str]:
    """The longest first, because one may contain another."""
    values = {value for name, value in os.environ.items() if SECRET_NAME.search(name.upper())}
    return sorted((value for value in values if len(value) >= MIN_SECRET_LENGTH), key=len, reverse=True)
