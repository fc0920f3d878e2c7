"""The settings of a service: engines, APIs and server. Those of a pipeline are in `crucible_trio.config`."""

from crucible_trio.settings.apis import ApiSettings
from crucible_trio.settings.engines import EngineSettings
from crucible_trio.settings.loading import ServiceSettings, load_settings
from crucible_trio.settings.server import ServerSettings

__all__ = ["ApiSettings", "EngineSettings", "ServerSettings", "ServiceSettings", "load_settings"]
