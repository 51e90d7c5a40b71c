#!/bin/sh
# A job on Kubernetes: a fresh clone of PIPELINE_ORIGIN at PIPELINE_REF, a command in it, and its experiments back.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git clone --quiet "$PIPELINE_ORIGIN" "$work"
cd "$work"
git checkout --quiet "$PIPELINE_REF"
code=0
"$@" || code=$?
case $code in
  0 | 10 | 11) ;; # retraining: the champion is kept, nothing is new
  *) exit "$code" ;;
esac
names=$(dvc exp list --name-only)
if [ -n "$names" ]; then
  dvc push --quiet
  # shellcheck disable=SC2086 # one name a word
  dvc exp push --quiet origin $names
fi
