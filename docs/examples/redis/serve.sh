#!/bin/sh
# Runs one `crucible serve` for each port in PORTS, and restarts those that end. TERM or INT drains all of them.
# The script passes its options to `crucible serve`. It sets --bind itself.
set -u
: "${CRUCIBLE_LOG_URL:?is not set}" "${CRUCIBLE_TOKEN_SECRET:?is not set}"
PORTS=${PORTS:-8000 8001}

keep() {
    port=$1 child='' stopping=''
    shift
    trap 'stopping=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM
    while :; do
        crucible serve --bind "127.0.0.1:$port" "$@" &
        child=$!
        # If the signal came before the child was started, pass it on now.
        [ -z "$stopping" ] || kill -TERM "$child"
        wait "$child"
        status=$?
        if [ -n "$stopping" ]; then
            # The signal interrupted the first wait, and the child still drains.
            wait "$child"
            exit 0
        fi
        echo "port $port: crucible serve ended with status $status" >&2
        sleep 1
        [ -z "$stopping" ] || exit 0
    done
}

keepers=''
for port in $PORTS; do
    keep "$port" "$@" &
    keepers="$keepers $!"
done
trap 'kill -TERM $keepers 2>/dev/null' TERM INT

# A signal interrupts `wait`, so repeat it until the process has ended. The status of an interrupted
# `wait` does not say how the process ended, so the script always exits with 0.
for keeper in $keepers; do
    wait "$keeper"
    while kill -0 "$keeper" 2>/dev/null; do
        wait "$keeper"
    done
done
exit 0
