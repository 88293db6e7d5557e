"""`docs/configuration.md`: every setting, its name in the environment, what it may be, its default, and what it does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from service.settings import NEEDED_BY_SASL, ModelSettings, Section, Settings, environment_name
from service.transform.profiles import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

MIB: Final = 1 << 20

# What a setting may be, where its JSON schema does not say it all.
MAY_BE: Final = {
    "kafka.bootstrap_servers": "`host:port`, several separated by commas",
    "kafka.sasl_oauth_token_url": "http or https URL",
    "tracing.endpoint": "http or https URL",
    "models.<name>.temperature": "number over 0",
    "models.<name>.classes": "integer, 1 or more",
    "models.<name>.labels": "list of texts of 1 to 1024 bytes, or a file's name",
    "models.<name>.masked": "list of integers, 0 or more",
    "models.<name>.top_k": "integer, 1 or more",
    "models.<name>.outputs": f"list of {', '.join(f'`{output.value}`' for output in Output)}",
    **{f"topics.{role}": "1 to 249 letters, digits, `.`, `_`, `-`" for role in ("input", "output", "dead_letter")},
}
DEFAULTS: Final = {"kafka.client_id": "the host's name"}
# Where more is said about a section.
MORE: Final = {
    "topics": "[delivery](delivery.md#dead-letters)",
    "delivery": "[delivery](delivery.md), and how to choose the times: [sizing](sizing.md)",
    "batch": "[sizing](sizing.md)",
    "limits": "[sizing](sizing.md)",
    "output": "[wire format](wire-format.md#element-types)",
    "models": "[wire format](wire-format.md#model-profiles)",
    "http": "[observability](observability.md)",
    "metrics": "[observability](observability.md)",
    "tracing": "[observability](observability.md#traces)",
    "log": "[log events](events.md)",
}
UNITS: Final = {"ms": "ms", "bytes": "bytes", "seconds": "seconds"}

BEGINNING: Final = """\
# Configuration

<!-- Made by scripts/generate from the code. -->

Settings come from three places, and the later wins, setting by setting: the defaults below, a YAML file given with
`--config`, the environment. They are read once, at the start.

```yaml
kafka:
  bootstrap_servers: broker-1:9092,broker-2:9092
  group_id: softmax-images
topics:
  input: images.logits
  output: images.probabilities
  dead_letter: images.dead-letter
batch:
  max_delay_ms: 5
```

The same from the environment: `SOFTMAX_`, then the setting's path in capitals, with `__` between its parts.

```sh
export SOFTMAX_KAFKA__BOOTSTRAP_SERVERS=broker-1:9092,broker-2:9092
export SOFTMAX_KAFKA__GROUP_ID=softmax-images
export SOFTMAX_TOPICS__INPUT=images.logits
export SOFTMAX_TOPICS__OUTPUT=images.probabilities
export SOFTMAX_TOPICS__DEAD_LETTER=images.dead-letter
export SOFTMAX_BATCH__MAX_DELAY_MS=5
```

- A name that is no setting is an error, in the file and, if it begins with `SOFTMAX_`, in the environment. The message
  names the closest one. `SOFTMAX_CACHE_DIR` (where the embedded Kafka's jars are kept) and `SOFTMAX_TEST_*` are excepted.
- A list in the environment is JSON: `SOFTMAX_HEADERS__DROP='["ce_*"]'`. It takes the place of the file's, whole.
- Profiles can be set there too, `SOFTMAX_MODELS__PETS__TEMPERATURE=2`, if their names are in small letters.
- Names of files are relative to the directory in which the process starts.

## Look at them

```console
$ softmax-service config check --config settings.yaml
The settings are right.
$ softmax-service config show
$ softmax-service config schema
```

`check` names every setting that is wrong, where it comes from and why, and exits with 2, as each other command does that
is given wrong settings. `show` prints the effective tree as YAML, with `**********` for each secret. `schema` prints the
JSON schema of the file, with every description and bound, for an editor that completes YAML by a schema. None of them
asks Kafka: `softmax-service check` does.

## Secrets

Each of {secrets} can be
a file, as container platforms mount secrets: the environment variable's name with `_FILE` behind it names it. Line ends
at its end are cut off. To give both is an error.
In the YAML file there is no such form.

```sh
export SOFTMAX_KAFKA__SECURITY_PROTOCOL=SASL_SSL
export SOFTMAX_KAFKA__SASL_MECHANISM=SCRAM-SHA-512
export SOFTMAX_KAFKA__SASL_USERNAME=softmax
export SOFTMAX_KAFKA__SASL_PASSWORD_FILE=/run/secrets/kafka-password
export SOFTMAX_KAFKA__SSL_CAFILE=/etc/ssl/kafka-ca.pem
```

A secret is shown nowhere: not by `config show`, not on the status page, not in a log of any level ([security](../SECURITY.md)).

## What must agree

| if | then |
|---|---|
{sasl}
| `kafka.ssl_keyfile` is given | `kafka.ssl_certfile` is too |
| always | the three topics are different ones |
| always | `delivery.drain_timeout_ms` is less than `kafka.session_timeout_ms` |
| `delivery.guarantee` is `exactly_once` | `kafka.idempotent_producer` is true and `kafka.isolation_level` is `read_committed` |
| a profile's `outputs` has `label` | it has `labels`; with `classes` too, as many as that |
| a profile's `outputs` has `top_k` | it has `top_k`, and only then |

Against Kafka, `softmax-service check` and each start look whether the topics exist, whether the output topic has partitions
enough for `delivery.partitioning: same`, and whether a dead letter of the longest record fits its topic.
"""


def text() -> str:
    """The page."""
    return "\n".join(_lines()) + "\n"


def settings() -> Iterator[tuple[str, FieldInfo, dict[str, Any]]]:
    """Path, field and JSON schema of each setting, sections in their order; a profile's as `models.<name>.…`."""
    for section, fields in _sections():
        schema = fields.model_json_schema()["properties"]
        for name, field in fields.model_fields.items():
            if fields is not Settings or section == name:
                yield section if fields is Settings else f"{section}.{name}", field, schema[name]


def _sections() -> Iterator[tuple[str, type[Section]]]:
    for name, field in Settings.model_fields.items():
        if name == "models":
            yield "models.<name>", ModelSettings
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield name, field.annotation
        else:
            yield name, Settings


def _lines() -> Iterator[str]:
    yield BEGINNING.format(secrets=_secrets(), sasl="\n".join(_needed_by_sasl()))
    yield "## All settings"
    heading = ""
    for path, field, schema in settings():
        section = path.split(".")[0].removesuffix("_strict")
        if section != heading:
            heading = section
            yield from _heading(section)
        default = DEFAULTS.get(path) or _default(field.get_default(), path)
        meaning = " ".join((field.description or "").split())
        yield f"| `{path}`<br>`{environment_name(path)}` | {_may_be(path, schema)} | {default} | {meaning} |"


def _secrets() -> str:
    *others, last = [f"`{path}`" for path, _, schema in settings() if '"password"' in json.dumps(schema)]
    return f"{', '.join(others)} and {last}"


def _needed_by_sasl() -> Iterator[str]:
    for mechanism, names in NEEDED_BY_SASL.items():
        needed = ", ".join(f"`kafka.{name}`" for name in names)
        yield f"| `kafka.security_protocol` begins with `SASL`, `kafka.sasl_mechanism` is `{mechanism}` | given: {needed} |"


def _heading(section: str) -> Iterator[str]:
    fields = ModelSettings if section == "models" else Settings.model_fields[section].annotation
    yield ""
    yield f"### {section}"
    yield ""
    more = f" See {MORE[section]}." if section in MORE else ""
    yield " ".join(str(fields.__doc__).split()) + more
    yield ""
    yield "| setting, and its name in the environment | may be | default | |"
    yield "|---|---|---|---|"


def _may_be(path: str, schema: dict[str, Any]) -> str:
    if path in MAY_BE:
        return MAY_BE[path]
    (schema,) = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "items" in schema:
        return "list of texts"
    kind = {"password": "text, secret", "path": "a file's name"}.get(schema.get("format", ""))
    names = {"boolean": "`true`, `false`", "string": "text", "integer": "integer", "number": "number"}
    unit = UNITS.get(path.rpartition("_")[2], "")
    return (kind or unit or names[schema["type"]]) + _range(schema)


def _range(schema: dict[str, Any]) -> str:
    least, over, most = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if least is not None and most is not None:
        return f", {least:,} to {most:,}"
    if least is not None:
        return f", {least:,} or more"
    if over is not None:
        return f", over {over:,}" + (f", at most {most:,}" if most is not None else "")
    return ""


def _default(value: object, path: str) -> str:
    if value in (None, "", (), {}):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and path.endswith("_bytes"):
        return f"{value:,} ({value // MIB} MiB)"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) or path == "http.port" else f"{value:,}"
    return f"`{', '.join(map(str, value)) if isinstance(value, tuple) else value}`"
