"""The settings of model profiles: `models.<name>`, `models.default`, `models_strict`, `output.dtype`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from service.errors import ConfigurationError
from service.settings import ModelSettings, Settings, load
from service.transform.profiles import Profile

if TYPE_CHECKING:
    from pathlib import Path


def refusal(environment: dict[str, str]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(environment=environment)
    return str(caught.value)


def profile_of(settings: Settings, name: str) -> Profile:
    return settings.profiles().select(name.encode(), None).profile


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("temperature", "2.5", 2.5),
        ("classes", "3", 3),
        ("labels", '["cat", "dog"]', ("cat", "dog")),
        ("masked", "[0, 7]", (0, 7)),
        ("outputs", '["entropy", "predicted"]', ("entropy", "predicted")),
    ],
)
def test_each_setting_of_a_model_reaches_its_profile(field: str, text: str, value: object) -> None:
    """A setting given in the environment is found in the profile that the transform uses."""
    profile = profile_of(load(environment={f"SOFTMAX_MODELS__RESNET__{field.upper()}": text}), "resnet")
    assert getattr(profile, field) == value
    assert getattr(Profile(), field) != value


def test_top_k_is_set_together_with_its_output() -> None:
    """`top_k` and the output of that name go together."""
    names = {"TOP_K": "5", "OUTPUTS": '["top_k"]'}
    settings = load(environment={f"SOFTMAX_MODELS__A__{name}": text for name, text in names.items()})
    assert profile_of(settings, "a").top_k == 5


def test_every_setting_of_a_model_is_one_of_its_profile() -> None:
    """No setting of a model is without effect."""
    assert set(ModelSettings.model_fields) == set(Profile.__dataclass_fields__) - {
        "dtype",
        "packed_labels",
        "needs_predicted",
        "needs_distances",
    }


def test_names_that_the_environment_cannot_spell_are_given_in_the_file(tmp_path: Path) -> None:
    """The file takes any model name; the environment's are in lower case."""
    file = tmp_path / "softmax.yaml"
    file.write_text("models: {ResNet-50/v2: {temperature: 3}, default: {temperature: 2}}\n")
    settings = load(file, {"SOFTMAX_MODELS__DEFAULT__TEMPERATURE": "4"})
    assert profile_of(settings, "ResNet-50/v2").temperature == 3
    assert profile_of(settings, "another").temperature == 4


def test_labels_are_read_from_a_file_with_one_a_line(tmp_path: Path) -> None:
    """A file may end with or without a newline, and with those of Windows."""
    for content in (b"cat\ndog\n", b"cat\ndog", b"cat\r\ndog\r\n"):
        (tmp_path / "labels").write_bytes(content)
        settings = load(environment={"SOFTMAX_MODELS__A__LABELS": str(tmp_path / "labels")})
        assert profile_of(settings, "a").labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"cat\n\ndog\n", "line 2"), (b"\xff\n", "UTF-8"), (None, "cannot read"), (b"\x00" * 2000, "1024")],
)
def test_a_file_of_labels_that_cannot_serve_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    """An empty line, bytes that are no text, a missing file and a monstrous label are told with setting and cause."""
    file = tmp_path / "labels"
    if content is not None:
        file.write_bytes(content)
    told = refusal({"SOFTMAX_MODELS__A__LABELS": str(file)})
    assert "models.a" in told
    assert said in told
    assert "SOFTMAX_MODELS__A__LABELS" in told


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("temperature", "0", "temperature"),
        ("temperature", "-1", "temperature"),
        ("temperature", "nan", "temperature"),
        ("temperature", "inf", "temperature"),
        ("temperature", "1e-50", "temperature"),
        ("classes", "0", "classes"),
        ("masked", "[-1]", "masked"),
        ("outputs", "[]", "at least one"),
        ("outputs", '["predicted", "predicted"]', "twice"),
        ("outputs", '["probability"]', "probability"),
        ("outputs", '["label"]', "labels"),
        ("outputs", '["top_k"]', "top_k"),
        ("top_k", "3", "top_k"),
        ("temprature", "1", "models.a.temperature"),
    ],
)
def test_a_setting_of_a_model_that_makes_no_sense_is_refused(field: str, text: str, said: str) -> None:
    """The message names the model and what is wrong."""
    told = refusal({f"SOFTMAX_MODELS__A__{field.upper()}": text})
    assert "models.a" in told
    assert said in told
    assert f"SOFTMAX_MODELS__A__{field.upper()}" in told


def test_labels_and_classes_must_agree() -> None:
    """Two labels do not name three classes."""
    told = refusal({"SOFTMAX_MODELS__A__LABELS": '["x", "y"]', "SOFTMAX_MODELS__A__CLASSES": "3"})
    assert "2 labels" in told


def test_strictness_refuses_only_names_without_a_profile() -> None:
    """`default` and a message without a name are always served."""
    strict = load(environment={"SOFTMAX_MODELS_STRICT": "true", "SOFTMAX_MODELS__A__TEMPERATURE": "2"}).profiles()
    assert [strict.select(name, None).refused for name in (b"a", b"default", b"b", None)] == [False, False, True, False]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_forced_width_applies_to_every_model(dtype: str) -> None:
    """`output.dtype` is one setting for all."""
    settings = load(environment={"SOFTMAX_OUTPUT__DTYPE": dtype, "SOFTMAX_MODELS__A__TEMPERATURE": "2"})
    assert {profile_of(settings, name).dtype for name in ("a", "default", "other")} == {dtype}


def test_effective_settings_show_the_models(tmp_path: Path) -> None:
    """`config show` tells the labels that were read, not only where from."""
    (tmp_path / "labels").write_text(f"cat{os.linesep}dog")
    shown = load(environment={"SOFTMAX_MODELS__A__LABELS": str(tmp_path / "labels")}).shown()
    assert shown["models"]["a"]["labels"] == ["cat", "dog"]
