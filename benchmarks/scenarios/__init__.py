"""The table of scenarios: the load, the servers that run it, and the goals. Each kind of load has its own file."""

from __future__ import annotations

from typing import Final

from benchmarks.scenarios.cancel import CancelLatency
from benchmarks.scenarios.fan_out import FanOut
from benchmarks.scenarios.first_byte import FirstByte
from benchmarks.scenarios.flood import Flood
from benchmarks.scenarios.growth import GrowingLog, GrowingStreams
from benchmarks.scenarios.idle import Idle
from benchmarks.scenarios.mirrors import Mirrors
from benchmarks.scenarios.mixed import Mixed
from benchmarks.scenarios.pace import CPU, MEMORY, P50, P99, RATE, Pace
from benchmarks.scenarios.proxy import ADDED_P50, ADDED_P99, Proxy
from benchmarks.scenarios.resume import Resume
from benchmarks.scenarios.scenario import Goal, Metric, Scenario
from benchmarks.scenarios.stalled import Stalled
from benchmarks.scenarios.start_rate import StartRate
from benchmarks.scenarios.storm import Storm
from benchmarks.servers import ELSEWHERE, OURS, REDIS

_ALL: Final = ("crucible", "crucible-plain", "sse-starlette", "fastapi", "aiohttp-sse", "quart-trio", "node")
# Without the plain quart-trio route. It is never the best Python rival, and would take most of the time here.
_MOST: Final = ("crucible", "crucible-plain", "sse-starlette", "fastapi", "aiohttp-sse", "node")
_OURS: Final = ("crucible", "crucible-plain")
_LOGS: Final = (OURS, REDIS, ELSEWHERE)  # the log in memory, in Redis, and in Redis with the readers in another process
_FAST: Final = ("crucible", "sse-starlette", "aiohttp-sse", "node")
_GATEWAYS: Final = ("crucible", "crucible-native", "aiohttp-gateway", "fastapi-gateway", "litellm", "nginx")

_TOTAL: Final = Metric(name="total_us", label="CPU per token of all processes", unit="µs")
_EACH_CPU: Final = (
    Metric(name="cpu_us", label="of the generating process", unit="µs"),
    Metric(name="other_us", label="of the process with the readers", unit="µs"),
    Metric(name="redis_us", label="of redis-server", unit="µs"),
)

BUFFER: Final = 64  # crucible_trio's default, and the size of every rival's queue

_LATENCY_GOALS: Final = (
    # Compared with the rival that uses the least CPU.
    Goal(metric="p50_ms", bound=1.0, rival_by="cpu_us"),
    Goal(metric="p99_ms", bound=1.0, rival_by="cpu_us"),
)


def _cpu_goal(bound: float) -> Goal:
    return Goal(metric="cpu_us", bound=bound)


def _rate(name: str, label: str) -> Metric:
    return Metric(name=name, label=label, unit="records/s", better="higher")


def _milliseconds(name: str, label: str) -> Metric:
    return Metric(name=name, label=label, unit="ms")


def _redis_cost(here: float, elsewhere: float) -> tuple[Goal, ...]:
    """The most that a token may cost, compared with the log in memory. Redis is included."""
    return (
        Goal(metric="total_us", bound=here, rival=OURS, server=REDIS),
        Goal(metric="total_us", bound=elsewhere, rival=OURS, server=ELSEWHERE),
    )


def _idle(name: str, label: str) -> tuple[Metric, ...]:
    """Memory and CPU of one process of a deployment."""
    return (
        Metric(name=f"{name}many_kib", label=f"memory per stream of {label}", unit="KiB"),
        Metric(name=f"{name}cpu_percent", label=f"CPU of {label}", unit="% of a core"),
    )


def _proxy(streams: int) -> Scenario:
    return Scenario(
        name=f"proxy-{streams}",
        title=f"Proxy: in front of a model server, {streams} streams, 50 tokens/s each",
        run=Proxy(pace=Pace(streams=streams, rate=50)),
        metrics=(CPU, ADDED_P50, ADDED_P99, RATE, MEMORY),
        goals=(
            _cpu_goal(1.0),
            Goal(metric="cpu_us", bound=0.1, rival="litellm"),
            Goal(metric="added_p99_ms", bound=0.0, of="difference", rival_by="cpu_us"),
        ),
        servers=_GATEWAYS,
        main=streams == 100,
    )


SCENARIOS: Final = (
    _proxy(100),
    _proxy(400),
    Scenario(
        name="pace",
        title="Model pace: 200 streams, 50 tokens/s each, one timer feeding all",
        run=Pace(streams=200, rate=50),
        metrics=(CPU, P50, P99, RATE),
        goals=(_cpu_goal(0.7), *_LATENCY_GOALS),
        servers=_ALL,
        main=True,
    ),
    Scenario(
        name="timers",
        title="Model pace with one timer per stream",
        run=Pace(kind="timer", streams=200, rate=50),
        metrics=(CPU, P50, P99, RATE),
        goals=(_cpu_goal(1.0), *_LATENCY_GOALS),
        servers=_MOST,
        main=True,
    ),
    Scenario(
        name="relay",
        title="Relay: `crucible serve --base-url`, 100 streams, 50 tokens/s each",
        run=Proxy(pace=Pace(streams=100, rate=50), wire="native", compare_direct=False),
        metrics=(CPU, P50, P99, RATE, MEMORY),
        goals=(),
        servers=("crucible",),
    ),
    Scenario(
        name="many",
        title="Many: 1,000 streams, 20 tokens/s each, one timer",
        run=Pace(streams=1000, rate=20),
        metrics=(CPU, P50, P99, RATE, MEMORY),
        goals=(_cpu_goal(0.7), *_LATENCY_GOALS, Goal(metric="tokens_per_s", bound=19_000, of="absolute")),
        servers=_MOST,
    ),
    Scenario(
        name="overload",
        title="Overload: 1,000 streams, 100 tokens/s each, on one core",
        run=Pace(streams=1000, rate=100, warm_up=0.4, window=1.4, tail=0.2),
        metrics=(RATE, P50, P99, MEMORY, CPU),
        goals=(
            Goal(metric="tokens_per_s", bound=2.0),
            Goal(metric="p99_ms", bound=1.0, rival_by="tokens_per_s"),
        ),
        servers=_MOST,
    ),
    Scenario(
        name="flood-1",
        title="Flood: a model that never waits, 1 stream",
        run=Flood(streams=1),
        metrics=(RATE, CPU),
        goals=(Goal(metric="tokens_per_s", bound=3.0),),
        servers=_ALL,
        main=True,
    ),
    Scenario(
        name="flood-50",
        title="Flood: a model that never waits, 50 streams",
        run=Flood(streams=50),
        metrics=(RATE, CPU),
        goals=(Goal(metric="tokens_per_s", bound=3.0),),
        servers=_MOST,
    ),
    Scenario(
        name="resume",
        title="Resume: reconnect at 0 and in the middle of a log of 10,000 records",
        run=Resume(records=10_000),
        metrics=(
            _rate("records_per_s", "replay from the start"),
            _rate("half_records_per_s", "replay from the middle"),
            _milliseconds("whole_ms", "time to catch up from the start"),
            _milliseconds("half_ms", "time to catch up from the middle"),
        ),
        goals=(Goal(metric="records_per_s", bound=10.0), Goal(metric="half_records_per_s", bound=10.0)),
        servers=_MOST,
        main=True,
    ),
    Scenario(
        name="fan-out",
        title="Fan-out: 100 readers on one stream, 50 tokens/s",
        run=FanOut(readers=100, rate=50),
        metrics=(CPU, P50, P99, RATE),
        goals=(_cpu_goal(0.5),),
        servers=_ALL,
        main=True,
    ),
    Scenario(
        name="storm",
        title="Storm: 1,000 readers are cut together and resume 200 records back, 100 are not cut",
        run=Storm(cut=1000, healthy=100, rate=10, behind=200),
        metrics=(
            _milliseconds("caught_up_ms", "all have caught up after"),
            Metric(name="cpu_s", label="server CPU in the 8 s after the cut", unit="s"),
            _milliseconds("p50_ms", "token latency of the others p50"),
            _milliseconds("p99_ms", "token latency of the others p99"),
        ),
        goals=(Goal(metric="caught_up_ms", bound=0.5), Goal(metric="p99_ms", bound=1.0, rival_by="caught_up_ms")),
        servers=_FAST,
    ),
    Scenario(
        name="mixed",
        title="Mixed: 500 streams, 20 % slow readers, 5 % cut every second, 5 % cancelled",
        run=Mixed(streams=500, slow=0.2, cut=0.05, cancelled=0.05, rate=20),
        metrics=(CPU, P50, P99),
        goals=(),
        servers=("crucible", "sse-starlette", "aiohttp-sse"),
    ),
    Scenario(
        name="start-rate",
        title="Start rate: 50 clients that start one stream after another",
        run=StartRate(clients=50),
        metrics=(
            Metric(name="streams_per_s", label="streams started", unit="1/s", better="higher"),
            _milliseconds("record_p50_ms", "first record p50"),
            _milliseconds("record_p99_ms", "first record p99"),
        ),
        goals=(),
        servers=_FAST,
    ),
    Scenario(
        name="first-byte",
        title="First byte: 100 simultaneous requests, a model that answers immediately",
        run=FirstByte(simultaneous=100, times=5),
        metrics=(
            _milliseconds("record_p50_ms", "first record p50"),
            _milliseconds("record_p99_ms", "first record p99"),
            _milliseconds("token_p50_ms", "first token p50"),
            _milliseconds("token_p99_ms", "first token p99"),
        ),
        goals=(Goal(metric="token_p50_ms", bound=1.5), Goal(metric="token_p99_ms", bound=1.5)),
        servers=_ALL,
        main=True,
    ),
    Scenario(
        name="cancel",
        title="Cancel: 200 live streams at 50 tokens/s, clients leave one after another",
        run=CancelLatency(streams=200, rate=50),
        metrics=(
            _milliseconds("p50_ms", "cancel latency p50"),
            _milliseconds("p99_ms", "cancel latency p99"),
            Metric(name="unseen", label="models not cancelled within 5 s", unit="of 200"),
        ),
        goals=(Goal(metric="p99_ms", bound=5.0, of="absolute"),),
        servers=_ALL,
        main=True,
    ),
    Scenario(
        name="stalled",
        title="Stalled: a client that stops reading, a model that never waits",
        run=Stalled(),
        metrics=(
            Metric(name="held", label="server buffer", unit="tokens"),
            Metric(name="kernel", label="kernel buffer", unit="tokens"),
        ),
        goals=(Goal(metric="held", bound=2 * BUFFER + 1, of="absolute"),),
        servers=_ALL,
        main=True,
    ),
    Scenario(
        name="idle",
        title="Idle: 1,000 and 5,000 open streams without tokens",
        run=Idle(few=1000, many=5000),
        metrics=(
            Metric(name="few_kib", label="memory per stream (of 1,000)", unit="KiB"),
            Metric(name="many_kib", label="memory per stream (of 5,000)", unit="KiB"),
            Metric(name="cpu_percent", label="CPU with 5,000 streams", unit="% of a core"),
        ),
        goals=(
            Goal(metric="few_kib", bound=1.2),
            Goal(metric="many_kib", bound=1.2),
            Goal(metric="cpu_percent", bound=1.0),
        ),
        servers=_MOST,
        most_rounds=3,
    ),
    Scenario(
        name="growth-streams",
        title="Cost by number of streams: 800 tokens/s in total, one timer per stream",
        run=GrowingStreams(sizes=(1, 10, 100, 1000), reference=10, total_rate=800),
        metrics=(
            *(
                Metric(name=str(size), label=f"CPU per token (streams: {size:,})", unit="µs")
                for size in (1, 10, 100, 1000)
            ),
            Metric(name="worst", label="worst ratio to 10 streams", unit="times"),
        ),
        goals=(Goal(metric="worst", bound=1.3, of="absolute"),),
        servers=(*_OURS, "sse-starlette"),
        most_rounds=3,
    ),
    Scenario(
        name="growth-log",
        title="Cost by length of log: one stream, 800 tokens/s",
        run=GrowingLog(sizes=(100, 1000, 10_000, 100_000), reference=1000, rate=800),
        metrics=(
            *(
                Metric(name=str(size), label=f"CPU per token (records: {size:,})", unit="µs")
                for size in (100, 1000, 10_000, 100_000)
            ),
            Metric(name="worst", label="worst ratio to 1,000 records", unit="times"),
        ),
        goals=(Goal(metric="worst", bound=1.3, of="absolute"),),
        servers=_OURS,
        most_rounds=3,
    ),
    Scenario(
        name="redis-pace",
        title="Log in Redis: model pace, 200 streams, 50 tokens/s each, one timer feeding all",
        run=Pace(streams=200, rate=50),
        metrics=(_TOTAL, *_EACH_CPU, P50, P99, RATE),
        goals=(*_redis_cost(2.5, 4.0), Goal(metric="p99_ms", bound=15.0, of="absolute", server=REDIS)),
        servers=_LOGS,
        main=True,
        most_rounds=3,
    ),
    Scenario(
        name="redis-fan-out",
        title="Log in Redis: fan-out, 100 readers on one stream, 50 tokens/s",
        run=FanOut(readers=100, rate=50),
        metrics=(_TOTAL, *_EACH_CPU, P50, P99, RATE),
        goals=_redis_cost(2.5, 4.0),
        servers=_LOGS,
        most_rounds=3,
    ),
    Scenario(
        name="redis-resume",
        title="Log in Redis: resume from logs of 10,000 records",
        run=Resume(records=10_000, streams=3, times=2),
        metrics=(
            _rate("first_records_per_s", "replay to the first reader in the process"),
            _rate("records_per_s", "replay to the next readers"),
            _rate("half_records_per_s", "replay from the middle"),
            _milliseconds("first_ms", "time to catch up, first reader"),
            _milliseconds("whole_ms", "time to catch up, next readers"),
        ),
        goals=(
            Goal(metric="first_records_per_s", bound=10.0, server=ELSEWHERE),
            Goal(metric="records_per_s", bound=10.0, server=ELSEWHERE),
        ),
        servers=(*_LOGS, "sse-starlette", "aiohttp-sse"),
        most_rounds=3,
    ),
    Scenario(
        name="redis-idle",
        title="Log in Redis: 1,000 open streams without tokens",
        run=Idle(few=1000, many=1000),
        metrics=(
            *_idle("", "the generating process"),
            *_idle("other_", "the process with the readers"),
            *_idle("redis_", "redis-server"),
        ),
        goals=(),
        servers=_LOGS,
        most_rounds=2,
    ),
    Scenario(
        name="redis-mirrors",
        title="Log in Redis: memory of a mirror, 200 streams with 100 records each",
        run=Mirrors(streams=200, records=100),
        metrics=(
            Metric(name="mirror_kib", label="memory per mirror", unit="KiB"),
            Metric(name="frames_kib", label="of which are bytes of its records", unit="KiB"),
            Metric(name="beyond_kib", label="the rest", unit="KiB"),
        ),
        goals=(Goal(metric="beyond_kib", bound=20.0, of="absolute", server=ELSEWHERE),),
        servers=(ELSEWHERE,),
        most_rounds=3,
    ),
)
