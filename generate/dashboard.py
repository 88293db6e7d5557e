"""The Grafana dashboard.

It stands on the service's own metrics, not on recording rules, so that it works wherever it is imported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, TypeVar

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

RUNBOOK: Final = "https://github.com/softmax-service/softmax-service/blob/main/docs/runbook.md"
SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
CHOSEN: Final = 'job=~"$job", instance=~"$instance"'
RECENT: Final = "[$__rate_interval]"
SHOWN: Final = "[$__range]"
GRID_WIDTH: Final = 24

# The objective that deploy/prometheus/alerts.yml watches: this share of outputs within so many seconds.
OBJECTIVE_SHARE: Final = 0.99
OBJECTIVE_SECONDS: Final = 0.25

RECORDS_PER_SECOND: Final = "si:records/s"
SECONDS: Final = "s"
BYTES: Final = "bytes"
SHARE: Final = "percentunit"
COUNT: Final = "short"

AnyPanel = timeseries.Panel | stat.Panel | heatmap.Panel | table.Panel
P = TypeVar("P", timeseries.Panel, stat.Panel, heatmap.Panel, table.Panel)


@dataclass(frozen=True)
class Query:
    """An expression, and how its series are called."""

    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Row:
    """A row's title and panels, from left to right and then down."""

    title: str
    panels: tuple[AnyPanel, ...]


def text() -> str:
    """The dashboard as Grafana reads it."""
    return json.dumps(_dashboard(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def panels_of(row: str) -> list[dict[str, str]]:
    """Titles and descriptions of a row's panels."""
    (found,) = [each for each in _rows() if each.title == row]
    built = [panel.build() for panel in found.panels]
    return [{"title": panel.title or "", "description": panel.description or ""} for panel in built]


# --- expressions ------------------------------------------------------------------------------


def _of(metric: str, more: str = "") -> str:
    return f"softmax_{metric}{{{CHOSEN}{more}}}"


def _sum(expression: str, by: str = "") -> str:
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def _rate(metric: str, by: str = "") -> str:
    return _sum(f"rate({_of(metric)}{RECENT})", by)


def _increase(metric: str, by: str = "", window: str = RECENT, more: str = "") -> str:
    return _sum(f"increase({_of(metric, more)}{window})", by)


def _quantile(share: float, histogram: str, by: str = "") -> str:
    return f"histogram_quantile({share}, {_rate(f'{histogram}_bucket', f'{by}, le' if by else 'le')})"


def _quantiles(histogram: str, *shares: float, by: str = "") -> tuple[Query, ...]:
    of = f"{{{{{by}}}}} " if by else ""
    return tuple(Query(_quantile(share, histogram, by), f"{of}p{share * 100:g}") for share in shares)


def _mean(histogram: str, by: str = "") -> str:
    return f"{_rate(f'{histogram}_sum', by)} / {_rate(f'{histogram}_count', by)}"


def _process(metric: str, window: str = "") -> str:
    # Such a metric is every program's: whoever chose all jobs did not mean the others.
    chosen = f"{metric}{{{CHOSEN}}}"
    return f"{f'rate({chosen}{window})' if window else chosen} and on (job, instance) softmax_build_info"


def _budget() -> str:
    within = _increase("end_to_end_latency_seconds_bucket", window=SHOWN, more=f', le="{OBJECTIVE_SECONDS}"')
    every = _increase("end_to_end_latency_seconds_count", window=SHOWN)
    return f"1 - (1 - {within} / {every}) / {1 - OBJECTIVE_SHARE:g}"


# --- panels -----------------------------------------------------------------------------------


def _panel(panel: P, title: str, description: str, unit: str, *queries: Query) -> P:
    panel.title(title).description(description).unit(unit).datasource(SOURCE)
    for ref, query in zip("ABCDEF", queries, strict=False):
        panel.with_target(_target(query, ref))
    return panel


def _target(query: Query, ref: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expression).ref_id(ref).datasource(SOURCE).range()
    return target.legend_format(query.legend or "__auto")


def _steps(*steps: tuple[float | None, str]) -> builders.ThresholdsConfig:
    thresholds = [models.Threshold(value, color) for value, color in steps]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds)


def _number(title: str, description: str, unit: str, *queries: Query) -> stat.Panel:
    panel = _panel(stat.Panel(), title, description, unit, *queries).span(4).height(5)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel.color_mode(shapes.BigValueColorMode.VALUE).graph_mode(shapes.BigValueGraphMode.AREA)
    return panel.thresholds(_steps((None, "text")))


def _lines(title: str, description: str, unit: str, *queries: Query) -> timeseries.Panel:
    panel = _panel(timeseries.Panel(), title, description, unit, *queries).span(8).height(8).min(0)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(shapes.LegendDisplayMode.LIST)
        .placement(shapes.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel.tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING))
    return panel.line_width(1).fill_opacity(8).show_points(shapes.VisibilityMode.NEVER)


def _stacked(title: str, description: str, unit: str, *queries: Query) -> timeseries.Panel:
    panel = _lines(title, description, unit, *queries).fill_opacity(40)
    return panel.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL))


def _bars(title: str, description: str, unit: str, *queries: Query) -> timeseries.Panel:
    return _stacked(title, description, unit, *queries).draw_style(shapes.GraphDrawStyle.BARS).fill_opacity(80)


def _buckets(title: str, description: str, histogram: str, unit: str) -> heatmap.Panel:
    target = _target(Query(_increase(f"{histogram}_bucket", "le"), "{{le}}"), "A").format(PromQueryFormat.HEATMAP)
    panel = _panel(heatmap.Panel(), title, description, COUNT).with_target(target).span(16).height(8)
    panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Turbo").steps(64))
    return panel.y_axis(heatmap.YAxisConfig().unit(unit)).show_tooltip().hide_y_histogram()


def _at_right(panel: timeseries.Panel, legend: str, unit: str) -> timeseries.Panel:
    """Give the series of this name a unit and an axis of its own."""
    axis = [models.DynamicConfigValue("unit", unit), models.DynamicConfigValue("custom.axisPlacement", "right")]
    return panel.override_by_name(legend, axis)


def _versions() -> table.Panel:
    by = "instance, version, python, numpy, aiokafka"
    target = _target(Query(f"max by ({by}) ({_of('build_info')})"), "A").format(PromQueryFormat.TABLE).instant()
    description = "What runs where. Two versions at a time are an upgrade under way, or one that stuck."
    panel = _panel(table.Panel(), "Versions", description, "none").with_target(target).span(8).height(8)
    hide = models.DataTransformerConfig("organize", options={"excludeByName": {"Time": True, "Value": True}})
    return panel.with_transformation(hide)


# --- rows -------------------------------------------------------------------------------------


def _well() -> Row:
    late = _steps((None, "green"), (OBJECTIVE_SECONDS, "red"))
    latency = _quantiles("end_to_end_latency_seconds", 0.5, 0.99)
    return Row(
        "Is it well?",
        (
            _number(
                "Throughput",
                "Outputs that the broker has acknowledged. Falling while lag grows: the service is too slow or stuck. "
                "Falling without lag: less comes in.",
                RECORDS_PER_SECOND,
                Query(_rate("records_produced_total"), "outputs"),
            ),
            _number(
                "Latency",
                "From a record's timestamp to the acknowledgement of its output: the median, and what one in a hundred "
                "exceeds. It includes what the record waited before this service could see it.",
                SECONDS,
                *latency,
            ).thresholds(late),
            _number(
                "Lag",
                "Age of the oldest record that nobody has taken, over all partitions. 0 when everything is taken.",
                SECONDS,
                Query(f"max({_of('consumer_lag_seconds')})", "oldest"),
            ).thresholds(_steps((None, "green"), (10, "orange"), (60, "red"))),
            _number(
                "Dead letters",
                "Records refused in the time shown. Each has no output; `softmax-service dead-letters list` tells why.",
                COUNT,
                Query(_increase("dead_letters_total", window=SHOWN), "refused"),
            ).thresholds(_steps((None, "green"), (1, "orange"))),
            _number(
                "Instances ready",
                "Instances that work or stand by, and all that are scraped. The difference starts, drains or is stuck.",
                COUNT,
                Query(_sum(_of("ready")), "ready"),
                Query(f"count({_of('build_info')})", "all"),
            ),
            _number(
                "Error budget left",
                f"Of the late outputs that the objective allows in the time shown ({OBJECTIVE_SHARE:.0%} within "
                f"{OBJECTIVE_SECONDS} s), the share not yet used. Below 0 the objective is missed.",
                SHARE,
                Query(_budget(), "left"),
            ).thresholds(_steps((None, "red"), (0, "orange"), (0.5, "green"))),
            _lines(
                "Records in and out",
                "Read, answered and refused. In a steady state answered and refused add up to read.",
                RECORDS_PER_SECOND,
                Query(_rate("records_consumed_total"), "read"),
                Query(_rate("records_produced_total"), "answered"),
                Query(_rate("dead_letters_total"), "refused"),
            ).span(12),
            _lines(
                "End-to-end latency",
                "Quantiles of the time from a record's timestamp to its output's acknowledgement. "
                "Above the red line an output misses the objective.",
                SECONDS,
                *_quantiles("end_to_end_latency_seconds", 0.5, 0.9, 0.99),
            )
            .span(12)
            .thresholds(late)
            .thresholds_style(common.GraphThresholdsStyleConfig().mode(shapes.GraphTresholdsStyleMode.DASHED)),
        ),
    )


def _time() -> Row:
    return Row(
        "Where the time goes",
        (
            _stacked(
                "Time in each stage",
                "What a micro-batch spends on average in each stage. `wait` gathers records; `deliver` is the broker's "
                "part; the others are computation.",
                SECONDS,
                Query(_mean("stage_duration_seconds", "stage"), "{{stage}}"),
            ),
            _buckets(
                "Latencies",
                "How many outputs took how long, end to end. Two bands are two kinds of record, or two states.",
                "end_to_end_latency_seconds",
                SECONDS,
            ),
            _lines(
                "Records in a micro-batch",
                "Mean and quantiles. They grow with the load: that is how throughput rises. "
                "At `batch.max_records` the service is saturated.",
                COUNT,
                Query(_mean("batch_records"), "mean"),
                *_quantiles("batch_records", 0.5, 0.99),
            ),
            _lines(
                "Bytes in a micro-batch",
                "Mean and quantiles of the values' bytes, against `batch.max_bytes`.",
                BYTES,
                Query(_mean("batch_bytes"), "mean"),
                *_quantiles("batch_bytes", 0.5, 0.99),
            ),
            _lines(
                "Wait for a micro-batch to fill",
                "From a micro-batch's first record to its closing; bounded by `batch.max_delay_ms`.",
                SECONDS,
                *_quantiles("batch_wait_seconds", 0.5, 0.99),
            ),
            _stacked(
                "What closes micro-batches",
                "`idle` and `delay`: all that had come was taken. `records`, `bytes`, `budget`: a limit was reached, "
                "and more was waiting.",
                "ops",
                Query(_rate("batches_total", "closed_by"), "{{closed_by}}"),
            ).span(12),
            _lines(
                "Records from the future",
                "Outputs acknowledged before their record's own timestamp: a producer's clock is ahead, and latencies "
                "of its records are shown too low.",
                RECORDS_PER_SECOND,
                Query(_rate("clock_skew_records_total"), "skewed"),
            ).span(12),
        ),
    )


def _delivery() -> Row:
    partition = "topic, partition"
    named = "{{topic}}/{{partition}}"
    return Row(
        "Input and delivery",
        (
            _lines(
                "Lag by partition, age",
                "Age of the oldest record not yet taken. "
                "One partition alone: a hot key, or a partition without an owner.",
                SECONDS,
                Query(f"max by ({partition}) ({_of('consumer_lag_seconds')})", named),
            ),
            _lines(
                "Lag by partition, records",
                "Records between the position and the last stable offset. "
                "An open transaction upstream hides what is behind it.",
                COUNT,
                Query(f"max by ({partition}) ({_of('consumer_lag_records')})", named),
            ),
            _at_right(
                _lines(
                    "In flight",
                    "Taken and not yet acknowledged. "
                    "At `limits.in_flight_bytes` reading pauses: the broker is the bottleneck.",
                    COUNT,
                    Query(_sum(_of("in_flight_records")), "records"),
                    Query(_sum(_of("in_flight_bytes")), "bytes"),
                ),
                "bytes",
                BYTES,
            ),
            _lines(
                "Read by partition",
                "Records read. Uneven lines are uneven keys.",
                RECORDS_PER_SECOND,
                Query(_rate("records_consumed_total", partition), named),
            ),
            _lines(
                "Answered by partition",
                "Outputs acknowledged, by the partition they went to.",
                RECORDS_PER_SECOND,
                Query(_rate("records_produced_total", partition), named),
            ),
            _bars(
                "Retries",
                "Waits for a broker that could not serve, by what was tried. A few in a broker's restart are normal.",
                COUNT,
                # Without this a run without trouble would look like one that is not watched.
                Query(f"{_increase('retries_total', 'operation')} or on () vector(0)", "{{operation}}"),
            ),
            _bars(
                "Rebalances",
                "Assignments received. One for each member that comes or goes; more are a storm.",
                COUNT,
                Query(_increase("rebalances_total", "instance"), "{{instance}}"),
            ),
            _stacked(
                "Partitions by instance",
                "Who serves how many. The sum is the number of partitions of the input topic, but during a rebalance.",
                COUNT,
                Query(_sum(_of("assigned_partitions"), "instance"), "{{instance}}"),
            ),
            _stacked(
                "Transactions",
                "With `exactly_once` only: transactions by how they ended. "
                "Aborted ones are done again; their records come late.",
                "ops",
                Query(_rate("transactions_total", "outcome"), "{{outcome}}"),
            ),
            _number(
                "Offsets lost",
                "Positions that had fallen off the log, since the instances started: records that were deleted unread.",
                COUNT,
                Query(_sum(_of("offsets_lost_total")), "lost"),
            ).thresholds(_steps((None, "green"), (1, "red"))),
            _lines(
                "Time since the last progress",
                "Since records were last acknowledged. "
                "Grows when nothing comes in; it is trouble only together with lag.",
                SECONDS,
                Query(f"time() - ({_of('last_progress_timestamp_seconds')} > 0)", "{{instance}}"),
            )
            .span(20)
            .height(5),
        ),
    )


def _content() -> Row:
    share = f"{_rate('records_total', 'path')} / ignoring (path) group_left () {_rate('records_total')}"
    return Row(
        "Content",
        (
            _stacked(
                "Paths that records take",
                "`columnar` is quickest, `general` slowest. "
                "A shift without a release here is a producer that changed its format.",
                SHARE,
                Query(share, "{{path}}"),
            ).max(1),
            _bars(
                "Dead letters by reason",
                "What was refused and why. One reason alone is usually one producer.",
                COUNT,
                # All reasons are exposed from the start: a legend of zeros would hide the one that counts.
                Query(f"{_increase('dead_letters_total', 'reason')} > 0", "{{reason}}"),
            ).no_value("none"),
            _lines(
                "Share of dead letters",
                "Refused of all records read. At `limits.dead_letter_max_ratio` the service ends itself.",
                SHARE,
                Query(f"{_rate('dead_letters_total')} / {_rate('records_consumed_total')}", "refused"),
            ),
            _lines(
                "Confidence of predictions",
                "Probability of the predicted class, quantiles by model, over a sample of records. "
                "A step without a release is drift in the model or its input.",
                SHARE,
                *_quantiles("prediction_confidence", 0.1, 0.5, 0.9, by="model"),
            )
            .span(12)
            .max(1),
            _lines(
                "Entropy of predictions",
                "How undecided predictions are, in nats: 0 is certain. Quantiles by model, over a sample of records.",
                "suffix:nat",
                *_quantiles("prediction_entropy", 0.1, 0.5, 0.9, by="model"),
            ).span(12),
        ),
    )


def _processes() -> Row:
    by = "{{instance}}"
    return Row(
        "Process",
        (
            _lines(
                "CPU",
                "Of one core; an instance uses little more than one, so at 100% it is time for another instance.",
                SHARE,
                Query(_process("process_cpu_seconds_total", RECENT), by),
            ),
            _lines(
                "Resident memory",
                "What the operating system has given. "
                "Freed memory is kept for the next micro-batch: a plateau is normal.",
                BYTES,
                Query(_process("process_resident_memory_bytes"), by),
            ),
            _lines(
                "Event loop lag",
                "How late the event loop runs what is due. "
                "While it is blocked neither heartbeats nor probes are answered.",
                SECONDS,
                *_quantiles("event_loop_lag_seconds", 0.5, 0.99, by="instance"),
            ),
            _lines(
                "Garbage collections",
                "By generation. Of the oldest there should be few: each stops the process.",
                "ops",
                Query(_sum(_process("python_gc_collections_total", RECENT), "generation"), "generation {{generation}}"),
            ),
            _lines(
                "Open files",
                "Sockets and files, and the limit. Steady growth is a leak.",
                COUNT,
                Query(_process("process_open_fds"), f"{by} open"),
                Query(_process("process_max_fds"), f"{by} limit"),
            ),
            _versions(),
        ),
    )


def _rows() -> tuple[Row, ...]:
    return _well(), _time(), _delivery(), _content(), _processes()


# --- the whole --------------------------------------------------------------------------------


class _Starts(models.AnnotationQuery):
    """An annotation with the fields that the SDK does not know."""

    def to_json(self) -> dict[str, object]:
        """As Grafana reads it."""
        return {**super().to_json(), "step": "10s", "textFormat": "{{instance}}", "titleFormat": "Started"}


class _StartsBuilder(builders.AnnotationQuery):
    def __init__(self) -> None:
        self._internal = _Starts()


def _starts() -> builders.AnnotationQuery:
    # By the process's age rather than by changes(): an instance that was not there before has started too.
    expression = f"time() - ({_process('process_start_time_seconds')}) < 30"
    return _StartsBuilder().name("Starts").datasource(SOURCE).expr(expression).icon_color("purple").enable(True)


def _choice(name: str, label: str, query: str) -> builders.QueryVariable:
    everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    variable = builders.QueryVariable(name).label(label).query({"query": query, "refId": name}).datasource(SOURCE)
    variable.multi(True).include_all(True).current(everything)
    return variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)


def _dashboard() -> models.Dashboard:
    board = builders.Dashboard("Softmax Service").uid("softmax-service").tags(["kafka", "softmax"])
    board.description("Logits come from Kafka, probabilities go back: whether, how fast, and why not.")
    board.refresh("10s").time("now-1h", "now").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
    board.with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    board.with_variable(_choice("job", "Job", "label_values(softmax_build_info, job)"))
    board.with_variable(_choice("instance", "Instance", 'label_values(softmax_build_info{job=~"$job"}, instance)'))
    board.annotation(_starts())
    runbook = builders.DashboardLink("Runbook").type(models.DashboardLinkType.LINK).url(RUNBOOK)
    board.link(runbook.icon("doc").tooltip("What each alert means and what to do").target_blank(True))
    for row in _rows():
        board.with_row(builders.Row(row.title))
        for panel in row.panels:
            board.with_panel(panel)
    return _numbered(board.build())


def _numbered(board: models.Dashboard) -> models.Dashboard:
    for number, panel in enumerate(board.panels or (), 1):
        panel.id_val = number
    return board
