"""An engine made of several engines: each request goes to an engine that has its model.

Easy to get wrong:

* A second engine may only be called while nothing has been written. Afterwards it would repeat or contradict the text.
* An error that blames the request goes to the client, because every engine would say the same.
* The second engine is judged by its own capabilities: it must not drop a field that the first one understands.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import final

from crucible_trio.checks import supports
from crucible_trio.engine import Capabilities, Engine, EngineInfo, Finish, engine_of
from crucible_trio.errors import EngineError
from crucible_trio.output import Output
from crucible_trio.request import Request

logger = logging.getLogger(__name__)


@final
class RouterEngine:
    """Routes each request to the first of its engines that has the model. If that one fails, to the next.

    Every model keeps the capabilities that its first engine declares, so a request is judged as that engine would judge
    it. Metrics and the list of models name the engine behind a model, not the router.

    While nothing has been written, an `EngineError` passes the request on to the next engine that has the model and
    supports all fields of the request. The error of the last one goes to the client, and so does an error that blames
    the request. Engines whose server does not respond are called last.

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

    async def generate(self, request: Request, output: Output) -> Finish:
        """Let an engine that has the model generate (`Engine.generate`).

        Raises:
            LookupError: No engine has the model any more.
        """
        model = request.model
        assert model is not None  # a pipeline fills it in
        has_fallback = output.has_fallback  # of a router around this one
        *others, last = self._candidates(request, model)
        for engine in others:
            output.has_fallback = True
            name = engine_of(engine, model).info.name
            output.engine_changed(name)
            try:
                return await engine.generate(request, output)
            except EngineError as error:
                if output.has_written or error.blames_request:
                    raise
                logger.warning("engine %s failed before its first piece, trying the next one: %s", name, error)
        output.has_fallback = has_fallback
        output.engine_changed(engine_of(last, model).info.name)
        return await last.generate(request, output)

    def _candidates(self, request: Request, model: str) -> list[Engine]:
        """The engines to call, in this order. The first one that has the model understands the request."""
        infos = [(engine, info) for engine in self.engines if model in (info := engine.info).models]
        able = [(engine, info) for engine, info in infos if supports(info.capabilities_of(model), request)]
        if not able:  # the model has gone, or changed since the request was checked
            return [self.engine_of(model)]
        return [engine for engine, _ in sorted(able, key=lambda pair: pair[1].is_up is False)]
