#!/usr/bin/env bash
# Builds the image, runs a grainhash command on Dataflow from this machine, or launches a template.
#
#     submit.sh image [requirements-gpu.txt]            build and push IMAGE
#     submit.sh run build --images ... [OPTIONS]        submit from here, and wait; needs grainhash installed
#     submit.sh template build index=gs://... images=gs://... [NAME=VALUE ...]    launch a template; waits for nothing
#
# Set PROJECT, REGION, BUCKET (the one for templates and staging) and IMAGE (REGION-docker.pkg.dev/.../grainhash:TAG).
# WORKER (the service account of jobs), MACHINE and MAX_WORKERS may be set.
set -euo pipefail
case "${1:-}" in
image | run | template) ;;
*)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
: "${PROJECT:?}" "${REGION:?}" "${BUCKET:?}" "${IMAGE:?}"
machine=${MACHINE:-n2-standard-4} max_workers=${MAX_WORKERS:-20}
here=$(cd "$(dirname "$0")" && pwd)
gcloud=${GCLOUD:-gcloud} docker=${DOCKER:-docker} grainhash=${GRAINHASH:-grainhash}

case $1 in
image)
    "$docker" build --platform linux/amd64 --file "$here/Dockerfile" \
        --build-arg "REQUIREMENTS=${2:-requirements.txt}" --tag "$IMAGE" "$here/../.."
    "$docker" push "$IMAGE"
    ;;
run)
    command=$2
    shift 2
    "$grainhash" "$command" "$@" \
        --runner=DataflowRunner --project="$PROJECT" --region="$REGION" \
        --temp_location="gs://$BUCKET/dataflow/tmp" --staging_location="gs://$BUCKET/dataflow/staging" \
        --job_name="grainhash-$command-$(date -u +%Y%m%d-%H%M%S)" \
        --sdk_container_image="$IMAGE" --sdk_location=container \
        --machine_type="$machine" --max_num_workers="$max_workers" --number_of_worker_harness_threads=2 \
        ${WORKER:+--service_account_email="$WORKER"}
    ;;
template)
    template=$2
    shift 2
    parameters="^~^sdk_container_image=$IMAGE" # separated by tildes, as patterns have commas
    for parameter in "$@"; do
        parameters+="~$parameter"
    done
    "$gcloud" dataflow flex-template run "grainhash-$template-$(date -u +%Y%m%d-%H%M%S)" \
        --project="$PROJECT" --region="$REGION" \
        --template-file-gcs-location="gs://$BUCKET/templates/$template.json" \
        --temp-location="gs://$BUCKET/dataflow/tmp" --staging-location="gs://$BUCKET/dataflow/staging" \
        --worker-machine-type="$machine" --max-workers="$max_workers" \
        ${WORKER:+--service-account-email="$WORKER"} \
        --parameters="$parameters"
    ;;
esac
