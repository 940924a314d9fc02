"""A configuration that names another attention."""

from typing import Any


class ConfigWith:
    def __init__(self, config: Any, attn_implementation: str) -> None:
        self.config = config
        self._attn_implementation = attn_implementation

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)
