# How far the scale is, on the screen.


localrules:
    status,


rule status:
    log:
        f"{LOGS}/status.log",
    conda:
        "../envs/relusym.yaml"
    params:
        title=f"Scale {SETTINGS.scale}",
        # why the record of each job isn't current, None if it is
        reasons=lambda w: {
            kind: {
                record: "missing or outdated" if is_needed(record) else None
                for record in records
                if record in CHOSEN
            }
            for kind, records in JOBS.items()
        },
        records=RECORDS,
        logs=LOGS,
        benchmarks=BENCHMARKS,
    script:
        "../workflow_scripts/status.py"
