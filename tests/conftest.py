"""What every test may use. What is converted or tokenised in tests is kept in a folder of its own,
not in the user's."""

import importlib.util
import os
import tempfile
from pathlib import Path

import pytest

_cache = tempfile.TemporaryDirectory(prefix="weighted-mtp-test-cache-")
os.environ["WEIGHTED_MTP_CACHE"] = _cache.name
os.environ["HF_MODULES_CACHE"] = os.path.join(_cache.name, "modules")  # code of exports


@pytest.fixture(scope="session")
def sentencepiece_model() -> Path:
    """A real SentencePiece model of 32,000 pieces, with byte fallback, as Llama 2's."""
    spec = importlib.util.find_spec("mistral_common")
    if spec is None or spec.origin is None:
        pytest.skip("mistral_common, whose SentencePiece model this reads, is not installed")
    path = Path(spec.origin).parent / "data" / "tokenizer.model.v1"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path
