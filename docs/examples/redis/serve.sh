#!/bin/sh
# Runs one `crucible serve` for each port, and starts one that ends again. TERM or INT drains all of them.
# The options of this script are those of `crucible serve`, without --bind.
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
        # The signal may have come before there was a child.
        [ -z "$stopping" ] || kill -TERM "$child"
        wait "$child"
        status=$?
        if [ -n "$stopping" ]; then
            # The signal has interrupted the first wait.
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

# A signal interrupts a wait, which then has to go on. Its status says nothing then, so the script always exits with 0.
for keeper in $keepers; do
    wait "$keeper"
    while kill -0 "$keeper" 2>/dev/null; do
        wait "$keeper"
    done
done
exit 0
