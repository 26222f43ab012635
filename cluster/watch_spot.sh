#!/usr/bin/env bash
# Watches for the notice that this spot machine will be taken away, and then leaves in order (leave.sh).
#
#   watch_spot.sh aws|gcp
#
# AWS gives notice 120 seconds ahead, Google Cloud 30. Runs until then; start it in the background.
set -euo pipefail

cloud=${1:?aws or gcp}
# Where a machine asks its cloud about itself; tests set another server.
metadata=${METADATA_URL:-http://169.254.169.254}
leave=${LEAVE:-raysrec-leave}

is_taken_from_aws() {
  local token
  token=$(curl --silent --fail --max-time 2 --request PUT "$metadata/latest/api/token" \
    --header "X-aws-ec2-metadata-token-ttl-seconds: 60") || return 1
  # Not there (404) until the machine is to be stopped or terminated.
  curl --silent --fail --max-time 2 --output /dev/null --header "X-aws-ec2-metadata-token: $token" \
    "$metadata/latest/meta-data/spot/instance-action"
}

is_taken_from_gcp() {
  local answer
  answer=$(curl --silent --fail --max-time 2 --header "Metadata-Flavor: Google" \
    "$metadata/computeMetadata/v1/instance/preempted") || return 1
  [ "$answer" = TRUE ]
}

case $cloud in
  aws) within_s=100 ;;
  gcp) within_s=25 ;;
  *)
    echo "error: $cloud is no cloud that is known here; aws or gcp" >&2
    exit 2
    ;;
esac
until "is_taken_from_$cloud"; do
  sleep "${LOOK_EVERY_S:-2}"
done
echo "this machine is taken away within $within_s seconds: training saves and goes on elsewhere"
exec "$leave" "$within_s"
