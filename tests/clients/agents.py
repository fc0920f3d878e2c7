"""Coding agents from npm, unmodified, told by their own settings to use a server on this machine and no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .npm import Sandbox
from .upstream import MODEL

CODEX_SETTINGS = """\
model = "{model}"
model_provider = "crucible"
approval_policy = "never"
sandbox_mode = "danger-full-access"  # in the tests it runs an `echo`
check_for_update_on_startup = false

[analytics]
enabled = false

[features]
plugins = false  # else it fetches a list from GitHub

[model_providers.crucible]
name = "crucible_trio"
base_url = "{base_url}"
wire_api = "responses"
"""

QWEN_SETTINGS: Mapping[str, Any] = {
    "privacy": {"usageStatisticsEnabled": False},
    "telemetry": {"enabled": False},
    "general": {"enableAutoUpdate": False},
}


@dataclass(frozen=True)
class Agent:
    """One agent.

    Attributes:
        program: Its file in `node_modules`.
        arguments: Make it answer one prompt, which is the next argument, without a question.
        shell_tool: The name of its tool that runs a command.
        shell_arguments: That tool's arguments, with `{command}` for the command.
        files: By path in the home folder, its settings, with `{base_url}` and `{model}`.
        variables: Environment variables, in the same way.
    """

    program: str
    arguments: tuple[str, ...]
    shell_tool: str
    shell_arguments: Mapping[str, object]
    files: Mapping[str, str]
    variables: Mapping[str, str] = field(default_factory=dict)

    def call_arguments(self, command: str) -> str:
        """The JSON with which a model calls the shell tool."""
        return json.dumps(
            {name: command if value == "{command}" else value for name, value in self.shell_arguments.items()}
        )

    async def run(self, prompt: str, *, base_url: str, sandbox: Sandbox, packages: Path, node: Path) -> str:
        """Let the agent answer a prompt.

        Returns:
            Its standard output.
        """
        sandbox.home.mkdir(exist_ok=True)
        values = {"{base_url}": base_url, "{model}": MODEL}
        for name, content in self.files.items():
            path = sandbox.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_fill(content, values))
        work = sandbox.home / "work"
        work.mkdir()
        variables = {name: _fill(value, values) for name, value in self.variables.items()}
        own = Sandbox(sandbox.home, path=(node.parent,), environment=variables)
        return await own.run(node, packages / self.program, *self.arguments, prompt, folder=work)


def _fill(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


QWEN_CODE = Agent(
    program="@qwen-code/qwen-code/cli.js",
    arguments=("--auth-type", "openai", "--approval-mode", "yolo", "--output-format", "text"),
    shell_tool="run_shell_command",
    shell_arguments={"command": "{command}", "is_background": False, "description": "Say something."},
    files={".qwen/settings.json": json.dumps(QWEN_SETTINGS)},
    variables={"OPENAI_BASE_URL": "{base_url}", "OPENAI_API_KEY": "none", "OPENAI_MODEL": "{model}"},
)

CODEX = Agent(
    program="@openai/codex/bin/codex.js",
    arguments=("exec", "--skip-git-repo-check"),
    shell_tool="exec_command",
    shell_arguments={"cmd": "{command}"},
    files={".codex/config.toml": CODEX_SETTINGS},
)
