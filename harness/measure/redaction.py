"""Keeps secrets in addresses out of everything that is stored, shown or put on a command line."""

import re
from collections.abc import Mapping

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
SECRET_QUERY = re.compile(rf"{SECRET_NAME.pattern}|PWD|^USER|^UID$|^SIG", re.IGNORECASE)
WITHHELD = "***"

_USER = re.compile(
    # After the slashes: a user, a password, or both, up to the last @ before the path.
    r"""(?<=//)[^\s/?#'"<>]*@"""
    # A password that holds a / or a #, as it may not: everything to the @ that follows, unless the
    # number of a port comes first, as in http://host:80/a@b.
    r"""|(?<=//)[^\s/?#'"<>:@]+:(?!\d+[/?#])[^\s'"<>@]*@"""
)
_QUERY = re.compile(r"""(?<=[?&;])([^\s=&;?#'"<>]+)=([^\s&;#'"<>]+)""")


def masked(text: str) -> str:
    """The text, with every address in a form that may be shown and stored.

    Users and passwords before an @ are removed; query values whose names look like secrets become
    `***`. All other text stays.
    """
    if "//" not in text:
        return text
    return _QUERY.sub(_mask_value, _USER.sub("", text))


def holds_secret(address: str) -> bool:
    """Whether `masked` would remove something."""
    return masked(address) != address


def without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables without those named like secrets; addresses in the values are
    masked."""
    return {
        name: masked(value) for name, value in variables.items() if not SECRET_NAME.search(name)
    }


def _mask_value(pair: re.Match[str]) -> str:
    name, value = pair.groups()
    return f"{name}={WITHHELD if SECRET_QUERY.search(name) else value}"
