"""What the rest of the service needs of the policy: to read it, to watch it, to ask it.

Owns no behaviour. ``file`` reads, ``ruling`` decides, ``cel_rules`` runs rules.
"""

from fraudsvc.policy.file import (
    DEFAULT_POLICY,
    POLL_INTERVAL_MS,
    PolicyError,
    PolicyFile,
    load_policy,
)
from fraudsvc.policy.ruling import (
    APPROVE,
    DECLINE,
    FALLBACK_CODE,
    LISTABLE,
    REVIEW,
    Policy,
    Ruling,
)

__all__ = [
    "APPROVE",
    "DECLINE",
    "DEFAULT_POLICY",
    "FALLBACK_CODE",
    "LISTABLE",
    "POLL_INTERVAL_MS",
    "REVIEW",
    "Policy",
    "PolicyError",
    "PolicyFile",
    "Ruling",
    "load_policy",
]
