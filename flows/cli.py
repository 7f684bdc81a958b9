"""The command `dmcp`: the whole work of owner, platform, requester and anyone, from one place.

Nothing heavy is imported here or in `flows.commands`: each command imports what it runs, so `dmcp --help` costs what
typer costs. Results go to stdout, progress and errors to stderr. Exit codes are those of `storage/errors.py`:

    0    done
    1    an unexpected failure (a bug): the message says how to get the traceback
    2    the call was wrong
    3-8  see storage/errors.py: input, configuration or disk, key, authorisation, refused, not found
    130  interrupted with Ctrl-C
"""

from __future__ import annotations

import errno
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from flows.commands import (
    access,
    audit,
    data,
    evidence,
    inspect,
    key,
    protect,
    publish,
    registry,
    remote,
    request,
    run,
    stack,
    sweep,
    train,
)
from storage.disk import FULL, disk_fault
from storage.errors import DmcpError, NoSuchPath

EPILOG = (
    "Without any setting everything is embedded and local. Settings: DMCP_* variables or .env. "
    "Try: dmcp run (where DMCP_S3_ENDPOINT is set, it publishes there)"
)


class DmcpGroup(TyperGroup):
    """The root of the command tree: turns errors into one readable message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            typer.Exit: with the error's code, for everything that is an error.
        """
        if wants_traceback(ctx.params):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except DmcpError as error:
            raise _failure(error.what, error.cure, error.exit_code) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # typer ends quietly: whoever read our output is gone
            raise _system_failure(error) from error
        except KeyboardInterrupt:
            raise _interrupted(ctx.invoked_subcommand) from None
        except (TyperException, typer.Exit, typer.Abort):
            raise  # usage errors and the ends of commands are typer's own matter
        except Exception as error:
            raise _bug(error) from error


MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

GOES_ON = frozenset(("protect", "run", "train", "pull", "publish", "remote", "evaluate-protection", "sweep"))
"""Commands that keep what is finished: called again, they do the rest."""


def wants_traceback(params: dict[str, Any]) -> bool:
    """Whether `--debug` or DMCP_DEBUG asks for tracebacks instead of messages."""
    return bool(params.get("debug"))


def _failure(what: str, cure: str, code: int) -> typer.Exit:
    from flows.console import show_error

    show_error(what, cure)
    return typer.Exit(code)


def _interrupted(command: str | None) -> typer.Exit:
    from flows.console import note

    note("Stopped; the same command goes on." if command in GOES_ON else "Stopped.")
    return typer.Exit(130)


def _system_failure(error: OSError) -> typer.Exit:
    fault = disk_fault(error) if error.errno in FULL else None  # what may not be read is no matter of the disk
    if fault is not None:
        return _failure(fault.what, fault.cure, fault.exit_code)
    if isinstance(error, MISSING) and error.filename:
        missing = NoSuchPath(f"{error.strerror}: {error.filename}.", "Check the path.")
        return _failure(missing.what, missing.cure, missing.exit_code)
    place = f": {error.filename}" if error.filename else ""
    return _failure(f"{error.strerror or error}{place}.", "Check the path and its permissions.", 4)


def _bug(error: Exception) -> typer.Exit:
    cure = "This is not an error we foresaw. Run it again as `dmcp --debug ...` and report the traceback."
    return _failure(f"Unexpected failure, {type(error).__name__}: {error}", cure, 1)


app = typer.Typer(
    name="dmcp",
    cls=DmcpGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from flows.console import say, version

        say(f"dmcp {version()}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="DMCP_DEBUG", help="Show tracebacks instead of messages.")
    ] = False,
) -> None:
    """Publish an image data set without giving it away: protect, publish, restore for those who are authorised."""


GROUPS = (
    *(run, data, key, protect, publish, access, audit, registry, request, remote),
    *(train, evidence, sweep, inspect, stack),
)
for group in GROUPS:
    group.register(app)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="dmcp")


if __name__ == "__main__":
    main()
