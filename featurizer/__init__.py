"""What a feature is, how it is computed, kept and moved."""

from pathlib import Path

import numba

from featurizer import kernel_cache

# Before any kernel is imported. NUMBA_CACHE_DIR, where it is set, says where.
kernel_cache.use(
    Path(numba.config.CACHE_DIR or Path(__file__).parent / "__pycache__"),  # type: ignore[attr-defined]
    Path(__file__).parent.parent,
)
