"""Keeps passwords out of what is written down, shown, or put on a command line."""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)


def without_password(uri: str) -> str:
    """The URI as it may be shown and stored: no user and no password. Other text stays."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables less those named like secrets, values less their passwords."""
    return {
        name: without_password(value)
        for name, value in variables.items()
        if not SECRET_NAME.search(name)
    }
