"""From a command line to cells: sweeps without -m, precedence, own configs, and errors that mend."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from normbench import grid
from normbench.errors import ConfigError, UnknownName


def cells(*overrides: str, **kwargs: Any) -> list[dict[str, Any]]:
    return [item.cell.flat() for item in grid.read(overrides, **kwargs).cells]


def column(key: str, *overrides: str) -> list[Any]:
    return [flat[key] for flat in cells(*overrides)]


def test_the_sentence_they_know() -> None:
    found = cells("norm=bgn", "batch=2,8,32")
    assert [(flat["norm"], flat["batch"], flat["arch"], flat["data"]) for flat in found] == [
        ("bgn", 2, "resnet8", "digits"), ("bgn", 8, "resnet8", "digits"), ("bgn", 32, "resnet8", "digits"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("seed=range(3)", [0, 1, 2]),
        ("seed=range(1,6,2)", [1, 3, 5]),
        ("seed=choice(4,2)", [4, 2]),
        ("seed=7", [7]),
        ("++seed=7", [7]),
    ],
)
def test_scalars_sweep_without_a_flag(override: str, values: list[int]) -> None:
    assert column("seed", override) == values


def test_the_last_axis_varies_fastest_in_the_order_given() -> None:
    found = cells("batch=2,8", "norm=bn,gn")
    assert [(flat["batch"], flat["norm"]) for flat in found] == [(2, "bn"), (2, "gn"), (8, "bn"), (8, "gn")]


def test_a_glob_takes_config_files() -> None:
    assert set(column("norm", "norm=glob(*)")) == set(grid.Configs().options("norm"))
    assert set(column("norm", "norm=glob(b*)")) <= set(column("norm", "norm=glob(*)"))


def test_any_key_of_a_cell_can_be_swept() -> None:
    assert column("recipe.weight_decay", "recipe.weight_decay=0,0.1") == [0.0, 0.1]
    assert column("recipe", "recipe=quick,cifar") == ["quick", "cifar"]
    assert column("memory_format", "memory_format=contiguous,channels_last") == ["contiguous", "channels_last"]
    assert column("data.limit", "data.limit=50,100,null") == [50, 100, None]


def test_options_of_one_norm_multiply_only_its_cells() -> None:
    found = cells("norm=bn,gn", "options.gn.num_groups=16,32", "batch=2,8")
    assert [(flat["norm"], flat.get("norm.num_groups"), flat["batch"]) for flat in found] == [
        ("bn", None, 2), ("bn", None, 8), ("gn", 16, 2), ("gn", 32, 2), ("gn", 16, 8), ("gn", 32, 8),
    ]  # fmt: skip


def test_options_of_a_norm_that_is_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"options\.gn\.num_groups is given, but norm=gn is not in this grid"):
        cells("norm=bn", "options.gn.num_groups=16")


def test_what_was_chosen_is_remembered() -> None:
    (item,) = grid.read(["norm=gn", "norm.num_groups=4", "epochs=2", "recipe=cifar"]).cells
    assert set(item.changed) == {"norm.num_groups", "epochs", "recipe"}


def test_the_command_line_goes_before_the_recipe_and_the_recipe_before_the_defaults() -> None:
    assert column("epochs", "recipe=cifar") == [200]
    assert column("epochs", "recipe=cifar", "epochs=3") == [3]
    assert column("steps", "recipe=frn_paper") == [300000]
    assert (cells("recipe=frn_paper", "epochs=3")[0]["steps"], column("epochs", "recipe=frn_paper", "epochs=3")) == (
        None,
        [3],
    )


def test_null_means_the_recipes_or_the_methods_own() -> None:
    assert column("epochs", "epochs=null") == column("epochs")
    assert "norm.eps" not in cells("norm=gn", "norm.eps=null")[0]


def test_names_that_are_no_config_file_resolve_in_lists_too(tmp_path: Path) -> None:
    assert column("arch", "arch=resnet8,resnet18,vgg11_bn") == ["resnet8", "resnet18", "vgg11_bn"]
    assert column("norm", "norm=bn,dir/my-norm.py:Mine,package.module:Norm")[1:] == [
        "dir/my-norm.py:Mine",
        "package.module:Norm",
    ]
    assert column("data", "data=digits,pictures.py:make") == ["digits", "pictures.py:make"]


def test_a_users_folder_adds_to_every_group_and_to_globs(tmp_path: Path) -> None:
    for group, name, text in [
        ("norm", "gn8", "name: gn\nnum_groups: 8\n"),
        ("recipe", "mine", "defaults:\n  - quick\n  - _self_\nname: mine\nbase_lr: 0.5\n"),
        ("data", "few", "name: digits\nlimit: 40\n"),
    ]:
        (tmp_path / group).mkdir()
        (tmp_path / group / f"{name}.yaml").write_text(text)
    found = cells("norm=gn8", "recipe=mine", "data=few", config_dirs=[str(tmp_path)])[0]
    assert (found["norm"], found["norm.num_groups"], found["data.limit"], found["recipe.base_lr"]) == ("gn", 8, 40, 0.5)
    assert found["recipe.momentum"] == 0.9
    assert len(cells("norm=glob(gn*)", config_dirs=[str(tmp_path)])) == 2
    assert len(cells("norm=glob(gn*)", f"hydra.searchpath=[file://{tmp_path}]")) == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["norm=bgnn"], "unknown normalizer 'bgnn'. Did you mean 'bgn'?"),
        (["norm=bn,bgnn", "batch=2,8"], "unknown normalizer 'bgnn'"),
        (["arch=resnet9"], "unknown architecture 'resnet9'. Did you mean 'resnet8'?"),
        (["arch=resnext50_32x4"], "resnext50_32x4d"),
        (["data=cifar1"], "unknown data set 'cifar1'. Did you mean 'cifar10'?"),
        (["recipe=quik"], "unknown recipe 'quik'. Did you mean 'quick'?"),
        (["bacth=8"], "unknown key 'bacth'. Did you mean 'batch'?"),
        (["baseline=gn"], "It is a key of python -m normbench.report DIR."),
        (["data.rot=x"], "Did you mean 'data.root'?"),
        (["recipe.epoch=3"], "Did you mean 'recipe.epochs'?"),
        (["batch=eight"], "batch: got 'eight'"),
        (["batch=2,eight"], "batch: got 'eight'"),
        (["batch=[2,8]"], "write batch=2,8"),
        (["batch="], "batch: got ''"),
        (["batch=2,"], "cannot read 'batch=2,'"),
        (["batch"], "cannot read 'batch'"),
        (["batch=2", "batch=8"], "batch is given twice"),
        (["~batch"], "cannot remove 'batch'"),
        (["lr=interval(0,1)"], "an interval has no end"),
        (["name=a,b"], "cannot be swept"),
        (["plan=maybe"], "plan: got 'maybe', expected true or false"),
        (["norm=glob(zz*)"], "the glob matches none"),
        (["norm=[bn,gn]"], "to sweep, write norm=a,b"),
        (["hydra.sweep.dir=x"], "normbench composes with Hydra but runs the grid itself"),
        (["norm=gn", "options.gn=3"], "expected options.<norm>.<option>=value"),
        (["norm=gn", "options.gnn.num_groups=3"], "did you mean options.gn"),
        (["runs=null"], "runs: got None, expected a word"),
        (["lr=${nope}"], "cannot resolve ${nope}"),
        (["batch=glob(*)"], "got a glob, which is for groups"),
        (["norm=bn,glob(g*)"], "expected it alone"),
        (["epochs=2", "steps=5"], "give one"),
    ],
)
def test_a_mistake_is_answered_with_what_would_mend_it(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cells(*overrides)
    assert words in str(caught.value)
    assert "Ambiguous" not in str(caught.value)


def test_a_folder_of_configs_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        cells(config_dirs=["/nowhere"])


def test_a_broken_config_file_is_told_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "broken.yaml").write_text("name: [unclosed\n")
    with pytest.raises(ConfigError, match="does not compose") as caught:
        cells("norm=broken", config_dirs=[str(tmp_path)])
    assert "\n" not in str(caught.value)


def test_an_unknown_name_carries_the_choices() -> None:
    with pytest.raises(UnknownName) as caught:
        cells("norm=xyz")
    assert {"bn", "gn", "bgn", "frn"} <= set(caught.value.choices)


def test_two_thousand_cells_are_read_in_seconds() -> None:
    begun = time.perf_counter()
    found = cells("norm=bn,gn,bgn,frn,ln", "batch=2,4,8,16,32,64,128,256", "seed=range(50)")
    assert len(found) == 2000
    assert time.perf_counter() - begun < 5


def test_the_grid_leaves_no_folder_behind(tmp_path: Path) -> None:
    code = "from normbench import grid; grid.read(['norm=bn', 'batch=2,8'])"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert os.listdir(tmp_path) == []
