#!/usr/bin/env bash
# This machine, or pod, is about to go: tells those who train, and waits until they have saved, at most so many seconds.
#
#   leave.sh [SECONDS]
#
# The head has the commands themselves (drivers): they get SIGTERM, as from Ctrl-C. Another node is drained: Ray starts
# nothing more there and says so to the workers on it, which save after the step they are in and go on elsewhere.
set -euo pipefail

within_s=${1:-100}
deadline=$((SECONDS + within_s))

# Ids of the processes whose command line (its words joined by spaces) matches this pattern. Tests set other processes.
processes() {
  local folder
  for folder in "${PROCESSES:-/proc}"/[0-9]*; do
    if { tr '\0' ' ' <"$folder/cmdline"; } 2>/dev/null | grep -qE "$1"; then
      echo "${folder##*/}"
    fi
  done
}

drivers='^[^ ]*python[^ ]* -m raysrec\.'
waited_for=$drivers
if [ -n "$(processes '/gcs_server ')" ]; then
  for process in $(processes "$drivers"); do
    kill -TERM "$process" 2>/dev/null || true
  done
else
  waited_for='^ray::[A-Za-z_]*TrainWorker'
  ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "this machine is taken away" \
    --deadline-remaining-seconds "$within_s"
fi
while [ "$SECONDS" -lt "$deadline" ] && [ -n "$(processes "$waited_for")" ]; do
  sleep 1
done
