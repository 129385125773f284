# How far the scale is, on the screen.


rule status:
    log:
        f"{LOGS}/status.log",
    localrule: True
    conda:
        "../envs/relusym.yaml"
    params:
        title=f"Scale {SETTINGS.scale}",
        reasons=lambda w: {
            kind: {
                record: RESULTS.reason(record)
                for record, job in RESULTS.jobs.items()
                if job.kind == kind
                and record in RESULTS.chosen
                and not job.targets
                and all(SETTINGS.model_of(unit).is_papers for unit, _ in job.nets)
            }
            for kind in SUBMITTED
        },
        records=f"{FOLDER}/records",
        logs=LOGS,
        benchmarks=BENCHMARKS,
    script:
        "../workflow_scripts/status.py"
