"""Learning rates against the formulas of the documentation, written out a second time."""

from __future__ import annotations

import math
import pickle

import pytest

from dpmodel.errors import InputError
from dpmodel.training.schedules import CONFIGS, CosineConfig, ExpConfig, WsdConfig, build_schedule


def close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-14)


def test_exp_stepped() -> None:
    s = build_schedule(ExpConfig(start_lr=1e-3, stop_lr=1e-8, decay_steps=1000), 10_000)
    rate = (1e-8 / 1e-3) ** (1000 / 10_000)
    assert s.start_lr == s.lr(0) == s.lr(999) == 1e-3
    assert close(s.lr(1000), 1e-3 * rate)
    assert close(s.lr(4999), 1e-3 * rate**4)
    assert close(s.lr(9999), 1e-3 * rate**9)
    assert close(s.lr(10_000), 1e-8)
    assert s.lr(50_000) == 1e-8


def test_exp_smooth() -> None:
    s = build_schedule(ExpConfig(start_lr=1e-3, stop_lr=1e-8, decay_steps=1000, smooth=True), 10_000)
    assert close(s.lr(500), 1e-3 * (1e-5) ** 0.05)
    assert close(s.lr(5000), 1e-3 * 1e-5**0.5)


@pytest.mark.parametrize(
    ("num_steps", "decay_steps", "every"),
    [
        (5000, 5000, 100),
        (5001, 5000, 5000),
        (1009, 5000, 11),
        (1010, 5000, 100),
        (99, 99, 1),
        (100, 100, 2),
        (1, 5000, 1),
    ],
)
def test_exp_adjusts_decay_steps(num_steps: int, decay_steps: int, every: int) -> None:
    """100, or T // 100 + 1 where T // 10 <= 100; equality adjusts too."""
    s = build_schedule(ExpConfig(start_lr=1.0, stop_lr=1e-4, decay_steps=decay_steps), num_steps)
    rate = 1e-4 ** (every / num_steps)
    for t in {0, every - 1, every, num_steps - 1, num_steps}:
        assert close(s.lr(t), max(rate ** (t // every), 1e-4))


def test_exp_adjusts_by_the_steps_after_warmup() -> None:
    s = build_schedule(ExpConfig(start_lr=1.0, stop_lr=1e-4, decay_steps=5000, warmup_steps=1000), 6000)
    assert close(s.lr(1100), 1e-4 ** (100 / 5000))
    assert s.lr(1099) == 1.0


def test_exp_with_a_rate() -> None:
    """No adjustment, and stop_lr is only the floor."""
    s = build_schedule(ExpConfig(start_lr=1e-3, decay_rate=0.5, decay_steps=5000), 100)
    assert s.lr(99) == 1e-3
    assert s.lr(5000) == 5e-4
    assert s.lr(10**6) == 5e-8


def test_exp_with_stop_zero_uses_a_floor_for_the_rate() -> None:
    s = build_schedule(ExpConfig(start_lr=1.0, stop_lr=0.0, decay_steps=10), 100)
    assert close(s.lr(100), 1e-10)


def test_default_stop_lr() -> None:
    for kind in CONFIGS:
        assert build_schedule(kind(start_lr=1e-3), 100).stop_lr == 5e-8
    assert build_schedule(ExpConfig(start_lr=1e-3, stop_lr_ratio=1e-2), 100).stop_lr == 1e-5


def test_cosine() -> None:
    s = build_schedule(CosineConfig(start_lr=1e-3, stop_lr=1e-5, warmup_steps=20), 120)
    assert s.lr(20) == 1e-3
    assert close(s.lr(70), (1e-3 + 1e-5) / 2)
    assert close(s.lr(45), 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi / 4)) / 2)
    assert s.lr(120) == s.lr(999) == 1e-5


@pytest.mark.parametrize("form", ["inverse_linear", "cosine", "linear"])
def test_wsd(form: str) -> None:
    """The decay is a share of the whole run, warm-up included."""
    s = build_schedule(
        WsdConfig(start_lr=1e-3, stop_lr=1e-5, decay_phase_ratio=0.2, decay_type=form, warmup_ratio=0.1), 1000
    )
    assert s.warmup_steps == 100
    assert s.lr(100) == s.lr(800) == pytest.approx(1e-3, rel=1e-14)
    assert s.lr(801) < 1e-3
    tau = 0.25
    expected = {
        "inverse_linear": 1 / (tau / 1e-5 + (1 - tau) / 1e-3),
        "cosine": 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * tau)) / 2,
        "linear": 1e-3 + (1e-5 - 1e-3) * tau,
    }
    assert close(s.lr(850), expected[form])
    assert s.lr(1000) == s.lr(5000) == pytest.approx(1e-5, rel=1e-14)


def test_wsd_decay_is_clipped() -> None:
    s = build_schedule(
        WsdConfig(start_lr=1.0, stop_lr=0.5, decay_type="linear", decay_phase_ratio=1.0, warmup_steps=50), 100
    )
    assert s.lr(50) == 1.0
    assert close(s.lr(75), 0.75)
    s = build_schedule(WsdConfig(start_lr=1.0, stop_lr=0.5, decay_type="linear", decay_phase_ratio=0.01), 10)
    assert s.lr(9) == 1.0
    assert s.lr(10) == 0.5


@pytest.mark.parametrize("kind", CONFIGS)
def test_warmup(kind: type) -> None:
    s = build_schedule(kind(start_lr=1e-3, warmup_steps=10, warmup_start_factor=0.1), 100)
    assert close(s.lr(0), 1e-4)
    assert close(s.lr(5), 5.5e-4)
    assert close(s.lr(10), 1e-3)
    assert build_schedule(kind(start_lr=1e-3, warmup_steps=10), 100).lr(0) == 0.0
    assert build_schedule(kind(start_lr=1e-3, warmup_ratio=0.999), 10).warmup_steps == 9


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_steps(kind: type) -> None:
    assert build_schedule(kind(start_lr=1e-3), 0).lr(0) == 1e-3
    with pytest.raises(InputError, match="shorter than the run"):
        build_schedule(kind(start_lr=1e-3, warmup_steps=1), 0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_scale_by_worker(kind: type) -> None:
    """Only where it is given; the ratio lr / start_lr that prefactors use does not change."""
    plain = build_schedule(kind(start_lr=1e-3), 100)
    assert build_schedule(kind(start_lr=1e-3), 100, workers=4).lr(70) == plain.lr(70)
    for name, factor in {"linear": 4.0, "sqrt": 2.0, "none": 1.0}.items():
        scaled = build_schedule(kind(start_lr=1e-3, scale_by_worker=name), 100, workers=4)
        assert close(scaled.lr(70), factor * plain.lr(70))
        assert close(scaled.start_lr, factor * 1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ExpConfig(start_lr=1e-3, stop_lr=1e-8, stop_lr_ratio=0.1), "stop_lr and stop_lr_ratio"),
        (ExpConfig(start_lr=1e-3, warmup_steps=3, warmup_ratio=0.1), "warmup_steps and warmup_ratio"),
        (ExpConfig(start_lr=1e-3, warmup_steps=100), "shorter than the run"),
        (ExpConfig(start_lr=0.0), "start_lr should be"),
        (ExpConfig(start_lr=math.inf), "start_lr should be"),
        (ExpConfig(start_lr=1e-3, stop_lr=math.nan), "stop_lr should be"),
        (ExpConfig(start_lr=1e-3, decay_rate=1.5), "decay_rate should be"),
        (ExpConfig(start_lr=1e-3, decay_steps=0), "decay_steps should be"),
        (ExpConfig(start_lr=1e-3, scale_by_worker="cubic"), "scale_by_worker should be"),
        (WsdConfig(start_lr=1e-3, decay_type="step"), "decay_type should be"),
        (WsdConfig(start_lr=1e-3, decay_phase_ratio=0.0), "decay_phase_ratio should be"),
        (WsdConfig(start_lr=1e-3, stop_lr=0.0), "inverse_linear needs"),
    ],
)
def test_refused(config: ExpConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_schedule(config, 100)
    with pytest.raises(InputError, match="at least 0 steps"):
        build_schedule(ExpConfig(start_lr=1e-3), -1)


def test_growing_rate_is_said(caplog: pytest.LogCaptureFixture) -> None:
    s = build_schedule(ExpConfig(start_lr=1e-8), 100)
    assert "above start_lr" in caplog.text
    assert s.lr(0) == 5e-8


def test_every_option_is_documented_and_schedules_travel() -> None:
    for kind in CONFIGS:
        assert all(field.metadata["option"].doc for field in kind.options().values())
        config = kind(start_lr=1e-3)
        assert kind.from_dict(config.to_dict()) == config
        s = build_schedule(config, 10)
        assert pickle.loads(pickle.dumps(s)) == s or pickle.loads(pickle.dumps(s)).lr(5) == s.lr(5)
    assert [kind.key for kind in CONFIGS] == ["exp", "cosine", "wsd"]
