"""OpenAI's APIs over the same pipeline: a second wire for clients that speak it already."""

from crucible_trio.web.openai.api import http_error_response, is_openai_path, openai_blueprint

__all__ = ["http_error_response", "is_openai_path", "openai_blueprint"]
