"""Which of the launcher's variables the ranks get: horovodrun writes them on command lines."""

import os
import re
from collections.abc import Mapping

from harness.config import Config
from harness.measure.redaction import SECRET_NAME, masked

PASSED = re.compile(
    r"COLUMNS|HOME|LANG|LANGUAGE|LD_LIBRARY_PATH|LINES|LOGNAME|PATH|SHELL|SSH_AUTH_SOCK|TERM|"
    r"TMPDIR|TZ|USER|VIRTUAL_ENV|XDG_CACHE_HOME|"
    r"MLFLOW_TRACKING_(URI|INSECURE_TLS|(SERVER|CLIENT)_CERT_PATH)|MLFLOW_S3_ENDPOINT_URL|"
    r"(REQUESTS|CURL|AWS)_CA_BUNDLE|SSL_CERT_(FILE|DIR)|"
    r"(http|https|no|HTTP|HTTPS|NO)_(proxy|PROXY)"
)
PASSED_PREFIXES = re.compile(
    r"(CUDA|GLOO|HARNESS|HOROVOD|KMP|LC|MKL|MLFLOW_HTTP|NCCL|NVIDIA|OMP|PYTHON|TORCH)(_|[A-Z])"
)


def passed_on(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that ranks need, with passwords masked: any user can read a command line."""
    return {
        name: masked(value)
        for name, value in variables.items()
        if PASSED.fullmatch(name) or (PASSED_PREFIXES.match(name) and not SECRET_NAME.search(name))
    }


def withheld(config: Config) -> list[str]:
    """A warning if MLflow credentials are set here that the ranks will not get; else nothing."""
    names = _withheld_names() if config.tracking.enabled else []
    if not names:
        return []
    return [
        f"warning: {', '.join(names)} would be readable on the ranks' command lines and is not "
        f"passed on; keep it in ~/.mlflow/credentials"
    ]


def _withheld_names() -> list[str]:
    names = [name for name in os.environ if name.startswith("MLFLOW_") and SECRET_NAME.search(name)]
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return sorted(names + (["MLFLOW_TRACKING_URI"] if masked(uri) != uri else []))
