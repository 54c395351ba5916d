"""Rounds in which everyone takes a turn. Nothing here depends on how long anything takes."""

from __future__ import annotations

import gc

import pytest
import torch

from normbench.bench import measure
from normbench.bench.measure import Call, Rule, race

CPU = torch.device("cpu")


def test_everyone_takes_a_turn_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SAMPLE", 0)  # samples of one call
    order: list[str] = []
    makers = {name: lambda name=name: Call(lambda: order.append(name)) for name in "abc"}
    found = race(makers, CPU, Rule(rounds=6, seconds=0))
    assert all(len(found[name].seconds) == 6 for name in "abc")
    rounds = ["".join(order[-18:][k : k + 3]) for k in range(0, 18, 3)]
    assert all(sorted(turn) == list("abc") for turn in rounds)
    assert len(set(rounds)) > 1


def test_backward_is_given_what_forward_returns() -> None:
    seen: list[int] = []
    found = race({"a": lambda: Call(lambda: 7, seen.append)}, CPU, Rule(2, 0))
    assert set(seen) == {7}
    assert all(forward <= total for forward, total in zip(found["a"].forward, found["a"].seconds, strict=True))


def test_who_fails_has_a_reason_and_the_others_their_samples() -> None:
    calls = iter([1, 1, 1, 1, 1, 1])

    def tires() -> None:
        if next(calls, None) is None:
            raise RuntimeError("out\nof breath")

    def unmade() -> Call:
        raise ValueError("cannot be")

    found = race({"a": lambda: Call(lambda: None), "b": lambda: Call(tires), "c": unmade}, CPU, Rule(4, 0))
    assert len(found["a"].seconds) == 4
    assert found["b"].reason == "RuntimeError: out of breath"
    assert found["c"].reason == "ValueError: cannot be"
    assert found["b"].seconds == found["c"].seconds == []


def test_a_stop_is_no_reason_and_leaves_the_collector_on() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        race({"a": lambda: Call(stop)}, CPU, Rule(1, 0))
    assert gc.isenabled()


def test_when_it_is_enough() -> None:
    rule = Rule(rounds=5, seconds=0.3)
    assert not rule.enough(5, 0.2)
    assert not rule.enough(4, 1)
    assert rule.enough(5, 0.3)
    assert rule.enough(3, 0.3 * measure.LONG)
    assert not rule.enough(2, 100)
    assert Rule(2, 0).enough(2, 0)
