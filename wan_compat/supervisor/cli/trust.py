"""`wan-compat trust add|list|remove`: which code of repositories this user approved, byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from wan_compat.protocol.errors import InvalidRequest, NotConfirmed, TrustRefused
from wan_compat.supervisor.cli.confirm import TRUST_MODE, ask, can_ask
from wan_compat.supervisor.cli.downloads import Download, obtain
from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.session import Session

if TYPE_CHECKING:
    from wan_compat.policies.trust import TrustedFile
    from wan_compat.supervisor.trust_review import TrustReview

trust = typer.Typer(name="trust", help="Code of repositories that you approved, by content.", no_args_is_help=True)

MAX_LISTED_DATA_FILES = 100

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show everything, change nothing.")]


@trust.command()
def add(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a repository, or its hub id.")],
    yes: Annotated[bool, typer.Option("--yes", help="Approve without being asked; needed without a terminal.")] = False,
    dry_run: DryRun = False,
    download: Download = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Show the code of a repository, and approve it.

    An approval is for this repository, at this revision, to the byte. A changed byte is asked about again.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    session.model = model
    obtain(session, model, download=download, code=True)
    from wan_compat.supervisor.audit_log import AuditEvent, note
    from wan_compat.supervisor.repository_tree import read_tree
    from wan_compat.supervisor.trust_review import review
    from wan_compat.supervisor.trust_store import TrustStore, make_grant

    found = review(model)
    session.say(describe(found, verbose=session.verbose))
    if dry_run or found.already_approved:
        session.say("Approved already; nothing to do." if found.already_approved else "Nothing was approved (dry run).")
    else:
        try:
            _confirm(session, yes)
        except NotConfirmed:
            note(AuditEvent.TRUST_REFUSED, model=model, tree_hash=found.tree.hash, why="not confirmed")
            raise
        # What was looked at must be what is approved: the answer took a while.
        if read_tree(model).hash != found.tree.hash:
            note(AuditEvent.TRUST_REFUSED, model=model, tree_hash=found.tree.hash, why="changed meanwhile")
            raise TrustRefused(
                f"{model!r} changed while you were looking at it; nothing was approved",
                hint="find out what writes to it, and look again",
            )
        TrustStore().add(make_grant(found.tree, imports=found.imports, risks=found.risks))
        session.say(f"Approved {found.tree.source} as {found.tree.hash[:16]}.")
    if session.json:
        session.document({**found.to_json(), "approved": found.already_approved or not dry_run, "dry_run": dry_run})
    return 0


@trust.command(name="list")
def list_(context: typer.Context, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> int:
    """List the approvals, and verify the audit log. Ends with 1 when the log is not whole."""
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    from wan_compat.supervisor.state_health import examine_state
    from wan_compat.supervisor.trust_store import TrustStore

    grants = TrustStore().grants()  # a store that cannot be believed ends here
    health = examine_state()
    if session.json:
        listed = [grant.model_dump(mode="json") for grant in grants]
        session.document({"schema_version": 1, "grants": listed, "audit": health.to_json()})
    else:
        for grant in grants:
            revision = f" at {grant.revision}" if grant.revision else ""
            session.say(
                f"{grant.tree_hash[:16]}  {grant.source}{revision}\n"
                f"{'':18}{len(grant.files)} files, {len(grant.risks)} risky constructs, "
                f"approved {grant.approved_at} by user {grant.approved_by}"
            )
            if session.verbose:
                session.say(
                    "\n".join(f"{'':18}{risk}" for risk in (f"imports {', '.join(grant.imports)}", *grant.risks))
                )
        if not grants:
            session.say("Nothing was approved.")
        session.say("Audit log: " + "\n".join(health.describe()))
    return 0 if health.sound else 1


@trust.command()
def remove(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL|HASH", help="As `trust list` shows it, or a folder.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Withdraw approvals. Without a terminal nothing is asked: it only makes things stricter."""
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    from wan_compat.supervisor.trust_store import TrustStore, matching

    store = TrustStore()
    found = tuple(matching(store.grants(), model))
    if not found:
        raise InvalidRequest(f"nothing was approved under {model!r}", hint="`wan-compat trust list` shows what was")
    for grant in found:
        session.say(f"{grant.tree_hash[:16]}  {grant.source}" + (f" at {grant.revision}" if grant.revision else ""))
    if not dry_run:
        if not yes and can_ask(session) and not ask("Withdraw?"):
            raise NotConfirmed("nothing was withdrawn", hint="answer y, or give --yes")
        found = store.remove(model)
    session.say("Nothing was withdrawn (dry run)." if dry_run else f"Withdrawn: {len(found)}.")
    if session.json:
        removed = [{"source": g.source, "revision": g.revision, "tree_hash": g.tree_hash} for g in found]
        session.document({"schema_version": 1, "removed": removed, "dry_run": dry_run})
    return 0


def _confirm(session: Session, yes: bool) -> None:
    session.say(TRUST_MODE)
    if yes:
        return
    if not can_ask(session):
        raise NotConfirmed(
            "there is no terminal to ask on; nothing was approved",
            hint="look at the code with --dry-run, then give --yes if you want to approve it",
        )
    if not ask("Approve this code?"):
        raise NotConfirmed("nothing was approved")


def describe(found: TrustReview, *, verbose: bool) -> str:
    """Return what a person should know before an approval. All code is listed, data up to a bound."""
    tree, earlier = found.tree, found.earlier
    runs = set(found.code)
    code = [file for file in tree.files if file.path in runs]
    data = [file for file in tree.files if file.path not in runs]
    shown = data if verbose else data[:MAX_LISTED_DATA_FILES]
    lines = [
        f"Repository  {tree.source}",
        f"Revision    {tree.revision or 'none known'}",
        f"Tree hash   {tree.hash}",
        "",
    ]
    lines += [f"Code ({len(code)} files):", *(_line(file, verbose) for file in code)] if code else ["No code."]
    lines += ["", f"Data ({len(data)} files):", *(_line(file, verbose) for file in shown)]
    if len(shown) < len(data):
        lines.append(f"  and {len(data) - len(shown)} more, which -v lists")
    if tree.excluded:
        outside = [f"{path} ({reason})" for path, reason in tree.excluded]
        more = f" and {len(outside) - 10} more" if len(outside) > 10 else ""
        lines += ["", f"Not part of it, and never shown to a worker: {', '.join(outside[:10])}{more}"]
    lines += ["", f"Imports: {', '.join(found.imports) or 'nothing'}"]
    if found.risks:
        lines += ["Risky constructs:", *(f"  {risk}" for risk in found.risks)]
    else:
        lines.append("Risky constructs: none that the scanner knows, which proves nothing")
    if earlier is not None:
        at = f"revision {earlier.revision}, " if earlier.revision != tree.revision else ""
        before, after = {f.path: f for f in earlier.files}, {f.path: f for f in tree.files}
        lines += ["", f"Different from what was approved ({at}{earlier.approved_at}):"]
        lines += [f"  added    {path}" for path in found.difference.added]
        lines += [f"  removed  {path}" for path in found.difference.removed]
        lines += [
            f"  changed  {path}: {_brief(before[path])} -> {_brief(after[path])}" for path in found.difference.changed
        ]
        if not found.difference:
            lines.append("  no file; only the revision")
    return "\n".join([*lines, ""])


def _line(file: TrustedFile, verbose: bool) -> str:
    digest = file.sha256 if verbose else (file.sha256 or "")[:16]
    return f"  {file.size:>14,}  {digest or 'name and size only':<18}  {file.path}"


def _brief(file: TrustedFile) -> str:
    return f"{file.size:,} bytes {(file.sha256 or 'not hashed')[:12]}"
