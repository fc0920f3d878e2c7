import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import pytest

from crucible_trio.config import Settings
from crucible_trio.errors import ConfigError
from crucible_trio.request import Sampling
from crucible_trio.settings import ApiSettings, ServerSettings, load_settings
from crucible_trio.settings.loading import GROUPS
from crucible_trio.settings.upstreams import SamplingField, UpstreamSettings


def load(environment: dict[str, str], **options: Any) -> SimpleNamespace:
    """All settings in one object. Their names differ between the groups."""
    settings = load_settings(environment, **options)
    groups = (settings.engine, settings.pipeline, settings.apis, settings.server)
    return SimpleNamespace(**{name: value for group in groups for name, value in msgspec.structs.asdict(group).items()})


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "crucible.toml"
    path.write_text('buffer_tokens = 2\ngrace_seconds = 2\nretry_milliseconds = 2\n[keys]\nalice = "a"\n')
    return path


def test_arguments_win_over_the_environment_over_the_file_over_the_defaults(config_file: Path) -> None:
    environment = {"CRUCIBLE_BUFFER_TOKENS": "3", "CRUCIBLE_GRACE_SECONDS": "3", "PATH": "/bin"}
    settings = load(environment, config_file=config_file, buffer_tokens=4, grace_seconds=None)
    assert settings.buffer_tokens == 4
    assert settings.grace_seconds == 3
    assert settings.retry_milliseconds == 2
    assert settings.heartbeat_seconds == 10
    assert settings.keys == {"alice": "a"}


def test_the_environment_may_name_the_file(config_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("buffer_tokens = 9")
    environment = {"CRUCIBLE_CONFIG": str(other)}
    assert load(environment).buffer_tokens == 9
    assert load(environment, config_file=config_file).buffer_tokens == 2


def test_without_any_setting_the_documented_defaults_apply() -> None:
    settings = load({})
    assert (settings.buffer_tokens, settings.grace_seconds, settings.retention_seconds) == (64, 120, 600)
    assert (settings.first_token_seconds, settings.idle_seconds, settings.total_seconds) == (300, 120, 3600)
    assert (settings.stream_log_bytes, settings.total_log_bytes) == (16 * 2**20, 512 * 2**20)
    assert (settings.max_streams, settings.max_streams_per_owner, settings.max_readers_per_stream) == (1000, 100, 32)
    assert (settings.drain_seconds, settings.flush_seconds, settings.heartbeat_seconds) == (30, 5, 10)
    assert settings.bind == ("127.0.0.1:8000",)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("MODEL", "some/model.gguf", "some/model.gguf"),
        ("REPLAY_SPEED", "inf", float("inf")),
        ("REPLAY_SPEED", "2.5", 2.5),
        ("ALLOW_OPEN", "true", True),
        ("KEYS", "alice:key1, bob:key:2", {"alice": "key1", "bob": "key:2"}),
        ("BIND", "127.0.0.1:80, [::1]:80,", ("127.0.0.1:80", "[::1]:80")),
        ("ALLOWED_ORIGINS", "https://a.example", ("https://a.example",)),
        ("SERVER_NAMES", "", ()),
        ("UPSTREAM_EXTRA_BODY", '{"thinking_budget_tokens": 40}', {"thinking_budget_tokens": 40}),
    ],
)
def test_every_kind_of_setting_can_come_from_the_environment(variable: str, text: str, value: object) -> None:
    settings = load({f"CRUCIBLE_{variable}": text})
    assert getattr(settings, variable.lower()) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("buffer_tokens", "0"),
        ("buffer_tokens", "many"),
        ("grace_seconds", "-1"),
        ("grace_seconds", "nan"),
        ("heartbeat_seconds", "0"),
        ("engine", "magic"),
        ("stream_log_bytes", "8191"),
        ("allow_open", "perhaps"),
        ("upstream_extra_body", "[1]"),
        ("upstream_extra_body", "{"),
    ],
)
def test_a_wrong_value_is_refused_and_its_setting_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"(?i){name}"):
        load({f"CRUCIBLE_{name.upper()}": text})


def test_an_unknown_name_in_a_file_or_an_argument_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "crucible.toml"
    path.write_text("bufer_tokens = 2")
    with pytest.raises(ConfigError, match="bufer_tokens"):
        load({}, config_file=path)
    with pytest.raises(ConfigError, match="bufer_tokens"):
        load({}, bufer_tokens=2)


def test_an_unknown_environment_variable_only_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load({"CRUCIBLE_SERVICE_HOST": "10.0.0.1", "OTHER": "x"}) == load({})
    assert [record.getMessage() for record in caplog.records] == ["ignoring unknown setting CRUCIBLE_SERVICE_HOST"]


@pytest.mark.parametrize("content", [None, b"buffer_tokens = ", b"\xff"])
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "crucible.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"crucible\.toml"):
        load({}, config_file=path)


def test_several_workers_need_a_shared_log() -> None:
    with pytest.raises(ConfigError) as refusal:
        load({"CRUCIBLE_WORKERS": "2"})
    assert str(refusal.value) == (
        "workers must be 1 without log_url, not 2: each process would keep its streams in its own memory, and a reader "
        "that reaches another process would not find its stream (variable CRUCIBLE_WORKERS)"
    )
    assert load({"CRUCIBLE_WORKERS": "1"}).workers == 1
    shared = {"CRUCIBLE_WORKERS": "2", "CRUCIBLE_TOKEN_SECRET": "s3cret"}
    assert load(shared, log_url="redis://127.0.0.1").workers == 2


def test_a_shared_log_needs_a_shared_secret() -> None:
    with pytest.raises(ConfigError) as refusal:
        load({"CRUCIBLE_LOG_URL": "redis://:s3cret@host"})
    assert str(refusal.value) == (
        "log_url needs token_secret, because every process must sign stream tokens and traces with the same secret: "
        "put a long random text into CRUCIBLE_TOKEN_SECRET (variable CRUCIBLE_LOG_URL)"
    )


def test_a_wrong_log_url_is_not_quoted() -> None:
    for wrong in (["redis://:s3cret@host"], ""):
        with pytest.raises(ConfigError, match="log_url must be text that is not empty") as refusal:
            load({}, log_url=wrong)
        assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"environment": {"CRUCIBLE_KEYS": "s3cret"}},
        {"environment": {"CRUCIBLE_KEYS": "alice:s3cret,alice:s3cret2"}},
        {"environment": {"CRUCIBLE_KEYS": "alice:s3cret,bob:s3cret"}},
        {"environment": {"CRUCIBLE_KEYS": ":s3cret"}},
        {"environment": {"CRUCIBLE_KEYS": "bob:,alice:s3cret"}},
        {"environment": {}, "keys": "s3cret"},
        {"environment": {}, "keys": {"alice": 5, "bob": "s3cret"}},
    ],
)
def test_wrong_keys_are_refused_and_never_quoted(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"(?i)keys") as refusal:
        load(**wrong)  # type: ignore[arg-type]
    assert "s3cret" not in str(refusal.value)


def test_the_upstream_engine_needs_an_address() -> None:
    with pytest.raises(ConfigError, match="upstream_base_url"):
        load({"CRUCIBLE_ENGINE": "upstream"})
    assert load({"CRUCIBLE_ENGINE": "upstream"}, upstream_base_url="http://x/v1").engine == "upstream"


def test_an_address_selects_the_upstream_engine_unless_another_is_chosen() -> None:
    assert load({"CRUCIBLE_UPSTREAM_BASE_URL": "http://x/v1"}).engine == "upstream"
    assert load({"CRUCIBLE_UPSTREAMS": '{"a": {"base_url": "http://x/v1"}}'}).engine == "upstream"
    assert load({"CRUCIBLE_UPSTREAM_BASE_URL": "http://x/v1"}, engine="replay").engine == "replay"


TABLES = """
[upstreams.zeta]
base_url = "http://z/v1"
key_variable = "ZETA_KEY"
models = ["b", "a"]

[upstreams.alpha]
base_url = "http://a/v1"
headers = { X-Team = "blue red" }
capabilities = { images = false, sampling = ["seed"] }

[upstreams.alpha.thinking.deep]
reasoning_effort = "high"
"""


def test_tables_of_upstreams_keep_their_order_and_get_their_keys(tmp_path: Path) -> None:
    file = tmp_path / "crucible.toml"
    file.write_text(TABLES)
    settings = load_settings({"ZETA_KEY": "s3cret"}, config_file=file).engine
    assert settings.engine == "upstream"
    assert settings.all_upstreams == settings.upstreams
    assert list(settings.upstreams) == ["zeta", "alpha"]
    zeta, alpha = settings.upstreams.values()
    assert (zeta.key, zeta.models, zeta.capabilities.declared.images) == ("s3cret", ("b", "a"), True)
    assert (alpha.key, alpha.models, alpha.thinking) == (None, None, {"deep": {"reasoning_effort": "high"}})
    assert alpha.headers == {"X-Team": "blue red"}
    declared = alpha.capabilities.declared
    assert (declared.tools, declared.images, declared.sampling) == (True, False, frozenset({"seed"}))


def test_one_upstream_needs_no_table() -> None:
    assert load_settings({}).engine.all_upstreams == {}
    settings = load_settings(
        {}, upstream_base_url="http://x", upstream_key="k", model="m", upstream_extra_body={"a": 1}
    ).engine
    assert settings.all_upstreams == {
        "upstream": UpstreamSettings(base_url="http://x", key="k", models=("m",), extra_body={"a": 1})
    }
    assert load_settings({}, upstream_base_url="http://x").engine.all_upstreams["upstream"].models is None
    peer = load_settings({}, upstream_base_url="http://x", upstream_kind="crucible").engine
    assert peer.all_upstreams == {"upstream": UpstreamSettings(base_url="http://x", kind="crucible")}


def test_the_sampling_fields_of_a_table_are_those_of_a_request() -> None:
    assert set(get_args(SamplingField)) == {*Sampling.__struct_fields__, "verbosity"}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            'upstream_base_url = "http://s3cret"',
            "upstream_base_url cannot be set together with tables of upstreams: set base_url in their tables (file {})",
        ),
        (
            'upstream_key = "s3cret"',
            "upstream_key cannot be set together with tables of upstreams: set key_variable in their tables (file {})",
        ),
        (
            'upstream_starts_in_trace = ["deep"]',
            "upstream_starts_in_trace cannot be set together with tables of upstreams: set starts_in_trace in their "
            "tables (file {})",
        ),
        (
            'model = "a"',
            "model cannot be set together with tables of upstreams: set models in their tables (file {})",
        ),
    ],
)
def test_tables_and_settings_of_one_upstream_exclude_each_other(line: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "crucible.toml"
    file.write_text(f"{line}\n{TABLES}")
    with pytest.raises(ConfigError) as refusal:
        load_settings({"ZETA_KEY": "s3cret"}, config_file=file)
    assert str(refusal.value) == sentence.format(file)


def test_a_conflict_names_both_sources(tmp_path: Path) -> None:
    file = tmp_path / "crucible.toml"
    file.write_text(TABLES)
    with pytest.raises(ConfigError, match=rf"\(option --base-url, file {file}\)$"):
        load_settings(
            {"ZETA_KEY": "k"},
            config_file=file,
            option_names={"upstream_base_url": "--base-url"},
            upstream_base_url="http://x",
        )


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Settings().buffer_tokens = 5  # type: ignore[misc]


def test_the_groups_share_no_name() -> None:
    names = [name for group in GROUPS for name in group.__struct_fields__]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_streams = 'many'", "max_streams must be a whole number of 1 or more, not 'many' (file {})"),
        ("max_streams = 0", "max_streams must be a whole number of 1 or more, not 0 (file {})"),
        ("replay_speed = -1", "replay_speed must be a number greater than 0, not -1 (file {})"),
        ("local_slots = 1025", "local_slots must be a whole number from 1 to 1024, not 1025 (file {})"),
        ("workers = 0", "workers must be a whole number from 1 to 1024, not 0 (file {})"),
        ("allow_open = 'perhaps'", "allow_open must be true or false, not 'perhaps' (file {})"),
        ("engine = 'magic'", "engine must be one of local, upstream, replay, not 'magic' (file {})"),
        ("engin = 'local'", "unknown setting engin (file {}), did you mean engine?"),
        ("'a b' = 1", "unknown setting 'a b' (file {})"),
        ("model = ''", "model must be text that is not empty, but it is empty (file {})"),
        ("bind = '127.0.0.1:80'", "bind must be a list, not '127.0.0.1:80' (file {})"),
        ("server_names = [5]", "server_names[0] must be text, not 5 (file {})"),
        ("openai_models = 'o3'", "openai_models must be a table, not 'o3' (file {})"),
        ("[openai_models]\no3 = 5", "openai_models.o3 must be text that is not empty, not 5 (file {})"),
        ("[openai_models]\n'' = 'x'", "openai_models has an entry without a name (file {})"),
        ("[keys]\nbob = 5", "keys.bob must be text that is not empty (file {})"),
        ("[upstream_thinking.deep]\n[upstream_thinking.fast]", "upstream_thinking has the unknown key 'fast': "
         "a key must be one of standard, deep (file {})"),
        ("upstream_base_url = 5", "upstream_base_url must be text that is not empty (file {})"),
        ("openai_deep_efforts = ['huge']", "openai_deep_efforts[0] must be one of none, minimal, low, medium, high, "
         "xhigh, max, not 'huge' (file {})"),
        ("allowed_origins = ['https://a.example/']", "allowed_origins must hold origins like https://chat.example.org, "
         "in lower case and without a path, not 'https://a.example/' (file {})"),
        ("[upstream_extra_body]\na = 1979-05-27", "upstream_extra_body holds a value that JSON cannot hold, such as a "
         "date, inf or nan (file {})"),
        ("[upstreams.vllm]\nbase_url = 'x'\nkey_variable = 'A_KEY'", "upstreams.vllm.key_variable names the variable "
         "A_KEY, which is not set (file {})"),
        ("[upstreams.vllm]\nbase_url = 'x'\nkey = 'k'", "upstreams.vllm.key must not be in the settings: name the "
         "variable that holds it in key_variable (file {})"),
        ("[upstreams.vllm]\nbase_url = 'x'\nheaders = {Host = 'a'}", "upstreams.vllm: headers must not hold Host, "
         "which this server sets itself (file {})"),
        ("[[upstreams]]\nbase_url = 'x'", "upstreams must be a table, not a list (file {})"),
        ("server_names = ['a.example:80']", "server_names must hold host names like chat.example.org, without a port, "
         "not 'a.example:80' (file {})"),
        ("max_streams = ", "cannot read the settings file {}: it is not TOML: Invalid value (at end of document) "
         "(option --config)"),
    ],
)  # fmt: skip
def test_an_error_is_a_plain_sentence_with_the_setting_and_its_source(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "crucible.toml"
    path.write_text(content)
    with pytest.raises(ConfigError) as refusal:
        load({}, config_file=path)
    assert str(refusal.value) == message.format(path)


def test_an_error_names_the_source_that_won(tmp_path: Path) -> None:
    path = tmp_path / "crucible.toml"
    path.write_text("max_streams = 0")
    environment = {"CRUCIBLE_CONFIG": str(path), "CRUCIBLE_MAX_STREAMS": "-1"}
    with pytest.raises(ConfigError, match=r"not '-1' \(variable CRUCIBLE_MAX_STREAMS\)$"):
        load(environment)
    with pytest.raises(ConfigError, match=r"not -2 \(argument max_streams\)$"):
        load(environment, max_streams=-2)
    with pytest.raises(ConfigError, match=r"not -2 \(option --max\)$"):
        load(environment, max_streams=-2, option_names={"max_streams": "--max"})
    assert load(environment, max_streams=5).max_streams == 5


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CRUCIBLE_CONFIG": ""}, "the name of the settings file is missing (variable CRUCIBLE_CONFIG)"),
        ({"CRUCIBLE_CONFIG": "/"}, "cannot read the settings file /: Is a directory (variable CRUCIBLE_CONFIG)"),
        (
            {"CRUCIBLE_OPENAI_MODELS": "{"},
            "openai_models must be JSON, and it is not (variable CRUCIBLE_OPENAI_MODELS)",
        ),
        (
            {"CRUCIBLE_KEYS": "alice"},
            "keys must be owner:key,owner:key with each owner once (variable CRUCIBLE_KEYS)",
        ),
        ({"CRUCIBLE_MODEL": "\udcff"}, "model must be UTF-8 text (variable CRUCIBLE_MODEL)"),
        (
            {"CRUCIBLE_ENGINE": "upstream"},
            "engine 'upstream' needs the URL of a server: set upstream_base_url (--base-url), or add a table "
            "[upstreams.NAME] (variable CRUCIBLE_ENGINE)",
        ),
        (
            {
                "CRUCIBLE_ENGINE": "upstream",
                "CRUCIBLE_UPSTREAM_BASE_URL": "http://x",
                "CRUCIBLE_UPSTREAM_KIND": "crucible",
                "CRUCIBLE_UPSTREAM_EXTRA_BODY": '{"a": 1}',
            },
            "upstream_extra_body is for upstream_kind 'openai': set it on the server behind upstream_base_url "
            "(variable CRUCIBLE_UPSTREAM_EXTRA_BODY)",
        ),
        ({"CRUCIBLE_BIND": ""}, "bind must name at least one address, such as 127.0.0.1:8000 (variable CRUCIBLE_BIND)"),
    ],
)
def test_an_error_in_the_environment_names_the_variable(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(environment)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("", "the port is missing"),
        ("127.0.0.1", "the port is missing"),
        ("localhost", "the port is missing"),
        ("[::1]", "the port is missing"),
        ("127.0.0.1:", "the port must be"),
        ("127.0.0.1:99999", "the port must be"),
        ("127.0.0.1:-1", "the port must be"),
        ("127.0.0.1:http", "the port must be"),
        ("127.0.0.1:٨", "the port must be"),
        (":8000", "the host is missing"),
        ("::1:8000", "the host is neither"),
        ("[127.0.0.1]:80", "the host is neither"),
        ("[::1:80", "the host is neither"),
        ("256.0.0.1:80", "the host is neither"),
        ("9000:80", "the host is neither"),
        ("a..b:80", "the host is neither"),
        ("-a:80", "the host is neither"),
        ("a b:80", "the host is neither"),
        (f"{'a' * 64}:80", "the host is neither"),
        ("http://127.0.0.1:80", "the host is neither"),
        ("unix:", "the path of the socket is missing"),
    ],
)
def test_a_wrong_address_is_refused_with_its_problem(address: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        ServerSettings(bind=(address,))


@pytest.mark.parametrize(
    "address", ["127.0.0.1:0", "localhost:65535", "[::1]:80", "[fe80::1%lo]:80", "my_host.example.:80", "unix:/run/x"]
)
def test_an_address_may_be_a_name_an_ipv4_or_ipv6_address_or_a_socket(address: str) -> None:
    assert ServerSettings(bind=(address,)).bind == (address,)


def test_an_unknown_variable_is_compared_with_the_known_ones(caplog: pytest.LogCaptureFixture) -> None:
    load({"CRUCIBLE_ENGIN": "replay"})
    assert [record.getMessage() for record in caplog.records] == [
        "ignoring unknown setting CRUCIBLE_ENGIN, did you mean engine?"
    ]


def test_a_wrong_name_in_a_table_names_the_setting_and_its_origin(tmp_path: Path) -> None:
    file = tmp_path / "crucible.toml"
    file.write_text("upstream_thinking = {fast = {}}")
    with pytest.raises(ConfigError, match=r"upstream_thinking .*'fast'.*crucible\.toml"):
        load_settings({}, config_file=file)


def test_endless_nesting_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CRUCIBLE_OPENAI_MODELS"):
        load_settings({"CRUCIBLE_OPENAI_MODELS": "[" * 5000})
    file = tmp_path / "crucible.toml"
    file.write_text("bind = " + "[" * 5000)
    with pytest.raises(ConfigError, match=r"crucible\.toml"):
        load_settings({}, config_file=file)


def test_later_errors_name_the_sources_of_their_settings() -> None:
    settings = load_settings({"CRUCIBLE_MODEL": "m"}, local_slots=2)
    for error, message in [
        (ConfigError("model m is wrong", "model"), "model m is wrong (variable CRUCIBLE_MODEL)"),
        (ConfigError("the file m is wrong", "model"), "the file m is wrong (model, variable CRUCIBLE_MODEL)"),
        (
            ConfigError("too little memory", "model", "local_slots", "local_threads"),
            "too little memory (model, variable CRUCIBLE_MODEL, local_slots, argument local_slots)",
        ),
        (ConfigError("127.0.0.1:8000 is in use", "bind"), "127.0.0.1:8000 is in use (default)"),
        (ConfigError("no network"), "no network"),
    ]:
        with pytest.raises(ConfigError) as refusal, settings.errors_name_origins():
            raise error
        assert str(refusal.value) == message


def test_settings_made_in_a_program_are_checked_too() -> None:
    with pytest.raises(ConfigError, match="an owner or a key is empty"):
        ApiSettings(keys={"alice": ""})
    with pytest.raises(ConfigError, match="two owners have the same key"):
        ApiSettings(keys={"alice": "k", "bob": "k"})


def test_keys_in_the_environment_may_be_json() -> None:
    settings = load_settings({"CRUCIBLE_KEYS": ' {"alice": "k1", "bob": "k:2,"}'})
    assert settings.apis.keys == {"alice": "k1", "bob": "k:2,"}
    with pytest.raises(ConfigError) as refusal:
        load_settings({"CRUCIBLE_KEYS": '{"alice": "s3cret"'})
    assert str(refusal.value) == "keys must be JSON, and it is not (variable CRUCIBLE_KEYS)"


def test_every_list_can_be_given_in_the_environment() -> None:
    lists = {
        "apis": "openai, page",
        "bind": "127.0.0.1:1, 127.0.0.1:2",
        "allowed_origins": "https://a.example, https://b.example",
    }
    lists |= {"server_names": "a.example, b.example", "openai_deep_efforts": "high, max"}
    lists |= {"upstream_starts_in_trace": "standard, deep"}
    kinds = {
        field.name: msgspec.inspect.type_info(field.type) for group in GROUPS for field in msgspec.structs.fields(group)
    }
    assert lists.keys() == {name for name, kind in kinds.items() if isinstance(kind, msgspec.inspect.VarTupleType)}
    settings = load({f"CRUCIBLE_{name.upper()}": text for name, text in lists.items()}, upstream_base_url="http://x")
    for name, text in lists.items():
        assert tuple(getattr(settings, name)) == tuple(text.split(", "))
