#!/bin/sh
# Starts a worker as the user grainhash, who decodes pictures of strangers. Dataflow mounts folders of root's into the
# container, where Beam's boot puts what a job brings along: the user gets them first.
set -eu
for folder in /var/opt/google /var/log/dataflow; do
    if [ -d "$folder" ]; then
        chown -R grainhash: "$folder"
    fi
done
exec setpriv --reuid=grainhash --regid=grainhash --init-groups -- "$@"
