"""The command line, in process: results, exit statuses, one-line errors."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import dpmodel
from dpmodel import cli
from dpmodel.cli import main
from dpmodel.cli.arguments import LATER, MODULES, make_parser
from dpmodel.data import write_system
from dpmodel.errors import InputError
from dpmodel.files.container import read_tree, write_tree
from dpmodel.files.model_file import ModelFile, write_model
from dpmodel.input import load_input
from dpmodel.input.sections import ModelConfig
from dpmodel.models.build import build_model

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "se_e2_a.dp"


@pytest.fixture
def systems(tmp_path: Path) -> Path:
    """A folder with two small systems."""
    rng = np.random.default_rng(2)
    for name, count in (("a", 2), ("b", 3)):
        coord = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3) * 3.5 + rng.uniform(
            -0.5, 0.5, (count, 8, 3)
        )
        labels = {"energy": rng.normal(size=count), "force": rng.normal(size=(count, 8, 3))}
        write_system(
            tmp_path / "data" / name, coord, [0, 1, 1, 1] * 2, 8.0 * np.eye(3), type_map=["O", "H"], labels=labels
        )
    return tmp_path / "data"


def fails(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 1) -> str:
    """The one line of error that the command line gives."""
    assert main(argv) == status
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("dpmodel: error: ")]
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    assert "Traceback" not in "\n".join(lines)
    return errors[0]


# --- the command line as such ----------------------------------------------------------------------------


def test_help_in_a_process_of_its_own() -> None:
    code = (
        "import sys; from dpmodel.cli import main; status = main(['--help']); "
        "heavy = {'torch', 'jax', 'h5py', 'dargs', 'numpy', 'rich', 'ase', 'matplotlib'} & sys.modules.keys(); "
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for command in (["-c", code], ["-m", "dpmodel", "--help"]):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        for name in ("train", "test", "convert", "show", "neighbor-stat", "plot", "doc"):
            assert f"\n    {name}" in done.stdout


def test_every_command_explains_itself(capsys) -> None:
    for name in MODULES:
        assert main([name, "--help"]) == 0
        own = name.removesuffix("-backend").removesuffix("-train-input")  # aliases show the name of their command
        assert f"usage: dpmodel {own} " in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dpmodel {dpmodel.__version__}\n"


def test_wrong_command_lines(capsys) -> None:
    assert "COMMAND" in fails(capsys, status=2)
    assert "invalid choice: 'tran'" in fails(capsys, "tran", status=2)
    assert "the following arguments are required: INPUT" in fails(capsys, "train", status=2)
    assert "--log-level" in fails(capsys, "show", "x.dp", "-v", "LOUD", status=2)
    assert "not allowed with" in fails(capsys, "train", "x.json", "-r", "a", "-i", "b", status=2)


@pytest.mark.parametrize("name", LATER)
def test_commands_of_later_versions(capsys, name: str) -> None:
    text = fails(capsys, name, "-o", "x", "--unknown", status=2)
    assert f"`{name}` is not available in this version" in text


def test_options_of_later_versions(capsys) -> None:
    assert "-f is not available in this version" in fails(capsys, "train", "x.json", "-f", "x", status=2)


def test_options_of_fine_tuning_alone(capsys) -> None:
    for option in (["--use-pretrain-script"], ["--model-branch", "a"], ["--force-load"]):
        text = fails(capsys, "train", "x.json", *option)
        assert f"{option[0]}: belongs to --finetune" in text
    assert "not allowed with" in fails(capsys, "train", "x.json", "-r", "a", "-t", "b", status=2)


@pytest.mark.parametrize(
    ("argv", "backend"),
    [
        (["show", "x"], None),
        (["-b", "jax", "show", "x"], "jax"),
        (["show", "x", "--backend", "np"], "np"),
        (["--pt-expt", "show", "x"], "pt_expt"),
        (["show", "x", "--pt"], "pt"),
        (["-b", "jax", "show", "x", "-b", "pt"], "pt"),
    ],
)
def test_common_options_stand_anywhere(argv: list[str], backend: str | None) -> None:
    assert make_parser().parse_args(argv).backend == backend
    assert make_parser().parse_args(argv).log_level == "INFO"
    assert make_parser().parse_args([*argv, "-v", "3"]).log_level == "DEBUG"
    assert make_parser().parse_args(["-v", "warning", *argv]).log_level == "WARNING"


def run_instead(monkeypatch: pytest.MonkeyPatch, action) -> None:
    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(run=lambda args: action()))


def raising(error: BaseException):
    def action() -> None:
        raise error

    return action


def test_errors_become_one_line_and_a_status(capsys, monkeypatch) -> None:
    run_instead(monkeypatch, raising(InputError("expected one\nline, got\n  two")))
    assert fails(capsys, "show", "x") == "dpmodel: error: expected one line, got two"
    run_instead(monkeypatch, raising(FileNotFoundError(2, "No such file or directory", "a.txt")))
    assert fails(capsys, "show", "x") == "dpmodel: error: a.txt: No such file or directory"
    run_instead(monkeypatch, raising(OSError("the disk is full")))
    assert fails(capsys, "show", "x") == "dpmodel: error: the disk is full"
    run_instead(monkeypatch, raising(KeyboardInterrupt()))
    assert fails(capsys, "show", "x", status=130) == "dpmodel: error: interrupted"

    class OutOfMemoryError(RuntimeError):  # as PyTorch calls its own
        pass

    for error in (
        MemoryError(),
        MemoryError("Unable to allocate 8 TiB"),
        OutOfMemoryError("CUDA"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("RESOURCE_EXHAUSTED: 9 bytes"),
    ):
        run_instead(monkeypatch, raising(error))
        line = fails(capsys, "show", "x")
        assert line.startswith("dpmodel: error: the memory does not suffice")
        assert str(error) in line
    # A fault of the program is not dressed up as one of the user.
    run_instead(monkeypatch, raising(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        main(["show", "x"])


def test_debug_shows_the_traceback(capsys, monkeypatch) -> None:
    run_instead(monkeypatch, raising(InputError("wrong")))
    assert main(["show", "x", "-v", "DEBUG"]) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith("dpmodel: error: wrong\n")


def test_log_and_warnings(capsys, monkeypatch, tmp_path) -> None:
    def action() -> None:
        logging.getLogger("dpmodel.some.module").info("said at %s", "info")
        logging.getLogger("dpmodel").debug("said at debug")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("a warning", UserWarning, stacklevel=1)

    run_instead(monkeypatch, action)
    path = tmp_path / "log.txt"
    assert main(["show", "x", "-l", str(path)]) == 0
    text = capsys.readouterr().err
    assert [line.split("] ", 1)[1] for line in text.splitlines()] == ["INFO    said at info", "WARNING a warning"]
    assert path.read_text() == text
    assert main(["show", "x", "-v", "ERROR"]) == 0
    assert capsys.readouterr().err == ""
    assert not logging.getLogger("dpmodel").handlers
    assert "log.txt" in fails(capsys, "show", "x", "-l", str(tmp_path / "nowhere" / "log.txt"))


# --- commands --------------------------------------------------------------------------------------------


def test_test(systems, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["test", "-m", str(GOLDEN), "-s", "data", "-d", "out", "--json", "out.json", "-b", "pt"]) == 0
    text = capsys.readouterr().out
    content = json.loads(Path("out.json").read_text())
    assert [system["frames"] for system in content["systems"]] == [2, 3]
    for line in ("# number of systems : 2", "# testing system : data/a", "# number of test data : 3"):
        assert line in text.splitlines()
    total = content["total"]
    for row in (
        f"Energy RMSE          : {total['energy']['rmse']:e} eV",
        f"Energy MAE/Natoms    : {total['energy_per_atom']['mae']:e} eV",
        f"Force RMSE           : {total['force']['rmse']:e} eV/Å",
    ):
        assert text.splitlines().count(row) == 1
    assert sorted(path.name for path in tmp_path.glob("out.*.out")) == ["out.e.out", "out.e_peratom.out", "out.f.out"]
    assert len(np.loadtxt("out.f.out")) == 5 * 8


def test_which_systems_are_tested(systems, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("# comment\n\ndata/b\n")
    model = json.loads(json.dumps(read_tree(GOLDEN)["model_def_script"]))
    sections = {"training_data": {"systems": "data/a"}, "validation_data": {"systems": ["data/b"]}}
    training = {"numb_steps": 1, **sections}
    Path("input.json").write_text(
        json.dumps({"model": model, "learning_rate": {"start_lr": 1e-3}, "training": training})
    )

    def frames(*options: str) -> list[int]:
        assert main(["test", "-m", str(GOLDEN), "-b", "numpy", "--json", "out.json", *options]) == 0
        capsys.readouterr()
        return [system["frames"] for system in json.loads(Path("out.json").read_text())["systems"]]

    assert frames() == [2, 3]  # everything below the working directory
    assert frames("-s", "data/b", "data/a", "-n", "1") == [1, 1]
    assert frames("-f", "list.txt") == [3]
    assert frames("--train-data", "input.json") == [2]
    assert frames("--valid-data", "input.json", "--shuffle-test", "-r", "1", "-n", "2") == [2]
    Path("list.txt").write_text("# nothing\n")
    assert "list.txt: expected a text file" in fails(capsys, "test", "-m", str(GOLDEN), "-f", "list.txt")
    assert "nix.txt" in fails(capsys, "test", "-m", str(GOLDEN), "-f", "nix.txt")
    assert "--numb-test" in fails(capsys, "test", "-m", str(GOLDEN), "-n", "-3")
    assert "nix.dp" in fails(capsys, "test", "-m", "nix.dp")
    assert "unknown backend 'foo'" in fails(capsys, "test", "-m", str(GOLDEN), "-b", "foo")
    assert "no heads" in fails(capsys, "test", "-m", str(GOLDEN), "--head", "a")


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return a == b


@pytest.mark.parametrize("command", ["convert", "convert-backend"])
@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json", ".dp"])
def test_convert_there_and_back(tmp_path, capsys, command: str, suffix: str) -> None:
    middle, back = tmp_path / f"middle{suffix}", tmp_path / "back.dp"
    assert main([command, str(GOLDEN), str(middle)]) == 0
    assert main([command, str(middle), str(back)]) == 0
    assert f"{middle} -> {back}" in capsys.readouterr().out
    assert equal(read_tree(back)["model"], read_tree(GOLDEN)["model"])
    assert read_tree(back)["software"] == read_tree(GOLDEN)["software"]


def test_conversions_that_are_not_there(tmp_path, capsys) -> None:
    for suffix, what in (
        (".pth", "TorchScript"),
        (".pt2", "dpmodel freeze"),
        (".pb", "TensorFlow"),
        (".foo", "not known"),
    ):
        text = fails(capsys, "convert", str(GOLDEN), str(tmp_path / f"x{suffix}"))
        assert what in text
        assert "The suffixes here are .dp, .yaml, .yml, .json" in text
        source = fails(capsys, "convert", str(tmp_path / f"x{suffix}"), str(tmp_path / "x.dp"))
        assert suffix == ".foo" or "dp convert-backend" in source
    assert "no such file" in fails(capsys, "convert", str(tmp_path / "nix.dp"), str(tmp_path / "x.dp"))
    (tmp_path / "broken.dp").write_bytes(GOLDEN.read_bytes()[:500])
    assert "broken.dp" in fails(capsys, "convert", str(tmp_path / "broken.dp"), str(tmp_path / "x.yaml"))
    assert not list(tmp_path.glob("x.*"))


def test_show(capsys, tmp_path) -> None:
    assert main(["show", str(GOLDEN)]) == 0
    text = capsys.readouterr().out
    for part in (
        "energy, forces, virials",
        "6 Å, at most 20 24 neighbours per type",
        "3,258",
        "float64",
        "deepmd-kit 3.2.0",
    ):
        assert part in text
    names = [
        "type-map",
        "descriptor",
        "fitting-net",
        "size",
        "observed-type",
        "provenance",
        "serialization-tree",
        "model-branch",
    ]
    assert main(["show", str(GOLDEN), *names]) == 0
    text = capsys.readouterr().out
    assert "The type_map is ['O', 'H']\n" in text
    assert '"rcut": 6.0' in text
    assert '"neuron": [10, 10, 10]' in text
    assert "├─ descriptor: Descriptor se_e2_a, version 2\n" in text
    assert "observed types are not stored" in text
    tree = read_tree(GOLDEN)
    tree["model_def_script"]["info"] = {"observed_type": ["H"]}
    write_tree(tmp_path / "seen.dp", tree)
    assert main(["show", str(tmp_path / "seen.dp"), "observed_type"]) == 0
    assert capsys.readouterr().out == "The observed types are 1 of 2: ['H']\n"
    assert "expected attributes out of type-map" in fails(capsys, "show", str(GOLDEN), "foo")


def test_show_of_a_message_passing_model(capsys, tmp_path) -> None:
    golden = GOLDEN.with_name("dpa3_official.dp")
    assert main(["show", str(golden)]) == 0
    text = capsys.readouterr().out
    for part in (
        "6 Å, at most 40 neighbours",
        "4 Å, at most 20 neighbours",
        "dpa3, 3 layers, widths 12 of atoms, 8 of edges, 6 of angles, precision float64",
    ):
        assert part in text
    flow = {"e_rcut": 3, "e_rcut_smth": 1, "e_sel": 8, "a_rcut": 2, "a_rcut_smth": 1, "a_sel": 4, "update_angle": False}
    options = {"repflow": {**flow, "nlayers": 1}, "add_chg_spin_ebd": True, "default_chg_spin": [-1, 2]}
    model = build_model(
        ModelConfig.from_dict({"type_map": ["O"], "descriptor": {"type": "dpa3", **options}, "fitting_net": {}})
    )
    write_model(tmp_path / "m.dp", ModelFile(model=model))
    assert main(["show", str(tmp_path / "m.dp")]) == 0
    text = capsys.readouterr().out
    assert "1 layer, widths 128 of atoms, 64 of edges, precision" in text
    assert "charge, spin    per frame (default -1 2)\n" in text
    assert "angles" not in text


def test_neighbor_stat(systems, capsys, tmp_path) -> None:
    assert main(["neighbor-stat", "-s", str(systems), "-r", "4"]) == 0
    typed = capsys.readouterr().out
    assert "2 systems, 5 frames, cutoff 4 Å" in typed
    assert main(["neighbor-stat", "-s", str(systems / "a"), str(systems / "b"), "-r", "4", "-t", "H", "O"]) == 0
    swapped = capsys.readouterr().out
    counts = [json.loads(text.split("max_nbor_size: ")[1].split(" (")[0]) for text in (typed, swapped)]
    assert counts[0] == counts[1][::-1]
    assert main(["neighbor-stat", "-s", str(systems), "-r", "4", "--mixed-type"]) == 0
    assert "(any)" in capsys.readouterr().out
    (systems / "a" / "type_map.raw").unlink()
    assert "--type-map" in fails(capsys, "neighbor-stat", "-s", str(systems), "-r", "4")
    assert main(["neighbor-stat", "-s", str(systems / "a"), "-r", "4"]) == 0
    assert "(0, 1)" in capsys.readouterr().out
    assert "rcut" in fails(capsys, "neighbor-stat", "-s", str(systems), "-t", "O", "H", "-r", "-4")
    assert "no such folder" in fails(capsys, "neighbor-stat", "-s", str(tmp_path / "nix"), "-r", "4")


def test_doc(capsys) -> None:
    assert main(["doc-train-input", "--out-type", "json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["doc", "model.descriptor[se_e2_a]", "--out-type", "md"]) == 0
    assert "rcut_smth" in capsys.readouterr().out
    assert "out_type" in fails(capsys, "doc", "--out-type", "pdf")


def test_train_gets_its_arguments(capsys, monkeypatch) -> None:
    from dpmodel.cli import train

    given = []
    monkeypatch.setattr(
        train, "train", lambda path, **options: given.append((path, options)) or Path("model.ckpt-7.dp")
    )
    assert (
        main(["train", "in.json", "-r", "c.dp", "--stop-at", "7", "-o", "o.json", "--skip-neighbor-stat", "--numpy"])
        == 0
    )
    assert capsys.readouterr().out == "model.ckpt-7.dp\n"
    path, options = given[0]
    assert path == "in.json"
    assert options == {
        "restart": "c.dp", "init_model": None, "stop_at": 7, "output": "o.json", "backend": "numpy", "device": None,
        "skip_neighbor_stat": True, "all_ranks_log": False, "finetune": None, "model_branch": None,
        "use_pretrain_script": False, "force_load": False,
    }  # fmt: skip


def test_from_data_to_a_tested_model(systems, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    descriptor = {
        "type": "se_e2_a",
        "sel": "auto",
        "rcut": 4.0,
        "rcut_smth": 1.0,
        "neuron": [4, 8],
        "axis_neuron": 2,
        "seed": 1,
    }
    content = {
        "model": {"type_map": ["O", "H"], "descriptor": descriptor, "fitting_net": {"neuron": [6, 6], "seed": 1}},
        "learning_rate": {"start_lr": 1e-3, "stop_lr": 1e-4, "decay_steps": 2},
        "loss": {"start_pref_e": 1, "limit_pref_e": 1, "start_pref_f": 1, "limit_pref_f": 1},
        "training": {
            "training_data": {"systems": "data", "batch_size": 1}, "validation_data": {"systems": ["data/a"], "batch_size": 1},
            "numb_steps": 6, "disp_freq": 2, "save_freq": 3, "seed": 1,
        },
    }  # fmt: skip
    Path("input.json").write_text(json.dumps(content))
    assert main(["train", "input.json", "-b", "pt", "--stop-at", "3"]) == 0
    assert main(["train", "input.json", "-b", "pt", "--restart", "model.ckpt.dp"]) == 0
    assert capsys.readouterr().out.splitlines() == ["model.ckpt-3.dp", "model.ckpt-6.dp"]
    assert json.loads(Path("out.json").read_text())["model"]["descriptor"]["sel"] != "auto"
    assert main(["test", "-m", "model.ckpt.dp", "-s", "data", "-b", "pt"]) == 0
    assert "Force RMSE" in capsys.readouterr().out
    assert main(["show", "model.ckpt.dp"]) == 0
    assert "in the training data" in capsys.readouterr().out
    # Bad input leaves nothing behind and says what is wrong in one line.
    content["training"]["numb_stepz"] = 6
    Path("bad.json").write_text(json.dumps(content))
    assert "training.numb_stepz: unknown key" in fails(capsys, "train", "bad.json", "-b", "pt", "-o", "bad.out.json")
    assert not Path("bad.out.json").exists()
    assert "nix.json" in fails(capsys, "train", "nix.json", "-b", "pt")


def test_the_demo_makes_a_valid_input(water_data) -> None:
    pytest.importorskip("ase")
    spec = importlib.util.spec_from_file_location("demo", water_data.parent / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    for template, steps in (("input.json", 1), ("input.json", 1000), ("input_dpa3.json", 40)):
        made = load_input(demo.make_input(template, "name", steps))
        assert made.training.numb_steps == steps
        assert all(Path(path).is_dir() for path in made.training.training_data.systems)
    atoms = demo.read_frame(demo.MD_FRAME)
    demo.set_velocities(atoms)
    assert atoms.get_temperature() == pytest.approx(demo.TEMPERATURE)
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-10


def test_an_ascii_terminal_is_no_reason_to_fail() -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONIOENCODING": "ascii",
    }
    command = [sys.executable, "-m", "dpmodel", "show", str(GOLDEN)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, "6 ?, at most" in done.stdout) == (0, True), done.stderr


def test_logs_of_several_processes(monkeypatch) -> None:
    from types import SimpleNamespace

    from dpmodel.cli import _own_log

    found = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        for mode in ("master", "collect", "workers"):
            found[rank, mode] = _own_log(SimpleNamespace(log_path="run.log", mpi_log=mode))
    assert [found["0", mode] for mode in ("master", "collect", "workers")] == ["run.log"] * 3
    assert [found["1", mode] for mode in ("master", "collect", "workers")] == [None, "run.log", "run.log.1"]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert _own_log(SimpleNamespace(log_path="run.log", mpi_log="workers")) == "run.log"
