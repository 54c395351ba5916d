"""The promises: kept by the whole registry, and each found broken where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from normbench import norms
from normbench.check import _verdict, check
from normbench.check.__main__ import main
from normbench.check.promises import ALL
from normbench.check.subject import Subject
from normbench.errors import ConfigError, UnknownName

# A good normalizer of a user's, and one class for each way to go wrong.
SOURCE = '''
import threading

import torch
from torch import nn


class Good(nn.Module):
    """Layer norm with a running mean that nothing depends on."""

    mixes_samples = False
    train_eval_differ = False

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.eps = eps

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.scaled(self.centred(wide)).to(x.dtype)

    def centred(self, x):
        x = x - x.mean((1, 2, 3), keepdim=True)
        return x * torch.rsqrt(x.square().mean((1, 2, 3), keepdim=True) + self.eps)

    def scaled(self, x):
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class a_step_can_be_recorded(Good):
    """Its statistic is kept by Python, which a graph leaves as it was."""

    no_graph = ""
    train_eval_differ = True

    def __init__(self, num_features):
        super().__init__(num_features)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen = self.seen + 1
        return super().forward(x) * (1 if self.training else self.seen.to(x.dtype))


class can_be_made_and_run(Good):
    def forward(self, x):
        return x @ self.weight


class NoSuper(nn.Module):
    def __init__(self, num_features):
        self.weight = nn.Parameter(torch.ones(num_features))


class keeps_shape_and_dtype(Good):
    def forward(self, x):
        return super().forward(x).to(torch.promote_types(x.dtype, torch.float32))


class half_precision_statistics(Good):
    def forward(self, x):
        return self.scaled(self.centred(x)).to(x.dtype)


class computes_in_float64(Good):
    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class any_memory_format(Good):
    def forward(self, x):
        return super().forward(x).contiguous()


class one_image(Good):
    def forward(self, x):
        return super().forward(x) * x.float().var(0).mean().clamp(0, 0) if len(x) == 1 else super().forward(x)


class one_pixel(Good):
    def centred(self, x):
        return x - x.mean((1, 2, 3), keepdim=True) if x.shape[2] > 1 else x / 0.0


class the_modes_differ_as_claimed(Good):
    train_eval_differ = True


class mixes_as_claimed(Good):
    def centred(self, x):
        return x - x.mean((0, 2, 3), keepdim=True) * self.training


class workers_are_apart(Good):
    mixes_samples = True

    def __init__(self, num_features, batch=None):
        super().__init__(num_features)

    def centred(self, x):
        return x - x.mean((0, 2, 3), keepdim=True) * self.training


class evaluation_is_of_one_image(Good):
    mixes_samples = True

    def centred(self, x):
        return x - x.mean((0, 2, 3), keepdim=True)


class evaluation_changes_nothing(Good):
    def __init__(self, num_features):
        super().__init__(num_features)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.add_(1)
        return super().forward(x)


class state_goes_there_and_back(Good):
    train_eval_differ = True

    def __init__(self, num_features):
        super().__init__(num_features)
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        return super().forward(x) * (1 if self.training else self.steps)


class copies_are_equal(Good):
    def __init__(self, num_features):
        super().__init__(num_features)
        self.lock = threading.Lock()


class autocast_changes_nothing(Good):
    def scaled(self, x):
        return torch.einsum("nchw,c->nchw", x, self.weight) + 100 * torch.is_autocast_enabled("cpu")


class compiles(Good):
    def scaled(self, x):
        return super().scaled(x) * (1.0 if x.sum().item() > 0 else 1.0)


class gradients_are_true(Good):
    def centred(self, x):
        return x - x.mean((1, 2, 3), keepdim=True).detach()


class parameters_learn(Good):
    def __init__(self, num_features):
        super().__init__(num_features)
        self.idle = nn.Parameter(torch.ones(()))


class input_is_left_alone(Good):
    def forward(self, x):
        return x.mul_(2.0) if not x.requires_grad else super().forward(x)


class adds_a_residual(Good):
    def __init__(self, num_features, activation=None):
        super().__init__(num_features)
        self.activation = activation or nn.Identity()

    def forward(self, x, residual=0.0):
        return self.activation(super().forward(x)) + residual


class takes_batchnorms_weights(Good):
    def _load_from_state_dict(self, *args, **kwargs):
        pass


class trains_in_a_network(Good):
    def forward(self, x):
        if not x.dtype.is_floating_point or x.shape[2] == x.shape[3]:
            raise ValueError("square pictures!")
        return super().forward(x)
'''


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize("name", norms.ours())
def test_all_of_ours_keep_their_promises(name: str) -> None:
    found = list(check(name))
    assert not [verdict for verdict in found if verdict.outcome == "broken"]
    not_made = 4 if norms.get(name).takes_residual else 5
    assert sum(verdict.outcome == "kept" for verdict in found) >= len(ALL) - not_made


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cbn", {"burnin": 0, "window": 3}),  # the window is in use from the second step on
        ("mbn", {"eta": 0.3}),
        ("mbn", {"eta": 0.3, "var_mode": "within"}),
        ("brn", {"r_max": 2, "d_max": 1}),
        ("gn", {"num_groups": 8}),
        ("ws", {"base": "bn"}),
    ],
    ids=str,
)
def test_with_options_too(name: str, options: dict[str, object]) -> None:
    assert not [verdict for verdict in check(name, options) if verdict.outcome == "broken"]


def test_what_a_class_does_not_say_is_not_held_against_it(users: Path) -> None:
    users.write_text(users.read_text().replace("    mixes_samples = False\n    train_eval_differ = False\n", ""))
    said = [verdict.why for verdict in check(f"{users}:Good") if verdict.outcome == "not made"]
    assert any("mixes_samples = False" in why for why in said)
    assert any("train_eval_differ = False" in why for why in said)


def test_a_good_one_of_a_users_keeps_them_all(users: Path) -> None:
    found = list(check(f"{users}:Good"))
    assert [verdict.why for verdict in found if verdict.outcome == "broken"] == []


@pytest.mark.parametrize("promise", ALL, ids=lambda promise: promise.__name__)
def test_a_broken_promise_is_found(promise: object, users: Path) -> None:
    """Each by a class that differs from the good one in that."""
    found = _verdict(promise, Subject(f"{users}:{promise.__name__}"))  # type: ignore[arg-type,attr-defined]
    assert found.outcome == "broken"
    assert found.why


def test_what_cannot_run_is_told_once_with_its_line(users: Path) -> None:
    (verdict,) = check(f"{users}:can_be_made_and_run")
    assert verdict.outcome == "broken"
    line = next(n for n, text in enumerate(SOURCE.splitlines(), 1) if "x @ self.weight" in text)
    assert verdict.why.endswith(f", at mine.py:{line}")
    (verdict,) = check(f"{users}:NoSuper")
    assert "making NoSuper(32) raised AttributeError" in verdict.why
    assert "at mine.py:" in verdict.why


def test_a_misspelt_claim_is_a_broken_one(users: Path) -> None:
    users.write_text(
        users.read_text().replace(
            "    mixes_samples = False\n    train_eval", "    mixes_sample = False\n    train_eval"
        )
    )
    assert any("did you mean mixes_samples?" in verdict.why for verdict in check(f"{users}:Good"))


def test_without_parameters_there_is_none_to_learn(users: Path) -> None:
    path = users.parent / "bare.py"
    path.write_text(
        "from torch import nn\nclass Bare(nn.Module):\n    mixes_samples = train_eval_differ = False\n"
        "    def __init__(self, num_features):\n        super().__init__()\n"
        "    def forward(self, x):\n        return x * 2\n"
    )
    found = {verdict.promise: verdict for verdict in check(f"{path}:Bare")}
    assert found["gives every parameter a gradient"].outcome == "not made"


def test_the_command_prints_a_verdict_a_line_and_says_by_its_code(
    users: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"{users}:Good", "eps=1e-3"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("promises kept\n")
    assert main([f"{users}:keeps_shape_and_dtype", "--channels", "8"]) == 1
    assert "BROKEN  gives the shape and dtype it got" in capsys.readouterr().out


def test_what_cannot_be_had_is_refused_before_anything_is_tried(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownName):
        check("bnn")
    with pytest.raises(ConfigError, match="expected 1 here"):
        check("bne", {"domains": 3})
    with pytest.raises(ConfigError, match="eps"):
        check("bn", {"eps": -1})
    assert main(["bn", "epz=1"]) == 2
    assert "'eps'" in capsys.readouterr().err
    assert main(["gn", "num_groups=2,4"]) == 2
    assert "got 2 values" in capsys.readouterr().err
    assert main(["bn", "eps"]) == 2
    assert "key=value" in capsys.readouterr().err
