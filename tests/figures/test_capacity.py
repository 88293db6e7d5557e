"""What a cluster carries: each bound by itself, and the formulas of docs/sizing.md computed by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.capacity import BYTES_IN_A_GIGABIT, PER, Capacity, Cluster, Costs, capacity

SIZING = Path(__file__).parents[2] / "docs" / "sizing.md"
SIGNS = str.maketrans({"\u00d7": "*", "\u00f7": "/", "\u2212": "-", "\u2308": "ceil(", "\u2309": ")"})
COSTS = Costs(service=0.5, write=0.2, serve=0.3, input_bytes=500, output_bytes=600)
CLUSTER = Cluster(
    brokers=3,
    broker_cores=4,
    replication=3,
    instances=6,
    instance_cores=1,
    partitions=60,
    gigabits=8,
    share=0.5,
)


def test_each_bound_is_what_a_sheet_of_paper_says() -> None:
    """Five instances work, each on a fifth of the messages, and two brokers."""
    assert capacity(COSTS, CLUSTER).bounds == {
        "instances' cores": pytest.approx(0.5 * 5 * 200_000),
        "instances' network": pytest.approx(0.5 * 5 * 1e9 / 600),
        # Written once, served once, copied four times, read once: 0.2 + 0.3 + 1.2 + 0.3 core seconds for 100,000.
        "brokers' cores": pytest.approx(0.5 * 2 * 4 * 50_000),
        # 3,300 bytes come in with each message; 500 + 600 + 2,200 leave.
        "brokers' network": pytest.approx(0.5 * 2 * 1e9 / 3300),
    }


def test_the_lowest_bound_is_what_it_carries() -> None:
    found = Capacity({"a": 3.0, "b": 2.0, "c": 2.5})
    assert (found.rate, found.bound) == (2.0, "b")
    assert capacity(COSTS, CLUSTER).bound == "brokers' cores"
    assert capacity(COSTS, replace(CLUSTER, gigabits=1)).bound == "brokers' network"
    assert capacity(COSTS, replace(CLUSTER, partitions=5, instances=2)).bound == "instances' cores"


def test_instances_that_do_not_divide_the_partitions_are_bound_by_the_fullest() -> None:
    cores = {
        (instances, partitions): capacity(
            COSTS, replace(CLUSTER, instances=instances, partitions=partitions, instances_missing=0)
        ).bounds["instances' cores"]
        for instances, partitions in ((4, 12), (5, 12), (6, 12), (12, 12), (13, 12), (1, 1))
    }
    one = cores[1, 1]
    assert cores[4, 12] == pytest.approx(4 * one)
    assert cores[5, 12] == pytest.approx(4 * one)  # the fullest has three of twelve, as with four instances
    assert cores[6, 12] == pytest.approx(6 * one)
    assert cores[13, 12] == pytest.approx(cores[12, 12]) == pytest.approx(12 * one)


def test_an_instance_uses_one_core_at_most() -> None:
    by_cores = {
        cores: capacity(COSTS, replace(CLUSTER, instance_cores=cores)).bounds["instances' cores"]
        for cores in (0.5, 1, 4)
    }
    assert by_cores[0.5] * 2 == pytest.approx(by_cores[1]) == pytest.approx(by_cores[4])


@pytest.mark.parametrize(
    "wrong",
    [
        {"brokers": 2},
        {"brokers_missing": 3},
        {"instances_missing": 6},
        {"partitions": 0},
        {"replication": 0},
    ],
)
def test_a_cluster_that_cannot_work_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="replica"):
        capacity(COSTS, replace(CLUSTER, **wrong))


def formulas() -> dict[str, str]:
    """Those of the document, as Python."""
    text = SIZING.read_text(encoding="utf-8").split("## What a cluster carries\n")[1].split("\n## ")[0]
    found = dict(re.findall(r"^    (\S.*?) += (.+)$", text, re.MULTILINE))
    return {name: formula.translate(SIGNS) for name, formula in found.items()}


@given(
    costs=st.builds(Costs, *[st.floats(0.01, 10)] * 3, *[st.floats(10, 10_000)] * 2),
    cluster=st.builds(
        Cluster,
        brokers=st.integers(3, 9),
        broker_cores=st.floats(1, 64),
        replication=st.integers(1, 3),
        instances=st.integers(2, 40),
        instance_cores=st.floats(0.1, 4),
        partitions=st.integers(1, 200),
        gigabits=st.floats(0.1, 100),
        readers=st.integers(0, 5),
        share=st.floats(0.1, 1),
    ),
)
def test_the_formulas_of_the_document_are_those_of_the_code(costs: Costs, cluster: Cluster) -> None:
    names: dict[str, object] = {
        "A": cluster.instances - cluster.instances_missing,
        "B": cluster.brokers - cluster.brokers_missing,
        "C": cluster.instance_cores,
        "D": cluster.broker_cores,
        "P": cluster.partitions,
        "R": cluster.replication,
        "r": cluster.readers,
        "n": cluster.gigabits * BYTES_IN_A_GIGABIT,
        "u": cluster.share,
        "c": costs.service / PER,
        "w": costs.write / PER,
        "s": costs.serve / PER,
        "i": costs.input_bytes,
        "o": costs.output_bytes,
        "__builtins__": {"min": min, "max": max, "ceil": ceil},
    }
    written = formulas()
    names["f"] = eval(written.pop("f"), names)  # noqa: S307 - the document's own formulas
    computed = {name: eval(formula, names) for name, formula in written.items()}  # noqa: S307 - as above
    assert computed == pytest.approx(capacity(costs, cluster).bounds)
