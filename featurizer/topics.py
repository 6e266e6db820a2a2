"""The topics of a Kafka cluster: one table of names, keys, partitions, retention and readers.

Owns how many bytes identify where an entry came from. Must not know how Kafka is spoken to.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from featurizer.eventlog import Topic

DAY_MS = 86_400_000
FOREVER_MS = -1
# As long as the history that an entity's state may still say something about.
HISTORY_MS = 490 * DAY_MS

# Who wrote an entry first, and where: the header of every record that we send. ``host`` is the
# hash of the journal's name, ``position`` the entry's in that journal (0 for none); ``place`` and
# ``count`` are the entry's in its frame.
ORIGIN = np.dtype(
    [
        ("host", "<i8"),
        ("position", "<i8"),
        ("kind", "u1"),
        ("spare", "u1"),
        ("place", "<u2"),
        ("count", "<u4"),
    ]
)


class TopicRow(NamedTuple):
    """One topic. ``partitions`` is "events", "entities" or "one": which count applies."""

    name: str
    key: str
    partitions: str
    retention_ms: int
    compacted: bool
    read_by: str


TOPICS = (
    TopicRow("payments", "customer", "events", 7 * DAY_MS, False, "stream"),
    TopicRow("transactions", "customer", "events", HISTORY_MS, False, "split"),
    TopicRow("feedback", "customer", "events", HISTORY_MS, False, "split"),
    TopicRow("decisions", "customer", "events", HISTORY_MS, False, "trainer, console, replay"),
    TopicRow("labels", "transaction", "events", HISTORY_MS, False, "trainer"),
    TopicRow("entity-updates", "partition", "entities", HISTORY_MS, False, "fold"),
    TopicRow("split-progress", "partition", "events", FOREVER_MS, True, "split"),
    TopicRow("stream-progress", "partition", "events", FOREVER_MS, True, "stream"),
    TopicRow("models", "-", "one", FOREVER_MS, False, "scorer, console"),
    TopicRow("dead-letters", "-", "one", 90 * DAY_MS, False, "console, dead-letters"),
    TopicRow("audit", "-", "one", FOREVER_MS, False, "console"),
)

# Where an entry of the journal goes.
TOPIC_OF = {
    Topic.TRANSACTIONS: "transactions",
    Topic.DECISIONS: "decisions",
    Topic.LABELS: "labels",
    Topic.FEEDBACK: "feedback",
    Topic.MODELS: "models",
    Topic.DEAD_LETTERS: "dead-letters",
    Topic.AUDIT: "audit",
}
