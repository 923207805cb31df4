"""ISA-L's inflate, as those who read zips and PNGs need it: what it raises on damaged data."""

from isal import isal_zlib

INFLATE_ERROR: type[Exception] = getattr(isal_zlib, "error")  # noqa: B009
"""The stubs call the class an instance."""
