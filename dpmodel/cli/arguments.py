"""The arguments of every command. Only argparse is imported here, so that `--help` is quick."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from dpmodel import __version__
from dpmodel.cli.logs import log_level

__all__ = ["LATER", "MODULES", "make_parser"]

MODULES: dict[str, str] = {
    "train": "dpmodel.cli.train",
    "test": "dpmodel.cli.test",
    "freeze": "dpmodel.cli.freeze",
    "lammps": "dpmodel.cli.lammps",
    "convert": "dpmodel.cli.convert",
    "convert-backend": "dpmodel.cli.convert",
    "show": "dpmodel.cli.show",
    "neighbor-stat": "dpmodel.cli.neighbour_stat",
    "model-devi": "dpmodel.cli.model_devi",
    "embed": "dpmodel.cli.embed",
    "change-bias": "dpmodel.cli.change_bias",
    "plot": "dpmodel.cli.plot",
    "doc": "dpmodel.cli.doc",
    "doc-train-input": "dpmodel.cli.doc",
}
"""The module that runs each command."""

LATER: dict[str, str] = {
    "eval-desc": "use `dpmodel embed`, which writes descriptors to an HDF5 file",
    "compress": "models run uncompressed here",
    "pretrained": "",
    "gui": "",
    "convert-from": "it is TensorFlow's alone; convert with DeePMD-kit to a .dp file first",
    "transfer": "it is TensorFlow's alone",
    "train-nvnmd": "it is TensorFlow's alone; use `dpmodel train`",
}
"""Commands that users of the family know and this version does not have, and what to do instead."""

_FLAGS = {"pt": "pt", "pytorch": "pt", "pt-expt": "pt_expt", "jax": "jax", "numpy": "numpy", "dpmodel": "numpy"}


class _Parser(argparse.ArgumentParser):
    """A parser that can say that its whole command is not there."""

    unavailable: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.unavailable is not None:
            self.exit(2, f"dpmodel: error: {self.unavailable}\n")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """One line, as all errors here; argparse would print the usage first."""
        self.exit(2, f"dpmodel: error: {message} (see `{self.prog} --help`)\n")


class _Unavailable(argparse.Action):
    """An option that users of the family know and this version does not have; `const` says what to do instead."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        parser.error(f"{option_string} is not available in this version{self.const}")


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; the result has `command`, `backend`, `log_level` and `log_path`."""
    parser = _Parser(
        prog="dpmodel",
        description="Machine-learned interatomic potentials of the Deep Potential family.",
        epilog="`dpmodel COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"dpmodel {__version__}")
    _add_common(parser, default=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    _add_train(commands)
    _add_test(commands)
    _add_freeze(commands)
    _add_lammps(commands)
    _add_convert(commands)
    _add_show(commands)
    _add_neighbour_stat(commands)
    _add_model_devi(commands)
    _add_embed(commands)
    _add_change_bias(commands)
    _add_plot(commands)
    _add_doc(commands)
    for name, instead in LATER.items():
        command = commands.add_parser(name, add_help=False)
        command.unavailable = f"`{name}` is not available in this version{instead and '; ' + instead}"
    return parser


def _add_common(parser: argparse.ArgumentParser, *, default: Any = argparse.SUPPRESS) -> None:
    """What may stand before or after the command. Commands set nothing that was not given to them."""
    group = parser.add_argument_group("common options")
    group.add_argument(
        "-b", "--backend", default=default, metavar="NAME",
        help="numpy, pt, jax or pt_expt; default: DP_BACKEND, else the best installed",
    )  # fmt: skip
    for flag, name in _FLAGS.items():
        group.add_argument(
            f"--{flag}", dest="backend", action="store_const", const=name, default=default, help=argparse.SUPPRESS
        )
    group.add_argument(
        "-v", "--log-level", type=log_level, default="INFO" if default is None else default, metavar="LEVEL",
        help="DEBUG (3), INFO (2), WARNING (1) or ERROR (0); default: INFO",
    )  # fmt: skip
    group.add_argument("-l", "--log-path", default=default, metavar="FILE", help="write the log to this file as well")


def _add_command(commands: Any, name: str, summary: str, **options: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary, **options)
    _add_common(parser)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; default: the best the backend has")


def _add_train(commands: Any) -> None:
    parser = _add_command(commands, "train", "Train a model as an input file says.")
    parser.add_argument("input", metavar="INPUT", help="the input file (.json or .yaml)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("-r", "--restart", metavar="CKPT", help="go on from a checkpoint of the same run")
    start.add_argument("-i", "--init-model", metavar="MODEL", help="start with the parameters of a model or checkpoint")
    unavailable: dict[str, Any] = {"action": _Unavailable, "metavar": "X", "help": argparse.SUPPRESS}
    start.add_argument(
        "-t", "--finetune", metavar="MODEL",
        help="start with the parameters of a pre-trained model, of one task or several, and biases that fit the data",
    )  # fmt: skip
    start.add_argument("-f", "--init-frz-model", const="; use --init-model with a .dp file", **unavailable)
    parser.add_argument(
        "--model-branch", metavar="HEAD",
        help="with --finetune: the task of the pre-trained model, or RANDOM for its descriptor and a fresh fitting net",
    )  # fmt: skip
    parser.add_argument(
        "--use-pretrain-script", action="store_true",
        help="with --finetune: descriptor and fitting_net are those of the pre-trained model, whatever the input says",
    )  # fmt: skip
    parser.add_argument(
        "--force-load", action="store_true",
        help="with --finetune: what the pre-trained model lacks begins with fresh numbers",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", default="out.json", metavar="FILE", help="where the input goes with all defaults filled in"
    )
    parser.add_argument(
        "--skip-neighbor-stat", action="store_true", help='do not compare sel with the data ("auto" is still resolved)'
    )
    parser.add_argument("--stop-at", type=int, metavar="STEP", help="save and leave after this step")
    parser.add_argument(
        "-m", "--mpi-log", choices=("master", "collect", "workers"), default="master",
        help="with several processes: only the first says how the run goes (the default), all do, or all do and each has a "
        "log file of its own (--log-path with .1, .2, ...)",
    )  # fmt: skip
    _add_device(parser)


def _add_label_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--label-names", nargs="+", metavar="LABEL=NAME", help="what XYZ files call labels, as in energy=REF_energy"
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "-s", "--system", nargs="+", metavar="FOLDER", help="data systems, or folders to search for them; default: ."
    )
    data.add_argument("-f", "--datafile", metavar="FILE", help="a text file with one system per line")
    data.add_argument("--train-data", metavar="INPUT", help="the training data of this input file")
    data.add_argument("--valid-data", metavar="INPUT", help="the validation data of this input file")
    _add_label_names(parser)


def _add_test(commands: Any) -> None:
    parser = _add_command(commands, "test", "Compare a model's predictions with labelled data.")
    parser.add_argument("-m", "--model", required=True, metavar="MODEL", help="a model file or a checkpoint")
    _add_data(parser)
    parser.add_argument("-n", "--numb-test", type=int, default=0, metavar="N", help="frames per system; 0: all")
    parser.add_argument("--shuffle-test", action="store_true", help="take frames at random instead of the first ones")
    parser.add_argument("-r", "--rand-seed", type=int, metavar="SEED", help="seed of --shuffle-test")
    parser.add_argument(
        "-d", "--detail-file", metavar="PREFIX", help="write labels and predictions to PREFIX.e.out, PREFIX.f.out, ..."
    )
    parser.add_argument("-a", "--atomic", action="store_true", help="test the energies of atoms too")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file as well")
    parser.add_argument("--head", "--model-branch", dest="head", metavar="NAME", help="the task of a multi-task model")
    _add_device(parser)


def _add_freeze(commands: Any) -> None:
    parser = _add_command(commands, "freeze", "Compile a model into one file: .pt2 for LAMMPS, .hlo for JAX.")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a model file, a checkpoint, or the folder of a run; default: ."
    )
    parser.add_argument(
        "-c", "--checkpoint", "--checkpoint-folder", metavar="MODEL", help="the same, as users of the family write it"
    )
    parser.add_argument(
        "-o",
        "--output",
        default="model.pt2",
        metavar="FILE",
        help=".pt2: compiled for one process and many; .hlo: a StableHLO program; default: model.pt2",
    )
    parser.add_argument("--head", "--model-branch", dest="head", metavar="NAME", help="the task of a multi-task model")
    parser.add_argument(
        "--atomic-virial", action="store_true", help="compile per-atom virials (stresses) too; a .hlo has them always"
    )
    for flag in ("-n", "--node-names", "-w", "--nvnmd-weight", "--lower-kind"):
        parser.add_argument(flag, const="; leave it out", action=_Unavailable, metavar="X", help=argparse.SUPPRESS)
    parser.add_argument("--hessian", const="; leave it out", nargs=0, action=_Unavailable, help=argparse.SUPPRESS)


def _add_lammps(commands: Any) -> None:
    parser = _add_command(commands, "lammps", "The plugin that gives LAMMPS the pair style dpmodel.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser)
    build = _add_command(actions, "build", "Compile the plugin into the cache, for the installed torch and LAMMPS.")
    build.add_argument("--force", action="store_true", help="compile anew what is there")
    _add_command(actions, "info", "Say where the plugin is, and what it is for.")


def _add_convert(commands: Any) -> None:
    parser = _add_command(
        commands, "convert", "Convert a model file; the suffixes choose the formats.", aliases=["convert-backend"]
    )
    parser.add_argument("source", metavar="IN", help=".dp, .yaml, .json, or a checkpoint, also DeePMD-kit's .pt")
    parser.add_argument("target", metavar="OUT", help=".dp, .yaml or .json")
    parser.add_argument("--head", "--model-branch", dest="head", metavar="NAME", help="the task of a multi-task model")
    parser.add_argument(
        "--type-map", nargs="+", metavar="NAME",
        help="the types of the target: those of the source in another order, fewer, or more (to be trained)",
    )  # fmt: skip
    parser.add_argument("--atomic-virial", action="store_true", help=argparse.SUPPRESS)  # of exported models


def _add_show(commands: Any) -> None:
    parser = _add_command(commands, "show", "Show what a model file holds.")
    parser.add_argument("model", metavar="MODEL", help="a model file or a checkpoint")
    parser.add_argument(
        "attributes", metavar="ATTRIBUTE", nargs="*",
        help="type-map, descriptor, fitting-net, size, observed-type, serialization-tree, provenance, model-branch; "
        "default: a summary",
    )  # fmt: skip
    parser.add_argument("--head", metavar="NAME", help="the task of a multi-task model; default: all tasks")


def _add_neighbour_stat(commands: Any) -> None:
    parser = _add_command(commands, "neighbor-stat", "Count neighbours: what `sel` is chosen by.")
    parser.add_argument("-s", "--system", nargs="+", default=["."], metavar="FOLDER", help="data systems; default: .")
    parser.add_argument("-r", "--rcut", type=float, required=True, metavar="RCUT", help="cutoff radius, Å")
    parser.add_argument(
        "-t", "--type-map", nargs="+", metavar="NAME", help="names of the types in order; default: those of the data"
    )
    parser.add_argument(
        "--mixed-type", "--one-type", dest="mixed_type", action="store_true", help="one number for all types together"
    )


def _add_model_devi(commands: Any) -> None:
    parser = _add_command(commands, "model-devi", "Compare several models: how far do their predictions differ?")
    parser.add_argument(
        "-m", "--models", nargs="+", required=True, metavar="MODEL", help="model files or checkpoints, at least two"
    )
    parser.add_argument("-s", "--system", nargs="+", default=["."], metavar="FOLDER", help="data systems; default: .")
    _add_label_names(parser)
    parser.add_argument(
        "-o", "--output", default="model_devi.out", metavar="FILE", help="the table; default: model_devi.out"
    )
    parser.add_argument(
        "-f",
        "--frequency",
        type=int,
        default=1,
        metavar="N",
        help="steps between frames, for the first column; default: 1",
    )
    parser.add_argument(
        "--real_error", "--real-error", dest="real_error", action="store_true",
        help="the error of the models against the labels, instead of their deviation from each other",
    )  # fmt: skip
    parser.add_argument("--atomic", action="store_true", help="add the deviation of the force of every atom")
    parser.add_argument(
        "--relative",
        type=float,
        metavar="LEVEL",
        help="divide deviations of forces by (norm of the mean + LEVEL), eV/Å",
    )
    parser.add_argument(
        "--relative_v", "--relative-v", dest="relative_v", type=float, metavar="LEVEL",
        help="divide deviations of virials by (absolute mean + LEVEL), eV per atom",
    )  # fmt: skip
    parser.add_argument(
        "--head", "--model-branch", dest="head", nargs="+", metavar="NAME",
        help="the task of multi-task models: one name for all, or one for each",
    )  # fmt: skip
    _add_device(parser)


def _add_embed(commands: Any) -> None:
    parser = _add_command(commands, "embed", "Write descriptors and features of the fitting net of every atom (HDF5).")
    parser.add_argument("-m", "--model", required=True, metavar="MODEL", help="a model file or a checkpoint")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("-s", "--system", nargs="+", metavar="FOLDER", help="data systems; default: .")
    data.add_argument("-f", "--datafile", metavar="FILE", help="a text file with one system per line")
    _add_label_names(parser)
    parser.add_argument(
        "-o", "--output", default="embedding.hdf5", metavar="FILE", help="where they go; default: embedding.hdf5"
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "fp64", "native"), default="fp32", help="precision of the file; default: fp32"
    )
    parser.add_argument("--head", "--model-branch", dest="head", metavar="NAME", help="the task of a multi-task model")
    _add_device(parser)


def _add_change_bias(commands: Any) -> None:
    parser = _add_command(commands, "change-bias", "Fit the output bias of a model to other data, or set it.")
    parser.add_argument("model", metavar="MODEL", help="a model file or a checkpoint; it stays as it is")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("-s", "--system", nargs="+", metavar="FOLDER", help="data systems; default: .")
    data.add_argument("-f", "--datafile", metavar="FILE", help="a text file with one system per line")
    _add_label_names(parser)
    parser.add_argument(
        "--bias-value", nargs="+", type=float, metavar="X", help="the bias itself, type by type, instead of data"
    )
    parser.add_argument(
        "-n", "--numb-batch", type=int, default=0, metavar="N", help="batches per system; default: 0, all frames"
    )
    parser.add_argument(
        "-m", "--mode", choices=("change", "set"), default="change",
        help="change: add the fit of label minus prediction; set: take that of the labels alone; default: change",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the new model; default: MODEL with _updated in its name"
    )
    parser.add_argument("--head", "--model-branch", dest="head", metavar="NAME", help="the task of a multi-task model")
    _add_device(parser)


def _add_plot(commands: Any) -> None:
    parser = _add_command(commands, "plot", "Draw learning curves or parity plots (PNG, SVG, PDF).")
    parser.add_argument("lcurve", nargs="?", metavar="LCURVE", help="a learning curve; default: lcurve.out")
    parser.add_argument("--parity", metavar="PREFIX", help="draw the details that `dpmodel test -d PREFIX` wrote")
    parser.add_argument("-o", "--output", metavar="FILE", help="the picture; the suffix is its format")
    parser.add_argument("--title", metavar="TEXT", help="a title above the picture")


def _add_doc(commands: Any) -> None:
    parser = _add_command(commands, "doc", "Print the reference of the input file.", aliases=["doc-train-input"])
    parser.add_argument("--out-type", default="rst", metavar="TYPE", help="rst, md, json or json_schema; default: rst")
    parser.add_argument(
        "section", nargs="?", metavar="SECTION", help='only this section, as "model.descriptor[se_e2_a]"'
    )
    parser.add_argument("--multi-task", action="store_true", help="of inputs of several tasks")
