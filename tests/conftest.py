"""What is converted or tokenised in tests is kept in a folder of its own, not in the user's."""

import os
import tempfile

_cache = tempfile.TemporaryDirectory(prefix="weighted-mtp-test-cache-")
os.environ["WEIGHTED_MTP_CACHE"] = _cache.name
