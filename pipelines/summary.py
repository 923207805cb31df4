"""A retraining in words: one sentence for the log and the webhook, a page for Prefect."""

from typing import Any

SHOWN = 10


def sentence(record: dict[str, Any]) -> str:
    """Name, decision and reasons in one line.

    >>> sentence({"name": "2024-03", "decision": "not retrained", "reasons": ["no drift"]})
    'retrain 2024-03: not retrained: no drift'
    """
    return f"retrain {record['name']}: {record['decision']}: {' | '.join(record['reasons'])}"


def markdown(record: dict[str, Any]) -> str:
    """Write the record as a page: decision, reasons, deliveries, error, drift, comparison."""
    lines = [f"# {record['name']}: {record['decision']}", "", f"{record['at']}", ""]
    lines += [f"- {reason}" for reason in record["reasons"]]
    if record.get("drops"):
        lines += ["", "| delivery | gate | wafers found | passed |", "|---|---|---|---|"]
        for drop in record["drops"]:
            gate = "passed" if drop["passed"] else "stopped"
            lines.append(f"| {drop['name']} | {gate} | {drop['found']} | {drop['records']} |")
    if champion := record.get("champion"):
        lines += ["", f"Champion: version {champion['version']}, {champion['age_days']:.1f} days old."]
    if (error := record.get("error")) and error["rmse_nm"] is not None:
        lines += ["", f"RMSE on {error['wafers']} new wafers: {error['rmse_nm']:.3f} nm.", ""]
        lines += ["| scanner/chuck | RMSE, nm |", "|---|---|"]
        lines += [f"| {name} | {rmse:.3f} |" for name, rmse in error["by_scanner_chuck"].items()]
    if drift := record.get("drift"):
        lines += ["", "| scanner | chuck | term | shift, nm | p | drifted |", "|---|---|---|---|---|---|"]
        for m in sorted(drift["maps"], key=lambda m: -abs(m["shift_nm"]))[:SHOWN]:
            cells = (
                m["scanner_id"],
                m["chuck_id"],
                m["term"],
                f"{m['shift_nm']:+.2f}",
                f"{m['p_value']:.1g}",
            )
            lines.append(f"| {' | '.join(cells)} | {'yes' if m['drifted'] else ''} |")
        lines += [
            "",
            "| log channel | Wasserstein, sd | KS | PSI | p | drifted |",
            "|---|---|---|---|---|---|",
        ]
        for log in sorted(drift["logs"], key=lambda log: -log["wasserstein_sd"])[:SHOWN]:
            cells = (log["channel"], *(f"{log[k]:.2f}" for k in ("wasserstein_sd", "ks", "psi")))
            lines.append(
                f"| {' | '.join(cells)} | {log['p_value']:.1g} | {'yes' if log['drifted'] else ''} |"
            )
    if challenger := record.get("challenger"):
        parts = ", ".join(challenger["months"])
        lines += [
            "",
            f"Challenger: version {challenger['version']}, data set {parts} ({challenger['branch']}).",
        ]
    return "\n".join(lines) + "\n"
