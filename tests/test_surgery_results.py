"""What comes out of the surgery: it is copied, saved, compiled, loaded and told of as any model."""

from __future__ import annotations

import copy
import io
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from surgery_cases import SIDE, Small, X, outputs, same
from torch import Tensor, nn

from normbench import surgery
from normbench.errors import ConfigError, InputError, UnknownName


@pytest.mark.parametrize("norm", ["bn", "frn", "bgn"])
def test_copies_and_pickles(norm: str, family: Callable[[str], nn.Module]) -> None:
    applied = surgery.apply(family("resnet18"), norm)
    x = torch.randn(2, 3, SIDE, SIDE)
    expected = outputs(applied, x, training=True)
    file = io.BytesIO()
    torch.save(applied, file)
    file.seek(0)
    for twin in (copy.deepcopy(applied), torch.load(file, weights_only=False)):
        assert torch.equal(outputs(twin, x, training=True)[0], expected[0])
        assert twin.conv1.weight is not applied.conv1.weight
        assert surgery.report(twin) == surgery.report(applied)
        assert twin._train_forward == applied._train_forward


def test_compiles() -> None:
    applied = surgery.apply(Small(), "bn")
    compiled = torch.compile(applied, backend="eager", fullgraph=True)
    for training in (True, False):
        applied.train(training)
        torch.testing.assert_close(compiled(X), applied(X), rtol=1e-3, atol=1e-4)


def test_tracebacks_show_the_code() -> None:
    applied = surgery.apply(Small(), "bn")
    with pytest.raises(RuntimeError) as caught:
        applied(torch.randn(2, 5, 8, 8))
    text = "".join(traceback.format_exception(caught.value))
    assert "conv1 = self.conv1(x)" in text


def test_root_parameters_keep_their_names() -> None:
    class Net(Small):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.register_buffer("shift", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.scale + self.shift)

    model = Net()
    applied = surgery.apply(model, "frn")
    assert next(iter(dict(applied.named_parameters()))) == "scale"
    assert applied.scale is model.scale
    assert set(model.state_dict()) - set(applied.state_dict()) == {
        f"bn{i}.{name}" for i in (1, 2) for name in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_a_batchnorm_checkpoint_loads() -> None:
    model = Small()
    nn.init.uniform_(model.bn1.weight)
    applied = surgery.apply(Small(), "bn")
    applied.load_state_dict(model.state_dict())
    same(model, applied)


def test_the_report_reads_units_as_they_are() -> None:
    applied = surgery.apply(Small(), "gn", num_groups=4)
    report = surgery.report(nn.ModuleDict({"wrapped": applied}))
    assert [(row.name, row.num_groups, row.parameters, row.unit) for row in report.rows] == [
        ("bn1", 4, 16, "gn"), ("bn2", 4, 16, "gn"),
    ]  # fmt: skip
    assert report.parameters == 32
    table = str(report).splitlines()
    assert table[0].split() == ["site", "C", "convolution", "activation", "unit", "groups", "parameters"]
    assert table[1].split() == ["bn1", "8", "conv1", "ReLU()", "gn", "4", "16"]
    assert table[-1] == "gn: 2 sites, 32 parameters"
    with pytest.raises(InputError, match="not of normbench's making"):
        surgery.report(Small())


def test_bad_names_and_options_are_refused_first() -> None:
    model = nn.Linear(2, 2)  # no BatchNorm in it: the options are looked at before that
    with pytest.raises(UnknownName, match="gn"):
        surgery.apply(model, "gnn")
    with pytest.raises(UnknownName, match="num_groups"):
        surgery.apply(model, "gn", num_group=4)
    with pytest.raises(ConfigError):
        surgery.apply(model, "gn", num_groups="many")
    with pytest.raises(InputError, match=r"site bn1 \(8 channels\)"):
        surgery.apply(Small(), "gn", num_groups=3)
    with pytest.raises(InputError, match=r"normbench\.build"):
        surgery.apply(nn.BatchNorm2d(3), "gn")


def test_a_users_unit_leaves_the_activation_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Scale(torch.nn.Module):\n"
        "    def __init__(self, num_features, gain=1.0):\n"
        "        super().__init__()\n"
        "        self.gain = gain\n"
        "        self.weight = torch.nn.Parameter(torch.ones(num_features))\n"
        "    def forward(self, x):\n"
        "        return x * self.weight[:, None, None] * self.gain\n"
    )
    model = Small()
    nn.init.uniform_(model.bn1.weight)
    applied = surgery.apply(model, f"{tmp_path / 'mine.py'}:Scale", gain=2.0)
    assert applied._train_forward.source.count("functional.relu") == 1
    assert torch.equal(applied.bn1.weight, model.bn1.weight)
    assert applied(X).shape == (4, 4)
