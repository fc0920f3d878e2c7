import pytest

from crucible_trio import errors


def test_every_error_is_a_crucible_error() -> None:
    own = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(own) > 15
    assert all(issubclass(error, errors.CrucibleError) for error in own)


@pytest.mark.parametrize(
    ("error", "kind", "facts"),
    [
        (errors.EventTooLargeError(9), Exception, {"limit": 9}),
        (errors.InvalidRequestError("no", "sampling.seed"), ValueError, {"param": "sampling.seed"}),
        (errors.InvalidRequestError("no"), ValueError, {"param": None}),
        (errors.StreamNotFoundError(), LookupError, {}),
        (errors.StreamExpiredError(), LookupError, {}),
        (errors.InvalidLastEventIdError(), ValueError, {}),
        (errors.CursorAheadError(5, 3), ValueError, {"after": 5, "head": 3}),
        (errors.EngineError("busy", "Later.", retryable=True), Exception, {"code": "busy", "retryable": True}),
        (errors.EngineError("gone", "Never."), Exception, {"message": "Never.", "retryable": False, "status": None}),
        (
            errors.EngineError("busy", "Later.", status=429, retry_after=30.0),
            Exception,
            {"status": 429, "retry_after": 30.0, "upstream": None},
        ),
        (errors.ServerRefusedError(429, "owner_limit", "No."), Exception, {"status": 429, "code": "owner_limit"}),
        (errors.StreamLostError("lost", 7), Exception, {"last_seq": 7}),
        (errors.ConfigError("wrong"), ValueError, {}),
    ],
)
def test_facts_are_attributes_and_builtin_base_classes_are_kept(
    error: Exception, kind: type[Exception], facts: dict[str, object]
) -> None:
    assert isinstance(error, kind)
    assert {name: getattr(error, name) for name in facts} == facts
    assert str(error)


@pytest.mark.parametrize(
    "error",
    [
        errors.OwnerLimitError(3),
        errors.OverloadedError("full"),
        errors.DrainingError(),
        errors.TooManyReadersError(32),
    ],
)
def test_temporary_refusals_share_a_base_class(error: Exception) -> None:
    assert isinstance(error, errors.RefusedError)


def test_a_trace_without_text_names_only_places_and_types() -> None:
    text = "secret"[::-1]  # a trace shows source lines, so the source must not contain the text

    def fails() -> None:
        raise ValueError(text)

    try:
        try:
            fails()
        except ValueError as error:
            group = ExceptionGroup(text, [error, ExceptionGroup(text, [KeyError(text)])])
            group.add_note(text)
            raise group from KeyError(text)
    except ExceptionGroup as error:
        trace = errors.trace_without_text(error)
    assert "in fails" in trace
    assert trace.count("test_errors.py") == 3  # one line of the group, and two that lead to the ValueError
    assert [line for line in trace.splitlines() if not line.startswith("  ")] == [
        "ExceptionGroup",
        "ValueError",
        "ExceptionGroup",
        "KeyError",
    ]
    assert text not in trace
