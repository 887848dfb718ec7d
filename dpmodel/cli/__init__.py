"""The command line: `dpmodel train`, `test`, `freeze`, `lammps`, `convert`, `show`, `neighbor-stat`, `plot`, `doc`.

    >>> from dpmodel.cli import main
    >>> main(["convert", "model.dp", "model.yaml"])     # the exit status; 0 is success

What users can mend is one line on stderr and status 1 (2 for a wrong command line); with `-v DEBUG` the traceback
comes too. Ctrl-C is 130. Each command lives in a module of this package, imported when it runs.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module

from dpmodel.cli.arguments import MODULES, make_parser
from dpmodel.cli.logs import logging_to
from dpmodel.errors import DPError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (None: that of the process) and return its exit status.

    One of several processes of a run (`torchrun`) that fails says so and ends at once, without the handlers of an orderly
    exit: in them it would wait for the others, and they for it.
    """
    if not _several():
        return _main(argv)
    try:
        status = _main(argv)
    except BaseException:  # noqa: BLE001 - whatever it is, the others must not wait for this process
        traceback.print_exc()
        status = 1
    if status:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _several() -> bool:
    return os.environ.get("WORLD_SIZE", "").strip() not in ("", "1")


def _main(argv: Sequence[str] | None) -> int:
    debug = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # "Å" on a terminal that has only ASCII
            stream.reconfigure(errors="replace")
    try:
        args = make_parser().parse_args(argv)
        debug = args.log_level == "DEBUG"
        with logging_to(args.log_level, _own_log(args)):
            import_module(MODULES[args.command]).run(args)
            sys.stdout.flush()
    except SystemExit as leave:  # argparse, after help (0) or a wrong command line (2)
        return leave.code if isinstance(leave.code, int) else 2
    except KeyboardInterrupt:
        return _fail("interrupted", debug, 130)
    except BrokenPipeError:
        # The reader of a pipe (`head`) has gone. Python would complain again when it flushes stdout at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except DPError as error:
        if getattr(error, "told", False):  # by another process of the run, which the launcher lets end first
            time.sleep(0.5)
            return 1
        return _fail(str(error), debug, 1)
    except OSError as error:
        return _fail(_explain(error), debug, 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _fail(_OUT_OF_MEMORY + (f" ({error})" if str(error) else ""), debug, 1)
    return 0


def _fail(message: str, debug: bool, status: int) -> int:
    if debug:
        traceback.print_exc()
    rank = os.environ.get("RANK", "0").strip()
    where = f"rank {rank}: " if _several() and rank != "0" else ""
    print(f"dpmodel: error: {where}{' '.join(message.split())}", file=sys.stderr)
    return status


def _own_log(args: argparse.Namespace) -> str | None:
    """The file of the log: with several processes that of the first, or one for each."""
    path: str | None = args.log_path
    rank = os.environ.get("RANK", "0").strip()
    if path is None or not _several() or rank == "0":
        return path
    mode = getattr(args, "mpi_log", "master")
    return {"collect": path, "workers": f"{path}.{rank}"}.get(mode)


_OUT_OF_MEMORY = (
    "the memory does not suffice: lower the batch size (training), DP_INFER_BATCH_SIZE (evaluation) or the cutoff"
)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, or a framework (which is not imported here), found no memory."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    words = ("not enough memory", "can't allocate memory", "out of memory", "RESOURCE_EXHAUSTED")
    return any(word.lower() in str(error).lower() for word in words)


def _explain(error: OSError) -> str:
    if error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return error.strerror or str(error)
