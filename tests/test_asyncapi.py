"""docs/asyncapi.yml: valid, and true of the settings, the dead letters and the transform."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import msgpack
import numpy as np
import pytest
import yaml
from aiokafka import TopicPartition
from asyncapi_schema import NotFetchedError, schema
from harness import unpack

from service import __version__
from service.settings import Settings
from service.streaming.headers import HeaderPolicy, without_value
from service.transform.frames import Record
from service.transform.pipeline import Limits, Pipeline
from service.transform.profiles import Output
from service.transform.refusals import InvalidMessage, Reason

HERE: Final = Path(__file__).resolve().parent
DOCUMENT: Final[dict[str, Any]] = yaml.safe_load((HERE.parent / "docs" / "asyncapi.yml").read_text(encoding="utf-8"))
MESSAGES: Final = DOCUMENT["components"]["messages"]
SCHEMAS: Final = DOCUMENT["components"]["schemas"]
EXAMPLES: Final = {
    name: [example["payload"] for example in MESSAGES[name]["examples"]] for name in ("Logits", "Probabilities")
}


def is_payload(message: str, value: object) -> bool:
    """Whether a decoded value is one of that message."""
    schema = {"$ref": f"#/components/messages/{message}/payload", "components": DOCUMENT["components"]}
    valid: bool = jsonschema.Draft7Validator(schema).is_valid(value)
    return valid


def test_it_is_asyncapi() -> None:
    """By the specification's own schema."""
    try:
        validator = jsonschema.Draft7Validator(schema())
    except NotFetchedError as error:
        pytest.skip(str(error))
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(DOCUMENT)] == []
    assert not validator.is_valid({**DOCUMENT, "channels": {"logits": {"address": 7}}})
    assert not validator.is_valid({**DOCUMENT, "asyncapi": "2.6.0"})


def test_it_is_of_this_version_and_names_the_topics_of_the_settings() -> None:
    assert DOCUMENT["info"]["version"] == __version__
    topics = Settings().topics
    addresses = {name: channel["address"] for name, channel in DOCUMENT["channels"].items()}
    assert addresses == {"logits": topics.input, "probabilities": topics.output, "deadLetter": topics.dead_letter}
    group = DOCUMENT["operations"]["receiveLogits"]["bindings"]["kafka"]["groupId"]["default"]
    assert group == Settings().kafka.group_id


def test_it_knows_the_reasons_and_the_fields_that_may_leave() -> None:
    assert SCHEMAS["Reason"]["enum"] == [reason.value for reason in Reason]
    assert {output.value for output in Output} <= set(SCHEMAS["ProbabilitiesMap"]["properties"])


def test_it_has_the_headers_of_dead_letters() -> None:
    record = Record(7, 1_000, None, b"value", ())
    refusal = InvalidMessage(Reason.NAN, "element 1 at byte 22 is NaN")
    made = HeaderPolicy((), "group").of_dead_letter(TopicPartition("logits", 0), record, refusal)
    schema = SCHEMAS["DeadLetterHeaders"]
    assert schema["required"] == [name for name, _ in made]
    every = {name: value.decode() for name, value in without_value(made, b"value") if value is not None}
    assert set(schema["properties"]) == set(every)
    jsonschema.Draft7Validator({**schema, "components": DOCUMENT["components"]}).validate(every)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_its_schema_says(name: str) -> None:
    assert all(is_payload(name, example) for example in EXAMPLES[name])
    assert not is_payload(name, 7)
    assert not is_payload(name, [])


def test_the_examples_of_outputs_are_those_of_the_inputs() -> None:
    pipeline = Pipeline(Limits(1 << 20, 1000))
    packed = [msgpack.packb(example, use_single_float=True) for example in EXAMPLES["Logits"]]
    outputs = [unpack(output) for output in pipeline.transform(packed).outputs]
    assert len(outputs) == len(EXAMPLES["Probabilities"])
    for output, example in zip(outputs, EXAMPLES["Probabilities"], strict=True):
        assert is_payload("Probabilities", output)
        close(output, example)


def close(found: Any, shown: Any) -> None:
    """The same structure, and the same numbers but for rounding."""
    if isinstance(shown, dict):
        assert list(found) == list(shown)
        for name in shown:
            close(found[name], shown[name])
    else:
        np.testing.assert_allclose(found, shown, atol=1e-7)
