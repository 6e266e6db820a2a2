"""Owns what the layout allows: packages, clients, pure modules, sizes. Must not assert anything.

An exception is a row of a table, with its reason.
"""

from __future__ import annotations

# A package, and which of ours it may import beside itself.
PACKAGES: dict[str, frozenset[str]] = {
    "featurizer": frozenset({"fraud"}),
    "trainer": frozenset({"fraud", "featurizer"}),
    "fraudsvc": frozenset({"fraud", "featurizer", "trainer"}),
    "loadgen": frozenset({"fraud"}),
}
OURS = frozenset({"fraud", *PACKAGES})

# A third-party module, and the only files that may import it (fnmatch).
CLIENTS: dict[str, tuple[str, ...]] = {
    "aiokafka": ("featurizer/eventlog_kafka.py",),
    "authlib": ("fraudsvc/console/oidc.py",),
    # The base and its residual: two learners, one export (export_trees).
    "catboost": ("trainer/train.py", "trainer/residual.py"),
    "cel": ("fraudsvc/policy/cel_rules.py",),
    # Signing bundles, and looking at certificates before gRPC is given them.
    "cryptography": ("trainer/signing.py", "fraudsvc/callers/certificates.py"),
    "google_crc32c": ("featurizer/frames.py",),
    "grpc": (
        "fraudsvc/server.py",
        "fraudsvc/turns.py",
        "fraudsvc/callers/certificates.py",
        "fraudsvc/client/*.py",
        "fraudsvc/console/otlp_receiver.py",
        "fraudsvc/console/scorer_client.py",
        "fraudsvc/errors.py",
        "fraudsvc/demo/*.py",
        "loadgen/*.py",
    ),
    "grpc_health": ("fraudsvc/server.py",),
    "grpc_reflection": ("fraudsvc/server.py",),
    "grpc_status": ("fraudsvc/errors.py",),
    "hpack": ("loadgen/http2.py",),
    "hdrh": ("loadgen/tally.py",),
    "httpx": ("fraudsvc/console/oidc.py",),
    "itsdangerous": ("fraudsvc/console/sign_in.py",),
    "jinja2": ("fraudsvc/console/pages.py",),
    "joserfc": ("fraudsvc/callers/tokens.py", "fraudsvc/console/oidc.py"),
    "llvmlite": ("featurizer/memory.py",),
    "lmdb": ("featurizer/store_lmdb.py",),
    # Sending by its SDK, and taking, for which its messages are enough.
    "opentelemetry": ("featurizer/otlp.py", "fraudsvc/console/otlp_receiver.py"),
    "prometheus_client": ("fraudsvc/console/prometheus.py",),
    "pyarrow": (
        "featurizer/history.py",
        "featurizer/load.py",
        "featurizer/backfill.py",
        "trainer/vectors.py",
        "fraudsvc/console/sheets.py",
        "fraudsvc/demo/*.py",
        "loadgen/*.py",
    ),
    "plotly": ("fraudsvc/backtest/page.py", "loadgen/drill_page.py"),
    "redis": ("featurizer/redis_nodes.py",),
    # Three kinds of thing, of which a role may need one without the others.
    "river": ("trainer/challengers.py", "trainer/drift.py", "trainer/running_metrics.py"),
    # The read model: its tables, and the queries of one subject each.
    "sqlalchemy": ("fraudsvc/console/*_table.py", "fraudsvc/console/readmodel*.py"),
    # Its pages are functions of Starlette's requests.
    "starlette": ("fraudsvc/console/*.py",),
    "uvicorn": ("fraudsvc/console/http.py",),
    "rich": (
        "*/__main__.py",
        "*/report.py",
        "*/*_report.py",
        "fraudsvc/up.py",
        "fraudsvc/demo/*.py",
    ),
}
# What every file may import: the material, not a client.
MATERIAL = frozenset({"numpy", "numba", "google"})
# The scorer must start, and answer, without what only training needs.
TRAINING_ONLY = "trainer.train"

# Functions of their arguments alone: no clock, no chance, no file, no process.
PURE = (
    "featurizer/arena_memory.py",
    "featurizer/buckets.py",
    "featurizer/currencies.py",
    "featurizer/entries.py",
    "featurizer/lags.py",
    "featurizer/eventlog.py",
    "featurizer/feature_rows.py",
    "featurizer/features.py",
    "featurizer/fold.py",
    "featurizer/frames.py",
    "featurizer/hashing.py",
    "featurizer/kept.py",
    "featurizer/lines.py",
    "featurizer/numerics.py",
    "featurizer/records.py",
    "featurizer/redis_layout.py",
    "featurizer/risk.py",
    "featurizer/slots.py",
    "featurizer/spans.py",
    "featurizer/state.py",
    "featurizer/store.py",
    "featurizer/topics.py",
    "featurizer/verdicts.py",
    "featurizer/view.py",
    "featurizer/windows.py",
    "fraudsvc/answers.py",
    "fraudsvc/backtest/figures.py",
    "fraudsvc/cardnumbers.py",
    "fraudsvc/client/documents.py",
    "fraudsvc/batch_writer.py",
    "fraudsvc/console/chain_spans.py",
    "fraudsvc/console/open_calls.py",
    "fraudsvc/contract.py",
    "fraudsvc/decide.py",
    "fraudsvc/decision_spans.py",
    "fraudsvc/errors.py",
    "fraudsvc/console/observations.py",
    "fraudsvc/payment.py",
    "fraudsvc/policy/atoms.py",
    "fraudsvc/policy/cel_rules.py",
    "fraudsvc/policy/ruling.py",
    "fraudsvc/policy/table.py",
    "fraudsvc/replay/again.py",
    "fraudsvc/replay/compare.py",
    "fraudsvc/replay/differences.py",
    "fraudsvc/replay/kernel.py",
    "fraudsvc/replay/shared_kernel.py",
    "fraudsvc/replay/states.py",
    "fraudsvc/replay/step.py",
    "fraudsvc/replay/told.py",
    "fraudsvc/requests.py",
    "loadgen/http2.py",
    "trainer/alarms.py",
    "trainer/calibration.py",
    "trainer/cards.py",
    "trainer/contributions.py",
    "trainer/decision_ring.py",
    "trainer/drawing.py",
    "trainer/edetector.py",
    "trainer/elapsed.py",
    "trainer/eprocess.py",
    "trainer/evaluate.py",
    "trainer/expert.py",
    "trainer/few_shot.py",
    "trainer/grouping.py",
    "trainer/guards.py",
    "trainer/joins.py",
    "trainer/labelled.py",
    "trainer/lessons.py",
    "trainer/linear.py",
    "trainer/metrics.py",
    "trainer/model.py",
    "trainer/trees.py",
    "trainer/protocol.py",
    "trainer/renew.py",
    "trainer/reporters.py",
    "trainer/thresholds.py",
    "trainer/traffic.py",
)
IMPURE_MODULES = frozenset(
    {"asyncio", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select"}
    | {"shutil", "signal", "subprocess", "tempfile", "time", "urllib", "uuid"}
)
WALL_CLOCK_FILES: dict[str, str] = {}

FILE_LINES_MAX = 400
TEST_FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
FUNCTION_LINES_MEDIAN_MAX = 12
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
# Where the environment is read beside a command line.
ENVIRONMENT_FILES = {"fraudsvc/supervisor.py": "a child gets its parent's environment, and more"}
BROAD = ("Exception", "BaseException")
