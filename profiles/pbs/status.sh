#!/usr/bin/env bash
# Prints the state of a PBS job for Snakemake: running, success or failed. (`-x` includes finished jobs.)
report=$(qstat -x -f "$1" 2> /dev/null) || { echo running; exit; } # the server is busy: Snakemake asks again later
state=$(sed -n 's/^ *job_state = //p' <<< "$report")
code=$(sed -n 's/^ *Exit_status = //p' <<< "$report")
case "$state" in
    F | C) if [ "$code" = 0 ]; then echo success; else echo failed; fi ;;
    *) echo running ;;
esac
