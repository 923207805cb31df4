"""The alias `champion`, which serving reads: moved by `promote` and `rollback`, never without a line of history.

The history is kept as tags of the registered model, one `champion.move.000001` per move, so that it lives and
dies with the store. A move is announced in a tag (`champion.pending`), made, recorded, and the announcement
removed: whoever comes after a kill completes the record of a move that was made and forgets one that was not.
"""

import getpass
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from ikddit.console import log
from ikddit.errors import RegistryError
from ikddit.params import PromotionParams
from ikddit.registry.gate import DEFAULT_LIMITS, Evidence, GateVerdict, PairedDifference, promotion_gate
from ikddit.registry.store import Store, has_files, if_there, locate_store, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
MOVE_TAG = "champion.move."
PENDING_TAG = "champion.pending"
PAIRED_TAG = "paired"
LONGEST_REASON = 1000
"""Characters; MLflow keeps 5000 per tag, and the gate's sentences stand in it too."""
Action = Literal["first", "promote", "rollback", "found"]


class PromotionRefused(RegistryError):
    """The gate said no; the champion stays. `verdict` has its reasons."""

    def __init__(self, message: str, verdict: GateVerdict) -> None:
        super().__init__(message)
        self.verdict = verdict


class ChampionChanged(RegistryError):
    """Another version serves than the one that the comparison was made with; nothing moves."""


class UnusableVersionError(RegistryError):
    """No such version, or its files are gone."""


@dataclass(frozen=True)
class Move:
    """One move of the alias."""

    number: int
    """From 1, without gaps."""
    action: Action
    """`first`: given to the first version; `found`: the alias was moved by other means."""
    version: int
    before: int | None
    at: str
    """UTC, ISO 8601."""
    by: str
    reason: str
    forced: bool = False
    """Promoted although the gate said no."""
    gate: dict[str, Any] | None = None
    """`GateVerdict.as_dict`, where the gate was asked."""


def promote(
    version: int,
    reason: str,
    *,
    name: str = "ikddit",
    experiment: str = "ikddit",
    store: Store | None = None,
    by: str | None = None,
    paired: PairedDifference | None = None,
    against: int | None = None,
    limits: PromotionParams = DEFAULT_LIMITS,
    force: bool = False,
) -> Move:
    """Make a version champion if the promotion gate agrees.

    Args:
        version: its number.
        reason: why, for the history.
        name: of the registered model.
        experiment: MLflow experiment of the store.
        store: by default the main checkout's.
        by: who; by default the user of this process.
        paired: difference to the present champion on the same wafers; kept with the version, so that a later
            promotion against the same champion finds it.
        against: the champion that `paired`, or whatever else speaks for the version, was measured with.
        limits: of the gate.
        force: promote whatever the gate says; its verdict and the force are recorded.

    Raises:
        PromotionRefused: the gate said no.
        ChampionChanged: the champion is another one than `against`, whatever `force` says.
        RegistryError: no such version, its files are gone, it is the champion already, or there is no reason.
    """
    with _opened(store, experiment, name) as client:
        _check_reason(reason)
        before, wanted = _champion(client, name), _usable(client, name, version)
        if against is not None and before != against:
            raise ChampionChanged(
                f"{name}: champion is version {before or 'none'} by now, not {against}, which version {version} "
                "was compared with; compare it with the champion of now"
            )
        if before == version:
            raise RegistryError(f"{name} version {version} is the champion already")
        if paired is not None and before is not None:
            kept = json.dumps({"champion": before, **asdict(paired)})
            client.set_model_version_tag(name, str(version), PAIRED_TAG, kept)
        verdict = _judge(client, wanted, paired, limits)
        if not verdict.promote and not force:
            raise PromotionRefused(
                f"{name} version {version} stays challenger, champion is {before or 'none'}: "
                f"{'; '.join(verdict.failed)}; `ikddit promote {version} --force` promotes it all the same",
                verdict,
            )
        forced = not verdict.promote
        return _move(client, wanted, "promote", before, by, reason, forced, verdict.as_dict())


def rollback(
    reason: str,
    *,
    name: str = "ikddit",
    experiment: str = "ikddit",
    store: Store | None = None,
    by: str | None = None,
) -> Move:
    """Give the alias back to the champion before; called again, to the one before that.

    Versions that were deleted, or whose files are gone, are passed over. Arguments as in `promote`.

    Raises:
        RegistryError: there is no champion before, or no reason.
    """
    with _opened(store, experiment, name) as client:
        _check_reason(reason)
        before = _champion(client, name)
        for version in reversed(champions(_moves(client, name))[:-1]):
            try:
                wanted = _usable(client, name, version)
            except UnusableVersionError as error:
                log.warning("passed over: %s", error)
                continue
            return _move(client, wanted, "rollback", before, by, reason)
        raise RegistryError(
            f"{name}: no champion before version {before} to go back to; `ikddit models` lists the versions, "
            "`ikddit promote VERSION --force` takes any of them"
        )


def champions(moves: Sequence[Move]) -> list[int]:
    """The line of champions that rollback walks back along, the present one last.

    >>> def move(action, version): return Move(0, action, version, None, "", "", "")
    >>> champions([move("first", 1), move("promote", 2), move("promote", 3), move("rollback", 2)])
    [1, 2]
    """
    line: list[int] = []
    for move in moves:
        if move.action == "rollback":
            while line and line[-1] != move.version:
                line.pop()
        if not line or line[-1] != move.version:
            line.append(move.version)
    return line


def crown_first(client: "MlflowClient", version: "ModelVersion", limits: PromotionParams) -> Move:
    """Give the alias to the first version, so that there is something to serve; the caller holds the lock.

    The gate's verdict is recorded with it, and a no is said aloud.
    """
    verdict = promotion_gate(Evidence.of_tags(version.tags), None, limits=limits)
    if not verdict.promote:
        log.warning("the first champion would not pass the gate: %s", "; ".join(verdict.failed))
    reason = "first version"
    return _move(client, version, "first", None, "register", reason, not verdict.promote, verdict.as_dict())


def evidence_of_champion(client: "MlflowClient", name: str) -> Evidence | None:
    """What is known of the present champion, None where there is none."""
    champion = if_there(client.get_model_version_by_alias, name, CHAMPION)
    return None if champion is None else Evidence.of_tags(champion.tags)


@contextmanager
def _opened(store: Store | None, experiment: str, name: str) -> Iterator["MlflowClient"]:
    """The store's client while this process alone may move the alias, its history brought up to date."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    store = store or locate_store()
    with store.lock():
        client, _ = open_store(store, experiment)
        if if_there(client.get_registered_model, name) is None:
            raise RegistryError(f"no model `{name}` in {store.public_uri}; run `make repro`")
        try:
            _catch_up(client, name)
            yield client
        except (MlflowException, SQLAlchemyError) as error:
            raise RegistryError(f"{name} in {store.public_uri}: {str(error).splitlines()[0]}") from error


def _champion(client: "MlflowClient", name: str) -> int | None:
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if version is None else int(version)


def _moves(client: "MlflowClient", name: str) -> list[Move]:
    tags = client.get_registered_model(name).tags
    found = [Move(**json.loads(text)) for key, text in tags.items() if key.startswith(MOVE_TAG)]
    return sorted(found, key=lambda move: move.number)


def _usable(client: "MlflowClient", name: str, version: int) -> "ModelVersion":
    found = if_there(client.get_model_version, name, str(version))
    if found is None:
        raise UnusableVersionError(f"{name} has no version {version}; `ikddit models` lists them")
    if not has_files(client, found):
        raise UnusableVersionError(f"{name} version {version} has lost its files; it cannot be served")
    return found


def _user() -> str:
    """Name of this process's user, its number where it has none (any container may give it one)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _check_reason(reason: str) -> None:
    if not 0 < len(reason.strip()) <= LONGEST_REASON:
        raise RegistryError(
            f"a reason of 1 to {LONGEST_REASON} characters is needed: it stays in the history"
        )


def _judge(
    client: "MlflowClient", version: "ModelVersion", paired: PairedDifference | None, limits: PromotionParams
) -> GateVerdict:
    champion = _champion(client, version.name)
    if paired is None and PAIRED_TAG in version.tags:
        kept = json.loads(version.tags[PAIRED_TAG])
        if kept.pop("champion") == champion:
            paired = PairedDifference(**kept)
    known = evidence_of_champion(client, version.name)
    return promotion_gate(Evidence.of_tags(version.tags), known, paired, limits)


def _move(
    client: "MlflowClient",
    version: "ModelVersion",
    action: Action,
    before: int | None,
    by: str | None,
    reason: str,
    forced: bool = False,
    gate: dict[str, Any] | None = None,
) -> Move:
    move = Move(
        number=len(_moves(client, version.name)) + 1,
        action=action,
        version=int(version.version),
        before=before,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=by or _user(),
        reason=reason.strip(),
        forced=forced,
        gate=gate,
    )
    client.set_registered_model_tag(version.name, PENDING_TAG, json.dumps(asdict(move)))
    client.set_registered_model_alias(version.name, CHAMPION, version.version)
    _record(client, version.name, move)
    client.delete_registered_model_tag(version.name, PENDING_TAG)
    log.info("%s: champion is version %d (before: %s): %s", version.name, move.version, before, move.reason)
    return move


def _record(client: "MlflowClient", name: str, move: Move) -> None:
    client.set_registered_model_tag(name, f"{MOVE_TAG}{move.number:06d}", json.dumps(asdict(move)))
    # For readers of the MLflow UI: why this version serves, or last served.
    for tag, text in (("since", move.at), ("by", move.by), ("why", f"{move.action}: {move.reason}")):
        client.set_model_version_tag(name, str(move.version), f"champion.{tag}", text)


def _catch_up(client: "MlflowClient", name: str) -> None:
    """Complete or forget a move whose process died, and note one that was made by other means."""
    model = client.get_registered_model(name)
    now = _champion(client, name)
    if PENDING_TAG in model.tags:
        pending = Move(**json.loads(model.tags[PENDING_TAG]))
        if pending.version == now:
            _record(client, name, pending)
        client.delete_registered_model_tag(name, PENDING_TAG)
    moves = _moves(client, name)
    if now is not None and (not moves or moves[-1].version != now):
        before = moves[-1].version if moves else None
        at = datetime.now(UTC).isoformat(timespec="seconds")
        reason = "the alias was moved by other means"
        _record(client, name, Move(len(moves) + 1, "found", now, before, at, _user(), reason))
