#!/bin/sh
# Waits until a relay has shipped its journal: drain.sh METRICS_FILE SECONDS
# Run before a relay is told to stop. The scorer beside it stops meanwhile, so the backlog must have
# been nothing for QUIET looks in a row. Ends with 1 where the time is up: the rest is on the volume.
set -eu
metrics=$1
left=$2
QUIET=8
quiet=0
while [ "$quiet" -lt "$QUIET" ]; do
    [ "$left" -gt 0 ] || { echo "the journal was not shipped in time" >&2; exit 1; }
    if grep -qx 'fraud_relay_backlog_bytes 0' "$metrics" 2>/dev/null; then
        quiet=$((quiet + 1))
    else
        quiet=0
    fi
    sleep "${DRAIN_POLL_S:-1}"
    left=$((left - 1))
done
