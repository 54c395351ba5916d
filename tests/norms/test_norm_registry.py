"""The registry: names, options checked before anything is built, users' own classes, conf/norm."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from norm_cases import C, pictures
from torch import nn

from normbench import norms
from normbench.errors import ConfigError, UnknownName

CONF = Path(__file__).parents[2] / "conf" / "norm"
CONTRACT = [
    "none", "bn", "ln", "in", "gn", "pn", "bgn", "frn", "brn", "gbn", "batch_group", "iebn", "proxy",
    "sn", "evonorm_b0", "evonorm_s0", "rms", "rbn", "dyt", "mabn", "bcn", "online", "syncbn",
    "bkn", "bnp",
    "cbn", "mbn",
    "ic", "bne",
    "ws", "nf",
]  # fmt: skip


def test_names() -> None:
    assert norms.names() == CONTRACT
    assert len(set(norms.names())) == len(norms.names())


@pytest.mark.parametrize("call", [norms.get, lambda n: norms.build(n, 8), lambda n: norms.check_options(n, {})])
def test_an_unknown_name_is_answered_with_the_near_one_and_the_choices(call: Any) -> None:
    with pytest.raises(UnknownName, match=r"unknown normalizer 'bgm'. Did you mean 'bgn'\? Choices: .*file.py:Class"):
        call("bgm")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ConfigError, match="'gn': the name is taken by GroupNorm"):
        norms.register(norms.get("gn"))


@pytest.mark.parametrize("name", norms.names())
def test_an_unknown_option_is_answered_with_the_near_one_and_the_choices(name: str) -> None:
    for call in (lambda o: norms.check_options(name, o), lambda o: norms.build(name, 8, **o)):
        with pytest.raises(UnknownName, match=rf"unknown option of {name} 'affin'. Did you mean 'affine'\? Choices: "):
            call({"affin": True})


BAD = [
    ("gn", "num_groups", 0),
    ("gn", "num_groups", -4),
    ("gn", "num_groups", "abc"),
    ("gn", "num_groups", "16"),
    ("gn", "num_groups", 1.5),
    ("gn", "num_groups", True),
    ("gn", "num_groups", {2: 1}),
    ("gn", "num_groups", [1, 2]),
    ("gn", "group_fit", "unevn"),
    ("gn", "group_fit", 1),
    ("bgn", "num_groups", {}),
    ("bgn", "num_groups", {"two": 1}),
    ("bgn", "num_groups", {0: 1}),
    ("bgn", "num_groups", {2: 0}),
    ("bgn", "num_groups", {2: True}),
    ("bgn", "eval_stats", "runing"),
    ("bgn", "size", 7),
    ("bgn", "size", (7, 0)),
    ("bgn", "size", "77"),
    ("pn", "unbiased", 1),
    ("frn", "learn_eps", "yes"),
    ("frn", "eps", None),
    *((name, "eps", value) for name in CONTRACT for value in (-1e-5, "small", float("nan"), float("inf"), True)),
    *((name, "affine", value) for name in CONTRACT for value in (1, "true", None)),
    *(
        (name, "momentum", value)
        for name in (
            "bn",
            "bgn",
            "brn",
            "gbn",
            "batch_group",
            "iebn",
            "sn",
            "evonorm_b0",
            "rbn",
            "bcn",
            "syncbn",
            "bkn",
            "cbn",
            "ic",
            "bne",
        )
        for value in (-0.1, 1.1, "fast", False)
    ),
    *(("brn", "r_max", value) for value in (0.9, 0, "3", float("nan"), True)),
    *(("brn", "d_max", value) for value in (-0.1, "5", float("nan"), False)),
    ("brn", "absolute_steps", 1),
    *((name, "ghost_size", value) for name in ("gbn", "batch_group") for value in (0, -2, 1.5, "2", None, True)),
    ("batch_group", "num_groups", {2: 1}),
    ("proxy", "group_fit", "unevn"),
    *(("proxy", "proxy_eps", value) for value in (-0.1, "small", float("inf"), None)),
    *(("proxy", "quantiles", value) for value in (0, 2.5, None)),
    ("proxy", "learn_proxy", "yes"),
    ("sn", "using_bn", 1),
    ("evonorm_s0", "group_fit", "lower"),
    *(("dyt", "alpha_init", value) for value in ("half", None, float("nan"))),
    ("bcn", "estimated", 1),
    *(("mabn", option, value) for option in ("warmup_steps", "clip_start") for value in (-1, 1.5, None, True)),
    *(("mabn", "window", value) for value in (0, 2.5, True)),
    *(("mabn", "decay", value) for value in (-0.1, 1.1, None, "slow")),
    *(("online", option, value) for option in ("alpha_fwd", "alpha_bkw") for value in (-0.1, 1.1, None, True)),
    *(("online", "clamp", value) for value in (0, -5, "5", float("inf"))),
    ("online", "layer_scaling", 1),
    *(("ws", "ws_eps", value) for value in (-1e-5, "small", None)),
    *(("ws", "num_groups", value) for value in (0, "16")),
    *(("nf", "alpha", value) for value in ("0.2", None, float("nan"))),
    *(("nf", "agc", value) for value in (0, -0.1, "0.02", float("inf"))),
    *(("nf", "rules", value) for value in ("bn", None, 1)),
    *(("bkn", "gain", value) for value in (-0.1, 1.1, True, "auto")),
    ("bkn", "prior", "cod"),
    ("bkn", "propagate", None),
    ("bkn", "detach_prior", 1),
    *(("bkn", "gate_ratio", value) for value in (-1, None, "100", True)),
    *(("bnp", "base", value) for value in ("bn", None, 1)),
    *(("bnp", "decay", value) for value in (-0.1, 1.1, None)),
    *(("bnp", option, value) for option in ("eps1", "eps2") for value in (-0.1, "small", float("inf"), None)),
    *(("bnp", option, 1) for option in ("q_scale", "debias", "add_bias")),
    ("bnp", "around", "runing"),
    *(("cbn", "window", value) for value in (0, 2.5, True)),
    *(
        (name, option, value)
        for name, option in (("cbn", "burnin"), ("mbn", "eta_warmup"))
        for value in (-1, 1.5, True)
    ),
    *(("cbn", "rho", value) for value in (-0.1, None, "half")),
    *(("cbn", "valid", value) for value in ("papr", None, True)),
    ("cbn", "eps_outside", 1),
    *(("mbn", "memory", value) for value in (0, 2.5, None, True)),
    *(("mbn", option, value) for option in ("memory_decay", "eta") for value in (-0.1, 1.1, "half", True)),
    ("mbn", "memory_decay", None),
    ("mbn", "var_mode", "totl"),
    ("mbn", "grad_mode", "none"),
    ("mbn", "double_forward", 1),
    *(("ic", "drop", value) for value in (-0.1, 1.0, "some", None, True)),
    *(("ic", "channelwise", value) for value in (1, None)),
    *(("ic", "placement", value) for value in ("conv_ic_relu", None, 1)),
    *(("bne", "domains", value) for value in (0, 1.5, "two", None, True)),
]


@pytest.mark.parametrize(("name", "option", "value"), BAD)
def test_a_bad_value_is_refused_in_words(name: str, option: str, value: Any) -> None:
    message = re.escape(f"{name}: got {option}={value!r}, expected ")
    for call in (lambda o: norms.check_options(name, o), lambda o: norms.build(name, 8, batch=4, **o)):
        with pytest.raises(ConfigError, match=message):
            call({option: value})


def test_a_misspelt_choice_has_a_near_one() -> None:
    with pytest.raises(ConfigError, match="expected one of strict, gcd, uneven; did you mean 'uneven'"):
        norms.check_options("gn", {"group_fit": "unevn"})


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True])
def test_batch_and_num_features_are_counts(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"batch: got .*, expected a whole number, 1 or more"):
        norms.build("bn", 8, batch=value)
    with pytest.raises(ConfigError, match="num_features: got "):
        norms.build("bn", value)


@pytest.mark.parametrize("name", norms.names())
@pytest.mark.parametrize("activation", [nn.ReLU, torch.relu, "relu"], ids=["class", "function", "word"])
def test_an_activation_is_a_module(name: str, activation: Any) -> None:
    with pytest.raises(ConfigError, match=r"activation: got .*expected a module such as torch.nn.ReLU\(\)"):
        norms.build(name, 8, activation=activation)


@pytest.mark.parametrize("name", norms.names())
def test_good_options_pass_and_defaults_are_the_signatures(name: str) -> None:
    row = norms.get(name)
    norms.check_options(name, row.options)
    assert row.options["eps"] == (1e-6 if name in ("frn", "rms") else 1e-5)
    assert row.options.get("momentum", 0.1) == 0.1
    assert not {"num_features", "activation", "batch", "device", "dtype"} & row.options.keys()
    assert norms.is_unit(norms.build(name, 8, batch=4, activation=nn.ReLU()))
    assert not norms.is_unit(nn.BatchNorm2d(8))


@pytest.mark.parametrize("name", norms.names())
def test_every_normalizer_has_a_config_file_with_all_its_options(name: str) -> None:
    text = (CONF / f"{name}.yaml").read_text()
    config = yaml.safe_load(text)
    row = norms.get(name)
    assert config.pop("name") == name
    assert set(config) == set(row.options) - {"size"}, "size is each site's own"
    given = {key: value for key, value in config.items() if value is not None}
    norms.check_options(name, given)
    assert norms.build(name, 64, batch=8, **given)(pictures(8, 64, 4, 4).float()).isfinite().all()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert row.paper.split(" 20")[0].split(",")[0].split(" et ")[0] in comments[0]
    for line in text.splitlines():
        assert line.startswith(("#", "name:")) or " # " in line, f"says nothing about {line}"


def test_bgns_table_is_marked_as_the_card_marks_it() -> None:
    text = (CONF / "bgn.yaml").read_text()
    assert yaml.safe_load(text)["num_groups"] == {2: 1, 4: 2, 8: 16, 16: 64, 32: 128, 64: 256, 128: 512, 256: 512}
    assert "[R]" in text
    assert "NOT the paper's" in text


def test_the_registry_prints_itself() -> None:
    command = [sys.executable, "-m", "normbench.norms"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CONF.parents[1]).stdout
    for name in norms.names():
        assert re.search(rf"^{name} .*{re.escape(norms.get(name).paper)}", out, re.MULTILINE)


USERS = """
import torch
from torch import nn

class MyNorm(nn.Module):
    mixes_samples = False
    least_batch = 2

    def __init__(self, num_features, eps=1e-5, depth=1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.alpha = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.weight[:, None, None] - self.alpha

class Plain(nn.Module):
    def __init__(self, num_features):
        super().__init__()

    def forward(self, x):
        return x

class NoFeatures(nn.Module):
    def __init__(self, width):
        super().__init__()

def function(num_features):
    return nn.Identity()
"""


@pytest.fixture
def users(tmp_path: Path) -> str:
    path = tmp_path / "my_norms.py"
    path.write_text(USERS)
    return str(path)


def test_a_users_class_has_the_traits_it_says(users: str) -> None:
    mine, plain = norms.get(f"{users}:MyNorm"), norms.get(f"{users}:Plain")
    assert (mine.mixes_samples, mine.train_eval_differ, mine.least_batch) == (False, True, 2)
    assert (plain.mixes_samples, plain.train_eval_differ, plain.least_batch) == (True, True, 1)
    assert not mine.takes_batch
    assert not mine.takes_activation
    assert mine.options == {"eps": 1e-5, "depth": 1}
    assert mine.name == f"{users}:MyNorm"


def test_a_users_unit_is_given_what_it_takes_and_its_activation_after_it(users: str) -> None:
    activation = nn.PReLU()
    unit = norms.build(f"{users}:MyNorm", C, activation=activation, batch=2, dtype=torch.float64, depth=3)
    x = pictures(2, C, 3, 3)
    expected = activation.double()(x - 1)
    for twin in (unit, copy.deepcopy(unit), pickle.loads(pickle.dumps(unit))):
        assert norms.is_unit(twin)
        assert torch.equal(twin(x), expected)
    assert "weight" in unit.state_dict()
    assert [id(p) for p in norms.affine_parameters(unit)] == [id(unit.weight)]
    assert [id(p) for p in norms.extra_parameters(unit)] == [id(unit.alpha)]


def test_an_edited_file_is_a_new_class_with_a_new_hash(users: str) -> None:
    first = norms.get(f"{users}:MyNorm")
    assert norms.get(f"{users}:MyNorm").unit is first.unit
    Path(users).write_text(USERS.replace("least_batch = 2", "least_batch = 3"))
    second = norms.get(f"{users}:MyNorm")
    assert second.least_batch == 3
    assert second.source_hash != first.source_hash


def test_a_class_of_an_installed_package() -> None:
    row = norms.get("torch.nn:BatchNorm2d")
    assert row.source_hash is not None
    unit = norms.build("torch.nn:BatchNorm2d", C, batch=2, momentum=0.2)
    assert isinstance(unit, nn.BatchNorm2d)
    assert unit.momentum == 0.2


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("{users}:MyNrm", UnknownName, "'MyNrm'. Did you mean 'MyNorm'"),
        ("{users}x.py:MyNorm", ConfigError, "no file .*did you mean 'my_norms.py'"),
        ("{users}:NoFeatures", ConfigError, r"NoFeatures\(width\) does not take num_features"),
        ("{users}:function", ConfigError, "expected a subclass of torch.nn.Module"),
        ("no_such_package.norms:MyNorm", ConfigError, "no module 'no_such_package'"),
    ],
)
def test_a_users_class_that_cannot_be_had(users: str, target: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        norms.get(target.format(users=users))


def test_a_users_unknown_or_missing_option(users: str) -> None:
    with pytest.raises(UnknownName, match=r"unknown option of .*:MyNorm 'epz'. Did you mean 'eps'"):
        norms.check_options(f"{users}:MyNorm", {"epz": 1})
    Path(users).write_text(USERS.replace("eps=1e-5, depth=1", "depth"))
    with pytest.raises(ConfigError, match="missing a required argument: 'depth'; give it as an option"):
        norms.build(f"{users}:MyNorm", C)
