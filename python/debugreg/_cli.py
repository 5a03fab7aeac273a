"""The command line: the table of its commands, and the conventions that all of them share.

A command is a function in a module of `debugreg._commands`, decorated with `command`, and a line in `COMMANDS`. It
returns its exit code, or `None` for 0. What it raises becomes one line on stderr, here and nowhere else.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

import click

from debugreg.errors import DebugregError, WorldError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from rich.console import Console

_F = TypeVar("_F", bound="Callable[..., int | None]")

__all__ = [
    "COMMANDS",
    "command",
    "console",
    "jobs_option",
    "kernel_option",
    "policy_option",
    "print_json",
    "progress",
    "run",
    "tell",
    "vendor_option",
]

# name: (module of debugreg._commands that has a function of that name, short help)
COMMANDS = {
    "check": ("check", "Explore a policy exhaustively: safe, or the shortest way to break a law."),
    "compare": ("compare", "Compare every policy on a real trace: what it costs, what it keeps."),
    "conform": ("conform", "Compare the model with a kernel: the running one, or one under QEMU."),
    "decode": ("codec", "Show what the bits of DR7 or DR6 say."),
    "encode": ("codec", "Show the DR7 that arms a slot."),
    "plan": ("plan", "Find the fewest slots that watch some bytes, and the price of widening."),
    "policies": ("policies", "List the policies and their deltas."),
    "replay": ("replay", "Replay traces under policies, and compare with what the kernel did."),
    "run": ("run", "Run scenarios, each line against its expectation."),
}


class _Lazy(click.Group):
    """A group that knows name and short help of its commands, and imports only the one that runs."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known, rest = super().resolve_command(ctx, args)
        if known is None or name is None:
            return name, known, rest
        module = import_module(f"debugreg._commands.{COMMANDS[name][0]}")
        return name, getattr(module, name), rest


@click.group(
    cls=_Lazy,
    commands={name: click.Command(name, short_help=text) for name, (_, text) in COMMANDS.items()},
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n  debugreg compare",
)
@click.version_option(package_name="debugreg", message="%(package)s %(version)s")
@click.pass_context
def _cli(ctx: click.Context) -> None:
    """x86 debug registers, host and guest: which switch policy is safe, and what it costs."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def command(
    *, example: str, ignore_unknown_options: bool = False
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a function a command: with `--json`, which it gets as `as_json`, and with an example in its help."""

    def decorate(function: Callable[..., int | None]) -> click.Command:
        with_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
        settings = {"ignore_unknown_options": ignore_unknown_options}
        return click.command(epilog=f"\b\nExample:\n  {example}", context_settings=settings)(with_json(function))

    return decorate


def policy_option(text: str) -> Callable[[_F], _F]:
    """Give a command `--policy`, which may come several times."""

    def names(_ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
        from debugreg._policies import resolve

        for name in value:
            try:
                resolve(name)
            except ValueError as error:
                raise click.BadParameter(str(error)) from error
        return value

    return click.option("--policy", multiple=True, metavar="NAME", callback=names, help=text)


def vendor_option(function: _F) -> _F:
    """Give a command `--vendor`."""
    text = "Whose virtualisation. Default: what the file says, else amd."
    return click.option("--vendor", type=click.Choice(["intel", "amd"]), help=text)(function)


def jobs_option(function: _F) -> _F:
    """Take --jobs."""
    text = "Do it in so many processes; the result is the same."
    return click.option("--jobs", type=click.IntRange(1, 1024), default=1, metavar="N", help=text)(function)


def kernel_option(function: _F) -> _F:
    """Give a command `--kernel`."""
    text = "Which Debian kernel the world vm boots. Default: 6.12."
    return click.option("--kernel", type=click.Choice(["6.12", "6.1"]), help=text)(function)


def tell(line: str) -> None:
    """Say on stderr what takes long and is worth knowing."""
    print("debugreg:", line, file=sys.stderr)


@contextmanager
def progress(what: str) -> Generator[Callable[[str, int, int | None], None]]:
    """Show on stderr how far long work is: call it with what is being done, how much is done, and of how much.

    Nothing is shown where nobody looks, and nothing is left behind.
    """
    if not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda name, done, total: bar.update(task, description=f"{what} {name}", completed=done, total=total)


def console() -> Console:
    """Return stdout for what rich draws: 100 columns, so that a page looks the same in a terminal and in a mail."""
    from rich.console import Console

    return Console(width=100, highlight=False, emoji=False)


def print_json(document: object) -> None:
    """Print the one document of `--json`."""
    import json

    click.echo(json.dumps(document))


def run() -> int:
    """Run the command that was asked for.

    Returns:
        The command's own exit code; 2 for a user's mistake; 3 if a world is not available; 130 after Ctrl-C; 1 if
        nobody reads the output.
    """
    try:
        code: int | None = _cli.main(prog_name="debugreg", standalone_mode=False)
        print(end="", flush=True)
    except click.Abort:  # What click makes of KeyboardInterrupt.
        code = 130
    except click.UsageError as error:
        message = error.format_message().removesuffix(".")
        if error.ctx:
            message += ("" if message.endswith("?") else ".") + f" Try '{error.ctx.command_path} --help'."
        code = _mistake(message)
    except click.ClickException as error:
        code = _mistake(error.format_message())
    except WorldError as error:
        code = _mistake(str(error), code=3)
    except DebugregError as error:
        code = _mistake(str(error))
    except BrokenPipeError:
        # The interpreter flushes once more as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _mistake(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return code or 0


def _mistake(message: str, *, code: int = 2) -> int:
    print("debugreg:", " ".join(message.split()), file=sys.stderr)
    return code
