#!/usr/bin/env bash
# Snakemake's question to PBS: is this job running, a success or failed? (`-x` asks for finished jobs too.)
report=$(qstat -x -f "$1" 2> /dev/null) || { echo running; exit; } # the server is busy: asked again later
state=$(sed -n 's/^ *job_state = //p' <<< "$report")
code=$(sed -n 's/^ *Exit_status = //p' <<< "$report")
case "$state" in
    F | C) if [ "$code" = 0 ]; then echo success; else echo failed; fi ;;
    *) echo running ;;
esac
