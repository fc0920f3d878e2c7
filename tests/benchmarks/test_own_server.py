"""Scenarios run against real server processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.client.load import Load
from benchmarks.deployment import deployed
from benchmarks.scenarios.fan_out import FanOut
from benchmarks.scenarios.idle import Idle
from benchmarks.scenarios.mirrors import Mirrors
from benchmarks.scenarios.mixed import Mixed
from benchmarks.scenarios.pace import Pace
from benchmarks.scenarios.proxy import Proxy
from benchmarks.scenarios.resume import Resume
from benchmarks.scenarios.start_rate import StartRate
from benchmarks.scenarios.storm import Storm
from benchmarks.servers import ELSEWHERE, OURS, REDIS, SERVERS
from benchmarks.spec import Spec

pytestmark = pytest.mark.slow


def test_a_scenario_measures_the_crucible_server() -> None:
    figures = Pace(streams=3, rate=20, warm_up=0.3, window=2.0, tail=3.0)(SERVERS[OURS])
    assert figures["cpu_us"] > 0
    assert figures["tokens_per_s"] > 0
    assert figures["p50_ms"] <= figures["p99_ms"]


@pytest.mark.parametrize("name", ["crucible", "crucible-native"])
def test_a_proxy_is_measured_between_a_model_server_and_the_client(name: str) -> None:
    pace = Pace(streams=3, rate=20, warm_up=0.3, window=3.0, tail=3.0)
    figures = Proxy(pace=pace)(SERVERS[name])
    assert figures["tokens_per_s"] > 0
    assert {"added_p50_ms", "added_p99_ms"} <= figures.keys()


def test_readers_that_are_cut_together_catch_up() -> None:
    figures = Storm(cut=5, healthy=2, rate=20, behind=10, window=8.0)(SERVERS[OURS])
    assert figures["caught_up_ms"] > 0


def test_a_mix_of_readers_loses_nothing() -> None:
    figures = Mixed(streams=20, slow=0.2, cut=0.1, cancelled=0.1, rate=20, window=4)(SERVERS[OURS])
    assert figures["cpu_us"] > 0


def test_streams_are_started_one_after_another() -> None:
    figures = StartRate(clients=2, warm_up=2.0, window=4.0)(SERVERS[OURS])
    assert figures["streams_per_s"] > 0


@pytest.fixture
def redis_program(need_program: Callable[[str], str]) -> None:
    pytest.importorskip("hiredis")
    need_program("redis-server")


@pytest.mark.usefixtures("redis_program")
@pytest.mark.parametrize(("name", "processes"), [(REDIS, {"redis"}), (ELSEWHERE, {"redis", "other"})])
def test_the_cpu_time_of_every_process_of_a_deployment_is_measured(name: str, processes: set[str]) -> None:
    for run in (Pace(streams=3, rate=20, warm_up=0.1, window=3.0, tail=3.0), FanOut(readers=3, rate=20, window=3.0)):
        figures = run(SERVERS[name])
        each = {key: figures[key] for key in figures if key.endswith("_us") and key != "total_us"}
        assert each.keys() == {"cpu_us", *(f"{process}_us" for process in processes)}
        assert all(each.values())
        assert figures["total_us"] == pytest.approx(sum(each.values()))


@pytest.mark.usefixtures("redis_program")
def test_readers_elsewhere_are_in_the_process_that_does_not_generate() -> None:
    with (
        deployed(SERVERS[ELSEWHERE]) as process,
        Load(process.reader_port, start_port=process.port) as load,
    ):
        readers = load.start([Spec(kind="batch", name=f"s{n}", tokens=5) for n in range(3)])
        assert load.readers == readers
        process.ask("/bench/go")
        load.finish(30.0)
        assert [reader.check(5) for reader in readers] == [5, 5, 5]
        assert {reader.sock.getpeername()[1] for reader in readers} == {process.beside["other"].port}
        assert (process.made, process.beside["other"].made) == (15, 0)


@pytest.mark.usefixtures("redis_program")
@pytest.mark.parametrize("name", [REDIS, ELSEWHERE])
def test_a_long_log_in_redis_has_one_record_for_each_token(name: str) -> None:
    figures = Resume(records=300, streams=2, times=1)(SERVERS[name])
    assert figures["first_ms"] > 0
    assert figures["half_records_per_s"] > 0


@pytest.mark.usefixtures("redis_program")
def test_silent_streams_are_measured_in_every_process() -> None:
    figures = Idle(few=20, many=400, window=0.5)(SERVERS[ELSEWHERE])
    assert all(figures[f"{process}many_kib"] > 0 for process in ("", "other_", "redis_"))
    assert figures.keys() >= {"cpu_percent", "other_cpu_percent", "redis_cpu_percent"}


@pytest.mark.usefixtures("redis_program")
def test_a_mirror_is_weighed_against_the_bytes_of_its_records() -> None:
    figures = Mirrors(streams=10, records=20)(SERVERS[ELSEWHERE])
    assert 20 * 100 < figures["frames_kib"] * 1024 < 20 * 200
    assert figures["beyond_kib"] == pytest.approx(figures["mirror_kib"] - figures["frames_kib"])
