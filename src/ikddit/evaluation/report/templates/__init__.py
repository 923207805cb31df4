"""Jinja templates of the page and the model card, with the filters they use."""

from typing import TYPE_CHECKING

from ikddit.evaluation.report.text import number, percent, plus_minus, short

if TYPE_CHECKING:
    from jinja2 import Environment


def environment(escape: bool = True) -> "Environment":
    """The templates beside this file; an unknown name in one is an error, not a blank.

    Args:
        escape: text from the data is made safe for HTML; False for Markdown.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("ikddit.evaluation.report"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"number": number, "percent": percent, "plus_minus": plus_minus, "short": short}
    return made
