"""What transformers says through its log while a test runs."""

import pytest
import transformers


@pytest.fixture
def complaints(monkeypatch) -> list[str]:
    said: list[str] = []
    for module in (transformers.trainer, transformers.modeling_utils, transformers.generation.utils):
        for name in ("warning", "warning_once", "error"):
            monkeypatch.setattr(module.logger, name, lambda text, *_, **__: said.append(str(text)))
    return said
