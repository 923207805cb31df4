"""Typed errors of the whole library: each names the thing, the place and the way out, and no password."""

import re

# Greedy to the last @: a password may hold a slash or an @ that nobody encoded. Bounded, so that hostile text is cheap.
_LOGIN = re.compile(r"(?<=://)(?!/)\S{1,2000}@")
_SECRET_FIELD = re.compile(
    r"(?i)([?&](?:password|passwd|pwd|sslpassword|token|access_token|api_key|secret)=)[^&\s]+"
)


def without_passwords(text: str) -> str:
    """The text with the logins of all URLs in it replaced by ***: fit for a log, a report or a terminal.

    >>> without_passwords("no answer from postgresql://fab:pass/word@db:5432/mlflow")
    'no answer from postgresql://***@db:5432/mlflow'
    >>> without_passwords("postgresql://db/mlflow?user=fab&password=word&sslmode=require")
    'postgresql://db/mlflow?user=fab&password=***&sslmode=require'
    >>> without_passwords("models:/ikddit@champion, file:///home/a@b/mlruns")
    'models:/ikddit@champion, file:///home/a@b/mlruns'
    """
    return _LOGIN.sub("***@", _SECRET_FIELD.sub(r"\1***", text))


class IkdditError(Exception):
    """Base class: the command line prints its message without a stack trace and exits with 1.

    Logins in URLs are struck out of the message, since much of it is quoted from other programs.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_passwords(arg) if isinstance(arg, str) else arg for arg in args))


class ParamsError(IkdditError):
    """params.yaml holds an unknown key, a wrong type or a value out of range."""


class InputError(IkdditError):
    """Something given cannot be used: a raw item, a request, an output folder, a file of another stage.

    A raw item goes to quarantine and the others go on; anything else ends the run or answers the request.

    Args:
        file: the file (or `archive.zip!member`) that is at fault.
        field: the field, column or aspect of it, for example `ids.barcode` or `size`.
        reason: what is wrong, with the value seen and the value expected.
        remedy: what the owner of the data can do.

    >>> str(InputError("overlay_0017.png", "size", "63x64 pixels, expected 64x64", "re-export"))
    'overlay_0017.png: size: 63x64 pixels, expected 64x64; re-export'
    """

    def __init__(self, file: str, field: str, reason: str, remedy: str) -> None:
        super().__init__(f"{file}: {field}: {reason}; {remedy}")
        self.file = file
        self.field = field
        self.reason = reason
        self.remedy = remedy


class GateError(IkdditError):
    """A quality gate failed: the stage stops, nothing downstream runs on bad data."""


class ModelError(IkdditError):
    """A model folder is incomplete, damaged, or does not fit the data it is asked about."""


class DeviceError(IkdditError):
    """No such device: an unknown name, or a GPU where torch sees none."""


class TrainingError(IkdditError):
    """Training cannot go on (NaN loss, unusable checkpoint); names the step and the last good state."""


class RegistryError(IkdditError):
    """The MLflow store cannot be used, or a model could not be registered; no half version is left."""
