"""`debugreg policies`."""

from __future__ import annotations

from debugreg import _cli
from debugreg._policies import policies as all_policies


@_cli.command(example="debugreg policies")
def policies(*, as_json: bool) -> None:
    """List the policies, and the deltas that make a difference to each.

    A delta is switched in the policy's name: linux-5.15+H-01=fixed, linux-6.14+HB-34=on.
    """
    rows = all_policies()
    if as_json:
        _cli.print_json([row.to_dict() for row in rows])
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("policy", "host", "KVM", "deltas", ""):
        table.add_column(heading, no_wrap=heading in ("policy", "host", "KVM"))
    for row in rows:
        # Those that it could have and has not are in the JSON document.
        deltas = " ".join(delta.id for delta in row.deltas if delta.state == "on")
        table.add_row(f"[bold]{row.name}", row.host, row.kvm, deltas, row.line)
    lines = {delta.id: delta.line for row in rows for delta in row.deltas}
    known = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    known.add_column("delta")
    known.add_column("")
    for delta, line in sorted(lines.items()):
        known.add_row(f"[bold]{delta}", line)
    console = _cli.console()
    console.print(table)
    console.print(known)
