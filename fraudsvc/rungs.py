"""The rungs of the ladder, and why a decision is on another than the first.

Plain numbers: an enum's attribute is a call.
"""

from fraud.v1 import decision_pb2

FULL = decision_pb2.RUNG_FULL
PARTIAL = decision_pb2.RUNG_PARTIAL
RULES_ONLY = decision_pb2.RUNG_RULES_ONLY

NO_CAUSE = decision_pb2.RUNG_CAUSE_UNSPECIFIED
STALE = decision_pb2.RUNG_CAUSE_STATE_STALE
UNAVAILABLE = decision_pb2.RUNG_CAUSE_STATE_UNAVAILABLE
NO_TIME = decision_pb2.RUNG_CAUSE_DEADLINE
NO_MODEL = decision_pb2.RUNG_CAUSE_NO_MODEL
