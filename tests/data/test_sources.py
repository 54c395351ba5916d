"""Names of data sets: described, opened, answered with the near one where wrong; conf/data says the same."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from data_files import one_line, write_tree

from normbench.data import Pictures, describe, names, open_pictures
from normbench.errors import ConfigError, UnknownName
from normbench.options import DataOptions

CONF = Path(__file__).parents[2] / "conf/data"


def test_an_unknown_name_is_answered_with_the_near_one():
    message = r"unknown data set 'cifar01'. Did you mean 'cifar10'\?.*data=folder"
    with pytest.raises(UnknownName, match=message) as error:
        describe(DataOptions("cifar01"))
    one_line(error.value)


def test_options_of_a_named_set_are_refused():
    with pytest.raises(ConfigError, match=r"data.options: got 'x', which digits does not take"):
        describe(DataOptions("digits", options={"x": 1}))


def test_a_root_for_the_digits_is_refused():
    with pytest.raises(ConfigError, match=r"data.root: got 'here', but digits come with scikit-learn"):
        describe(DataOptions("digits", root="here"))


@pytest.mark.parametrize("limit", [None, 25])
@pytest.mark.parametrize("valid", [0.0, 0.1])
def test_describing_and_opening_agree(limit, valid):
    options = DataOptions("digits", limit=limit, valid=valid, pad=1)
    pictures = open_pictures(options, size=None, device="cpu")
    assert isinstance(pictures, Pictures)
    assert pictures.description == describe(options)
    assert sum(len(y) for _, y in pictures.test(7)) == pictures.description.test
    assert len(list(pictures.train(seed=0, epoch=0, batch=8))) == pictures.train_steps(8)


def test_the_callers_progress_takes_the_place_of_ours(tmp_path):
    shares: list[float] = []
    describe(DataOptions("folder", root=str(write_tree(tmp_path / "set"))), progress=shares.append)
    assert shares[-1] == 1
    assert shares == sorted(shares)


@pytest.mark.parametrize("name", names())
def test_every_set_has_a_config_file_that_makes_its_options(name):
    text = (CONF / f"{name}.yaml").read_text()
    values = yaml.safe_load(text)
    assert DataOptions(**values).name == name
    assert set(values) == {field.name for field in fields(DataOptions)} - {"options"}
    assert "Source" in text
    assert all("#" in line for line in text.splitlines())


def test_every_config_file_is_a_set():
    assert {path.stem for path in CONF.glob("*.yaml")} == set(names())
