"""The quality gate's own short report: one page that opens offline, and the same facts as JSON."""

from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Any

from ikddit.mpom.gates import RuleResult

if TYPE_CHECKING:
    import pandas as pd

_STYLE = """
body{font:15px/1.5 system-ui,"Segoe UI",Roboto,sans-serif;color:#212529;max-width:68rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .5rem}h2{font-size:1.15rem;margin:1.8rem 0 .4rem}
table{border-collapse:collapse;width:100%}th,td{border-bottom:1px solid #dfe3e7;padding:.3rem .6rem;
text-align:left;vertical-align:top}th{background:#f5f6f8;font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.ok{color:#1a7f37}.bad{color:#b42318}.bar{background:#e6e9ed;width:12rem;height:.7rem}
.bar div{background:#0b5cad;height:100%}a{color:#0b5cad}p.note{color:#66707a}
"""


def results_json(results: list[RuleResult]) -> list[dict[str, Any]]:
    """Every expectation and what was found, in the order of the suites, without clocks or random ids."""
    return [
        {
            "suite": r.suite,
            "level": r.rule.level,
            "expectation": r.kind,
            "column": r.rule.column,
            "allowed": _allowed(r),
            "success": r.success,
            "observed": r.observed,
            "broken_by": len(r.failures),
            "examples": [f.rule.reason(f.value) for f in r.failures[:3]],
        }
        for r in results
    ]


def failed_gates(results: list[RuleResult]) -> list[str]:
    """One sentence per suite-level expectation that failed, with the observed value and the remedy."""
    out = []
    for r in results:
        if r.rule.level != "suite" or r.success:
            continue
        if r.rule.mean:
            text = r.rule.reason(r.observed)
        elif r.suite == "log_channels":
            worst = sorted(r.failures, key=lambda f: -float(f.value))
            named = ", ".join(f"{f.row} {float(f.value):.3g}" for f in worst[:5])
            more = f" and {len(worst) - 5} more channels" if len(worst) > 5 else ""
            text = f"missing share of {named}{more}, allowed {r.rule.bounds}"
        else:
            text = r.rule.reason(r.failures[0].value)
        out.append(f"{r.suite}.{r.rule.column}: {text}; {r.rule.remedy}")
    return out


def summary_page(
    metrics: dict[str, Any],
    results: list[RuleResult],
    quarantined: list[dict[str, Any]],
    channels: "pd.DataFrame",
    notes: list[str],
) -> str:
    """Build reports/validation/index.html: verdict, counts, failed expectations, quarantine, channels."""
    gates = failed_gates(results)
    verdict = '<span class="bad">stopped</span>' if gates else '<span class="ok">passed</span>'
    counts = [(name.replace("_", " "), metrics[name]) for name in _COUNTS if name in metrics]
    broken = [r for r in results if r.failures and r.rule.level == "row"]
    reasons = Counter(entry["field"] for entry in quarantined)
    examples = {entry["field"]: entry for entry in reversed(quarantined)}
    worst = channels.sort_values(["missing_share", "channel"], ascending=[False, True])
    parts = [
        f"<h1>Quality gate: {verdict}</h1>",
        *(f'<p class="bad">{escape(text)}</p>' for text in gates),
        *(f'<p class="note">{escape(text)}</p>' for text in notes),
        '<p><a href="data_docs/index.html">Data Docs</a>: every expectation with its result.</p>',
        "<h2>Counts</h2>",
        _table(["Of all wafers", "#"], [[name, _value(value)] for name, value in counts]),
        "<h2>Expectations broken by records</h2>",
        _table(
            ["Suite", "Column", "Allowed", "#Records", "For example"],
            [
                [r.suite, r.rule.column, _allowed(r), len(r.failures), r.rule.reason(r.failures[0].value)]
                for r in broken
            ],
        ),
        "<h2>Quarantine of this stage</h2>",
        _table(
            ["Field", "#Records", "For example", "Remedy"],
            [
                [name, n, f"{examples[name]['item']}: {examples[name]['reason']}", examples[name]["remedy"]]
                for name, n in reasons.most_common()
            ],
        ),
        "<h2>Log channels, missing share</h2>",
        _bars(
            [
                (str(c), float(share))
                for c, share in zip(worst["channel"], worst["missing_share"], strict=True)
            ]
        ),
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="UTF-8"><title>Quality gate</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


_COUNTS = [
    "found",
    "quarantined_by_ingest",
    "items",
    "quarantined",
    "records",
    "quarantined_share",
    "lots",
    "complete_lot_share",
    "expectations",
]


def _allowed(result: RuleResult) -> str:
    rule = result.rule
    if rule.present:
        return "not missing"
    if rule.unique:
        return "unique"
    return f"one of {len(rule.known)} known ids" if rule.known is not None else rule.bounds


def _value(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(head: list[str], rows: list[list[Any]]) -> str:
    """A table; headings that start with # are right-aligned numbers."""
    if not rows:
        return '<p class="ok">None.</p>'
    kind = [' class="n"' if name.startswith("#") else "" for name in head]
    top = "".join(f"<th{k}>{escape(name.lstrip('#'))}</th>" for name, k in zip(head, kind, strict=True))
    lines = ["".join(f"<td{k}>{escape(str(v))}</td>" for v, k in zip(row, kind, strict=True)) for row in rows]
    return f"<table><tr>{top}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _bars(shares: list[tuple[str, float]]) -> str:
    if not shares:
        return '<p class="note">The records have no log channels.</p>'
    rows = [
        f'<tr><td>{escape(name)}</td><td class="n">{share:.1%}</td>'
        f'<td><div class="bar"><div style="width:{share:.1%}"></div></div></td></tr>'
        for name, share in shares
    ]
    return '<table><tr><th>Channel</th><th class="n">Missing</th><th></th></tr>' + "".join(rows) + "</table>"
