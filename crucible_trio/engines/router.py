"""An engine made of several engines: each request goes to the engine that has its model."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import final

from crucible_trio.engine import Capabilities, Engine, EngineInfo, Finish
from crucible_trio.output import Output
from crucible_trio.request import Request


@final
class RouterEngine:
    """Routes each request to the first of its engines that has the model.

    Every model keeps the capabilities that its engine declares, so a request is judged as that engine would judge it.
    Metrics and the list of models name the engine behind a model, not the router.

    Args:
        engines: The engines, at least one. The first model of the first engine is the default.
        name: For logs.

    Raises:
        ValueError: The list is empty, or two engines have one name, which would mix their metrics.
    """

    def __init__(self, engines: Sequence[Engine], *, name: str = "router") -> None:
        names = [engine.info.name for engine in engines]
        if not names:
            message = "a router needs at least one engine"
            raise ValueError(message)
        if len(set(names)) < len(names):
            message = f"two engines have one name: {', '.join(names)}"
            raise ValueError(message)
        self.engines = tuple(engines)
        self._name = name

    @property
    def info(self) -> EngineInfo:
        """All models of all engines. Read anew each time, because an engine may find its models later."""
        by_model: dict[str, Capabilities] = {}
        for engine in self.engines:
            info = engine.info
            for model in info.models:
                by_model.setdefault(model, info.capabilities_of(model))
        notices = dict.fromkeys(engine.info.notice for engine in self.engines if engine.info.notice)
        return EngineInfo(name=self._name, models=tuple(by_model), by_model=by_model, notice=" ".join(notices))

    def engine_of(self, model: str) -> Engine:
        """The first engine that has a model.

        Raises:
            LookupError: No engine has it.
        """
        for engine in self.engines:
            if model in engine.info.models:
                return engine
        message = f"no engine has the model {model!r}"
        raise LookupError(message)

    def generate(self, request: Request, output: Output) -> Awaitable[Finish]:
        """Let the engine that has the model generate (`Engine.generate`)."""
        assert request.model is not None  # a pipeline fills it in
        return self.engine_of(request.model).generate(request, output)
