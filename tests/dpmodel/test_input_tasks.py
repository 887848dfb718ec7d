"""Inputs of several tasks, and the rules across sections of section 1.9 of the specification (each test is named after one)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from dpmodel.errors import InputError
from dpmodel.input import Input, load_input
from dpmodel.models.multi_task import Link

from .several import DESCRIPTORS, edited, several

SEA: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "input" / "sea.json").read_text())
SPIN = {"use_spin": ["O"], "virtual_scale": 0.3}


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        load_input(data)
    return str(caught.value)


def changed(changes: dict[str, Any], data: dict[str, Any] = SEA) -> dict[str, Any]:
    for path, value in changes.items():
        data = edited(data, path, value)
    return data


# --- reading ----------------------------------------------------------------------------------------------


def test_tasks_are_those_of_model_dict() -> None:
    inp = load_input(several("dpa1", levels=(0, 1), share_fitting=True))
    assert inp.multi
    assert list(inp.tasks) == ["water", "ice"]
    assert inp.models["ice"].type_map == ("O", "H")
    assert inp.tasks["water"].loss.start_pref_e == 1  # type: ignore[attr-defined]
    assert inp.tasks["ice"].loss.start_pref_e == 0.02  # type: ignore[attr-defined]
    assert inp.tasks["ice"].data.training_data.systems == "nowhere"
    assert inp.tasks["ice"].finetune_head is None
    own, net = inp.shared
    assert (own.name, own.kind, net.name, net.kind) == ("own", "descriptor", "net", "fitting_net")
    assert own.links == (
        Link(task="water", place=("descriptor",), level=0),
        Link(task="ice", place=("descriptor",), level=1),
    )
    for name in ("model", "loss"):
        with pytest.raises(InputError, match=r"expected an input of one task, got one of several \(water, ice\)"):
            getattr(inp, name)


def test_the_base_has_the_lowest_level() -> None:
    own, *_ = load_input(several("dpa1", levels=(1, 0))).shared
    assert [link.task for link in own.links] == ["ice", "water"]


def test_an_input_of_one_task_is_that_of_the_task_without_a_name() -> None:
    inp = load_input(SEA)
    assert not inp.multi
    assert list(inp.tasks) == [""]
    assert inp.model is inp.tasks[""].model
    assert inp.tasks[""].data.training_data == inp.training.training_data  # type: ignore[union-attr]
    assert inp.shared == ()
    assert inp.model_section(inp.models) == inp.normalised["model"]


def test_normalising_again_changes_nothing() -> None:
    for data in (several(), several("dpa2", levels=(0, 1), share_fitting=True)):
        first = load_input(data)
        text = json.dumps(first.normalised)
        again = load_input(json.loads(text))
        assert again == first
        assert json.dumps(again.normalised) == text
        assert first.normalised["model"]["model_dict"]["water"]["descriptor"] == "own"
        assert first.normalised["model"]["shared_dict"]["types"] == ["O", "H"]
        assert first.model_section(first.models) == first.normalised["model"]
        hash(first.models["water"])


def test_r_m_14_keys_of_the_model_are_those_of_every_task() -> None:
    data = changed({"model.data_stat_nbatch": 7, "model.type_map": ["O", "H"]}, several())
    data["model"]["model_dict"]["ice"]["data_stat_nbatch"] = 5
    for name in ("water", "ice"):
        del data["model"]["model_dict"][name]["type_map"]
    del data["model"]["shared_dict"]["types"]
    models = load_input(data).models
    assert (models["water"].data_stat_nbatch, models["ice"].data_stat_nbatch) == (7, 5)
    assert models["ice"].type_map == ("O", "H")
    whole = changed({"model.fitting_net": {"neuron": [3]}}, several())
    for name in ("water", "ice"):
        del whole["model"]["model_dict"][name]["fitting_net"]
    assert {model.fitting_net.neuron for model in load_input(whole).models.values()} == {(3,)}  # type: ignore[attr-defined]


def test_names_of_tasks_may_have_dots() -> None:
    data = json.loads(json.dumps(several()).replace('"ice"', '"ice.v1,5"'))
    inp = load_input(data)
    assert list(inp.tasks) == ["water", "ice.v1,5"]
    assert load_input(inp.normalised) == inp
    data["model"]["model_dict"]["ice.v1,5"]["fitting_net"]["type"] = "population"
    assert refused(data).startswith(
        'model.model_dict.ice.v1,5.fitting_net.type: "population" is not available in this '
    )
    assert "charge populations" in refused(data)


def test_losses_are_ener_unless_said() -> None:
    data = several()
    del data["loss_dict"]
    assert {task.loss.key for task in load_input(data).tasks.values()} == {"ener"}


def test_comments_and_old_places_of_options() -> None:
    data = changed(
        {"model._note": 1, "model.model_dict._note": "x", "model.shared_dict._x": 1, "loss_dict._x": 3,
         "training.data_dict._x": 1, "training.opt_type": "AdamW", "training.weight_decay": 0.1}, several(),
    )  # fmt: skip
    inp = load_input(data)
    assert inp.tasks == load_input(several()).tasks
    assert inp.optimizer.key == "AdamW"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("model.model_dict.ice.descriptor", "owm", 'model.model_dict.ice.descriptor: "owm" is no name of model.shared_dict; did you mean "own"?'),
        ("model.model_dict.ice.fitting_net", "", 'model.model_dict.ice.fitting_net: "" is no name of model.shared_dict (types, own)'),
        ("model.model_dict.ice.fitting_net.neurons", [3], 'model.model_dict.ice.fitting_net.neurons: unknown key; did you mean "neuron"?'),
        ("model.shared_dict.own.rcutt", 3, 'model.shared_dict.own.rcutt: unknown key; did you mean "rcut"?'),
        ("model.shared_dict.own.rcut", "far", 'model.shared_dict.own.rcut: expected a number, got "far"'),
        ("model.shared_dict.own.type", "dpa4", 'model.shared_dict.own.type: "dpa4" is not available in this version'),
        ("model.shared_dict.other", {}, "model.shared_dict.other: no task uses it"),
        ("model.shared_dict", 3, "model.shared_dict: expected a section {...}, got int"),
        ("model.shared_dct", {}, 'model.shared_dct: unknown key; did you mean "shared_dict"?'),
        ("model.data_stat_nbatch", 0, "model.data_stat_nbatch: expected a number above 0, got 0"),
        ("model.model_dict", {}, "model.model_dict: expected at least one task, got none"),
        ("model.model_dict", [], "model.model_dict: expected a section {...}, got list"),
        ("model.model_dict.ice", 3, "model.model_dict.ice: expected a section {...}, got int"),
        ("model.model_dict.a b", {}, "model.model_dict: expected names of tasks without spaces and slashes, got 'a b'"),
        ("model.model_dict.ice.type", "frozen", 'model.model_dict.ice.type: "frozen" is not available in this version: a frozen model cannot'),
        ("model.model_dict.ice.fitting_net.type", "enr", 'model.model_dict.ice.fitting_net.type: expected one of "ener"'),
        ("loss_dict.ice.type", "dens", 'loss_dict.ice.type: "dens" is not available in this version: denoising is out of scope'),
        ("loss_dict.ice.type", "dos", 'loss_dict.ice.type: expected "ener", which goes with models that predict'),
        ("loss_dict.ice.start_pref_e", "x", 'loss_dict.ice.start_pref_e: expected a number, got "x"'),
        ("loss_dict.ice", 3, "loss_dict.ice: expected a section {...}, got 3"),
        ("loss_dict.steam", {}, "loss_dict: expected the tasks of model.model_dict (water, ice); missing none, unknown steam"),
        ("loss", {}, "loss: an input of several tasks has loss_dict"),
        ("training.data_dict.water", "absent", "training.data_dict: expected the tasks of model.model_dict (water, ice); missing water, unknown none"),
        ("training.data_dict.ice.training_data", "absent", "training.data_dict.ice.training_data: missing; expected a section {...}"),
        ("training.data_dict.ice.training_data.batchsize", 1, 'training.data_dict.ice.training_data.batchsize: unknown key; did you mean "batch_size"?'),
        ("training.data_dict.ice.numb_steps", 1, "training.data_dict.ice.numb_steps: unknown key; "),
        ("training.data_dict", "absent", "training.data_dict: missing; expected a section {...} (By task, its data)"),
        ("training.training_data", {}, "training.training_data: an input of several tasks has training.data_dict.<task>.training_data"),
        ("training.stat_file", "x", "training.stat_file: an input of several tasks has training.data_dict.<task>.stat_file"),
        ("training.model_prob", {"water": -1, "ice": 1}, 'training.model_prob: expected a number of at least 0 for every task, got {"water": -1'),
        ("training.model_prob", 3, "training.model_prob: expected a section {...}, got 3"),
    ],
)  # fmt: skip
def test_messages(path: str, value: Any, says: str) -> None:
    assert refused(edited(several(), path, value)).startswith(says)


# --- rules across sections --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [4, -1, 1.5, True, "2"])
def test_c1_r_s3_01_zero_stage(value: Any) -> None:
    said = refused(changed({"training.zero_stage": value}))
    assert said.startswith("training.zero_stage: expected ")
    assert said.endswith(f"got {json.dumps(value)}")
    assert [load_input(changed({"training.zero_stage": stage})).training.zero_stage for stage in range(4)] == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("value", [1, 1.0, -0.1, 2])
def test_c3_r_s2_01_decay_of_averages(value: float) -> None:
    assert refused(changed({"training.ema_decay": value})).startswith(
        "training.ema_decay: expected a number of at least 0 and below 1, got"
    )
    assert load_input(changed({"training.ema_decay": 0, "training.enable_ema": True})).training.ema_decay == 0.0


def test_c4_numbers_of_checkpoints() -> None:
    for value in (0, -1):
        assert refused(changed({"training.ema_ckpt_keep": value})) == (
            f"training.ema_ckpt_keep: expected a number above 0, got {value}"
        )
    for value in (0, 1, 1.5):
        assert "training.ckpt_keep_ratio: expected a number above 0 and below 1" in refused(
            changed({"training.ckpt_keep_ratio": value})
        )
    both = {"training.ckpt_keep_ratio": 0.5, "training.ema_ckpt_keep": 3, "training.enable_ema": True}
    assert load_input(changed(both)).notes == ("training.ckpt_keep_ratio: overrides training.ema_ckpt_keep",)


@pytest.mark.parametrize(
    "more",
    [{}, {"validating.full_val_start": 1}, {"validating.full_validation": True}, {"validating.full_val_start": 1.0}],
)
def test_c6_r_s2_03_r_m_24_average_validation_without_average(more: dict[str, Any]) -> None:
    """Before anything that says that no validation takes place."""
    said = refused(changed({"validating.ema_full_validation": True, **more}))
    assert said.startswith("validating.ema_full_validation: needs training.enable_ema: true")


FULL = {"validating.full_validation": True, "loss.start_pref_e": 1.0, "loss.limit_pref_e": 1.0}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"validating.validation_metric": "FR:MAE"}, "validating.validation_metric: expected one of E, F, V with loss.type ener"),
        ({"training.validation_data": None}, "validating.full_validation: needs training.validation_data"),
        ({"loss.limit_pref_e": 0}, 'validating.validation_metric: "E:MAE" is not trained from start to end, as loss.limit_pref_e is 0'),
        ({"loss.start_pref_v": 0, "validating.validation_metric": "V:RMSE"}, 'validating.validation_metric: "V:RMSE" is not trained'),
        ({"model.fitting_net": {"type": "property", "property_name": "gap"}, "loss": {"type": "property"}},
         "validating.validation_metric: expected one of G with loss.type property, got"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("average", [False, True])
def test_c7_full_validation(more: dict[str, Any], says: str, average: bool) -> None:
    start = {"validating.ema_full_validation": True, "training.enable_ema": True} if average else {}
    full = {**FULL, **start, "validating.full_validation": not average}
    assert load_input(changed(full)).validated_tasks() == ("",)
    assert refused(changed({**full, **more})).startswith(says)
    never = {**full, **more, "validating.full_val_start": 1}
    assert isinstance(load_input(changed(never)), Input)


def test_c7_of_spin_models() -> None:
    spin = {"model.spin": SPIN, "loss": {"type": "ener_spin"}, "validating.full_validation": True}
    assert load_input(changed({**spin, "validating.validation_metric": "fm:mae"})).validated_tasks() == ("",)
    assert refused(changed({**spin, "validating.validation_metric": "F:MAE"})).startswith(
        "validating.validation_metric: expected one of E, FR, FM with loss.type ener_spin"
    )


def test_c7_of_several_tasks() -> None:
    """Tasks without validation data, or without the quantity, are left out; one has to remain."""
    full = changed({"validating.full_validation": True}, several())
    assert refused(full).startswith("validating.full_validation: no task has both validation_data and a loss with E")
    one = changed({"training.data_dict.ice.validation_data": {"systems": "there"}}, full)
    assert load_input(one).validated_tasks() == ("ice",)
    assert refused(changed({"loss_dict.ice.limit_pref_e": 0}, one)).endswith(
        "loss_dict.ice.limit_pref_e is 0; choose another metric, or another prefactor"
    )


def test_c7_early_stopping_counts_validations() -> None:
    patience = {"validating.early_stop_patience": 2}
    assert refused(changed(patience)).startswith(
        "validating.early_stop_patience: needs validating.full_validation: true"
    )
    assert load_input(changed({**FULL, **patience})).validating.early_stop_patience == 2
    assert refused(changed({**FULL, **patience, "validating.full_val_start": 1})).startswith(
        "validating.early_stop_patience: full_val_start is 1"
    )
    assert "expected a number above 0" in refused(changed({**FULL, "validating.early_stop_patience": 0}))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_c9_lkf_with_a_stage(stage: int) -> None:
    lkf = {"optimizer": {"type": "LKF"}, "training.zero_stage": stage, "training.gradient_max_norm": None}
    assert refused(changed(lkf)).startswith(f"training.zero_stage: expected 0 with the optimizer LKF, got {stage}")
    plain = {**lkf, "training.zero_stage": 0}
    assert load_input(changed(plain)).optimizer.key == "LKF"
    said = refused(changed({**plain, "training.enable_bf16": True}))
    assert said.startswith("training.enable_bf16: expected false with the optimizer LKF")
    assert "expected 0 with the optimizer LKF" in refused(changed(lkf, several()))


@pytest.mark.parametrize("key", ["numb_steps", "numb_epoch"])
def test_c11_one_length(key: str) -> None:
    without = changed({"training.numb_steps": "absent"})
    assert refused(without) == "training: expected numb_steps or numb_epoch, got neither; say how long to train"
    assert isinstance(load_input(changed({f"training.{key}": 3}, without)), Input)
    both = changed({"training.numb_steps": 3, "training.numb_epoch": 3})
    assert refused(both) == "training: expected numb_steps or numb_epoch, got both; keep one"
    assert "training.numb_epoch: expected a number above 0, got 0" in refused(
        changed({"training.numb_epoch": 0}, without)
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training.numb_epoch": 3}, "training.numb_epoch: it is of one task"),
        ({"training.num_epochs": 3}, "training.num_epochs: it is of one task"),
        ({"training.num_epoch_dict": {"water": 1, "ice": 1}}, "training.numb_steps: num_epoch_dict says it already"),
        ({"training.num_epoch_dict": {"water": 1, "ice": 1}, "training.numb_steps": 0}, "training.numb_steps: num_epoch_dict says"),
        ({"training.num_epoch_dict": {"water": 1, "ice": 1}, "training.model_prob": {"water": 1, "ice": 1},
          "training.numb_steps": "absent"}, "training.model_prob: num_epoch_dict says it already"),
        ({"training.numb_steps": "absent"}, "training: expected numb_steps or num_epoch_dict, got neither"),
        ({"training.num_epoch_dict": {"water": 1}, "training.numb_steps": "absent"},
         "training.num_epoch_dict: expected the tasks of model.model_dict (water, ice); missing ice"),
        ({"training.num_epoch_dict": {"water": 1, "ice": 0}, "training.numb_steps": "absent"},
         "training.num_epoch_dict.ice: expected a finite number above 0, got 0"),
        ({"training.num_epoch_dict": {"water": 1, "ice": 1e999}}, "training.num_epoch_dict.ice: expected a finite number"),
        ({"training.model_prob": {"ice": 1}}, "training.model_prob: expected the tasks of model.model_dict (water, ice); missing water"),
        ({"training.model_prob": {"ice": 0, "water": 0}}, "training.model_prob: expected at least one number above 0"),
    ],
)  # fmt: skip
def test_c12_length_and_probabilities_of_several_tasks(changes: dict[str, Any], says: str) -> None:
    assert refused(changed(changes, several())).startswith(says)


def test_c12_good_ones() -> None:
    inp = load_input(several(model_prob={"water": 0, "ice": 2}))
    assert inp.training.model_prob == {"water": 0, "ice": 2}
    by_epoch = several(num_epoch_dict={"water": 0.5, "ice": 2})
    del by_epoch["training"]["numb_steps"]
    assert load_input(by_epoch).training.num_epoch_dict == {"water": 0.5, "ice": 2}
    for key in ("data_dict", "model_prob", "num_epoch_dict"):
        assert "it belongs to inputs of several tasks" in refused(changed({f"training.{key}": {"a": 1}}))
    assert "it belongs to inputs of several tasks" in refused(changed({"loss_dict": {"a": {}}}))
    assert "it belongs to inputs of several tasks" in refused(changed({"model.shared_dict": {"a": {}}}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learning_rate.stop_lr": 1e-8, "learning_rate.stop_lr_ratio": 0.1}, "stop_lr"),
        ({"learning_rate.warmup_steps": 1, "learning_rate.warmup_ratio": 0.1}, "warmup"),
        ({"learning_rate.warmup_steps": 100}, "a warm-up of 100 steps must be shorter than the run of 100"),
        ({"learning_rate.warmup_steps": 1, "training.numb_steps": 0}, "a warm-up of 1 steps must be shorter"),
    ],
)
def test_c13_warm_up_and_last_rate(changes: dict[str, Any], says: str) -> None:
    said = refused(changed(changes))
    assert said.startswith("learning_rate")
    assert says in said


def test_c14_caches_of_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(changed({"training.stat_file_mode": "read"})).startswith('training.stat_file_mode: "read" needs')
    assert refused(changed({"training.data_dict.ice.stat_file_mode": "read"}, several())).startswith(
        'training.data_dict.ice.stat_file_mode: "read" needs training.data_dict.ice.stat_file'
    )
    monkeypatch.chdir(tmp_path)
    for one, other in (("stat", "stat"), ("stat", "./x/../stat"), ("stat.h5", str(tmp_path / "stat.h5"))):
        paths = {"training.data_dict.water.stat_file": one, "training.data_dict.ice.stat_file": other}
        assert refused(changed(paths, several())).startswith(
            f"training.data_dict.ice.stat_file: {other} is that of water as well"
        )
    apart = {"training.data_dict.water.stat_file": "stat/w", "training.data_dict.ice.stat_file": "stat/i"}
    assert load_input(changed(apart, several())).tasks["ice"].data.stat_file == "stat/i"


@pytest.mark.parametrize(
    "changes",
    [
        {"loss.use_huber": True, "loss.start_pref_pf": 1.0, "loss.limit_pref_pf": 1.0},
        {
            "loss.use_huber": True,
            "loss.start_pref_gf": 1.0,
            "loss.limit_pref_gf": 1.0,
            "loss.numb_generalized_coord": 2,
        },
        {"loss.use_huber": True, "loss.relative_f": 1.0},
        {"loss.use_huber": True, "loss.start_pref_h": 1.0, "loss.limit_pref_h": 1.0},
        {"loss.f_use_norm": True},
        {"loss.start_pref_gf": 1.0, "loss.limit_pref_gf": 1.0},
        {"loss.use_huber": True, "loss.huber_delta": [0.1, 0.1]},
    ],
)
def test_c15_options_of_losses(changes: dict[str, Any]) -> None:
    assert refused(changed(changes)).startswith("loss")
    by_task = {path.replace("loss.", "loss_dict.ice."): value for path, value in changes.items()}
    assert refused(changed(by_task, several())).startswith("loss_dict.ice")


def test_c17_types_protection_and_cases_of_tasks() -> None:
    assert refused(changed({"model.model_dict.ice.type_map": ["H", "O"]}, several())) == (
        'model.model_dict.ice.type_map: expected ["O", "H"], as water has it, got ["H", "O"]; all tasks have the same types, '
        "as by a name of model.shared_dict"
    )
    assert refused(changed({"model.model_dict.ice.data_stat_protect": 0.1}, several())).startswith(
        "model.model_dict.ice.data_stat_protect: expected 0.01, as water has it, got 0.1"
    )
    for widths in ((2, 0), (0, 2), (1, 1), (3, 3)):
        data = several()
        for name, width in zip(("water", "ice"), widths, strict=True):
            data["model"]["model_dict"][name]["fitting_net"]["dim_case_embd"] = width
        said = refused(data)
        assert "fitting_net.dim_case_embd: expected 0 in all tasks, or 2 (the number of tasks) in all, got" in said
    assert load_input(several(share_fitting=True)).multi
    # A head of several tasks that is tuned to one keeps its width.
    notes = load_input(changed({"model.fitting_net.dim_case_embd": 2})).notes
    assert any(
        note.startswith("model.fitting_net.dim_case_embd: tells tasks apart, and this input has one") for note in notes
    )


def test_c17_tasks_that_share_have_the_same_spins() -> None:
    data = several("dpa1")
    data["loss_dict"]["water"] = {"type": "ener_spin"}
    data["model"]["model_dict"]["water"]["spin"] = SPIN
    says = "model.model_dict.ice.descriptor: ice and water share 'own', but have other spins"
    assert refused(data).startswith(says)
    assert refused(edited(data, "model.model_dict.ice.descriptor", "own:1")).startswith(says)
    both = edited(
        edited(data, "model.model_dict.ice.spin", {**SPIN, "use_spin": ["H"]}), "loss_dict.ice.type", "ener_spin"
    )
    assert refused(both).startswith(says)
    assert load_input(edited(both, "model.model_dict.ice.descriptor", "own:1")).multi
    data["model"]["model_dict"]["ice"]["spin"] = {**SPIN, "virtual_scale": 0.5}
    data["loss_dict"]["ice"] = {"type": "ener_spin"}
    assert load_input(data).shared[0].links[1].task == "ice"


def test_c18_random_is_no_task() -> None:
    data = several()
    data["model"]["model_dict"]["RANDOM"] = copy.deepcopy(data["model"]["model_dict"]["ice"])
    assert refused(data).startswith('model.model_dict.RANDOM: "RANDOM" is what finetune_head calls a fresh fitting net')
    with_head = changed({"model.model_dict.ice.finetune_head": "RANDOM"}, several())
    assert load_input(with_head).tasks["ice"].finetune_head == "RANDOM"
    assert load_input(changed({"model.finetune_head": "old"})).tasks[""].finetune_head == "old"


def test_c20_charge_and_spin_that_look_like_frame_parameters() -> None:
    dpa3 = {**DESCRIPTORS["dpa3"], "add_chg_spin_ebd": True}
    inp = load_input(changed({"model.model_dict.ice.fitting_net.numb_fparam": 2}, several(dpa3)))
    (note,) = (note for note in inp.notes if "charge_spin" in note)
    assert note.startswith("model.model_dict.ice.fitting_net.numb_fparam: 2 looks like charge and spin in fparam")


def test_r_m_07_weight_decay_of_adamw() -> None:
    inp = load_input(changed({"optimizer": {"type": "AdamW"}}, several()))
    assert inp.optimizer.weight_decay == 0.001  # type: ignore[attr-defined]
    assert inp.notes == ("optimizer.weight_decay: not given; AdamW's default 0.001 is used",)


def test_notes_have_the_paths_of_their_tasks() -> None:
    inp = load_input(
        changed(
            {"loss_dict.ice.use_default_pf": True, "training.data_dict.ice.training_data.sys_probs": [1],
             "training.data_dict.ice.training_data.auto_prob": "prob_uniform",
             "model.model_dict.ice.fitting_net.rcond": 1e-3}, several(),
        )
    )  # fmt: skip
    assert [note.partition(":")[0] for note in inp.notes] == [
        "model.model_dict.ice.fitting_net.rcond",
        "training.data_dict.ice.training_data.sys_probs",
        "loss_dict.ice.use_default_pf",
    ]
