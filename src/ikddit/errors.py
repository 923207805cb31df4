"""Typed errors of the whole library: each names the thing, the place and the way out."""


class IkdditError(Exception):
    """Base class: the command line prints its message without a stack trace and exits with 1."""


class ParamsError(IkdditError):
    """params.yaml holds an unknown key, a wrong type or a value out of range."""


class InputError(IkdditError):
    """One raw item cannot be read; it goes to quarantine and the others go on.

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


class TrainingError(IkdditError):
    """Training cannot go on (NaN loss, unusable checkpoint); names the step and the last good state."""


class RegistryError(IkdditError):
    """The MLflow store cannot be used, or a model could not be registered; no half version is left."""
